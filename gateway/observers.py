"""Who looks on: the access log and the OpenTelemetry exporter. Asked when a request comes, told when it has been
answered; both only put what they are told into a queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter, time
from typing import Protocol

from gateway.exchange import Exchange, Scope
from protocol.log_pipe import in_request
from protocol.run import Trace
from protocol.tracing import TraceContext, Watch

__all__ = ["Finished", "Observers", "Tracing"]


@dataclass(slots=True)
class Finished:
    """A request that has been answered. `status` 0: nothing was sent. `outcome` is "ok", "cancelled" or an error's
    code; `requested` and `path` are names of ours, whatever the caller wrote; `key` is the id of the caller's key.
    Times in seconds; `at`: its end, since the epoch,
    and `perf` the same moment on `time.perf_counter`."""

    request_id: str
    method: str
    path: str
    status: int
    outcome: str
    requested: str
    strategy: str
    began_s: float | None
    took_s: float
    key: str
    streamed: bool
    trace: Trace | None
    watch: Watch | None
    at: float = field(default_factory=time)
    perf: float = field(default_factory=perf_counter)


class Tracing(Protocol):
    """Who records traces."""

    def watch(self, parent: TraceContext | None) -> Watch:
        """A request that has come, `parent` being the caller's span."""
        ...

    def finished(self, request: Finished) -> None:
        """It has been answered. Never waits."""
        ...


class Observers:
    """`access`: told of every request, None where nobody reads it; `tracing` likewise."""

    def __init__(
        self, access: Callable[[Finished], None] | None = None, tracing: Tracing | None = None
    ) -> None:
        self._access, self._tracing = access, tracing
        self.any = access is not None or tracing is not None
        """Whether anybody is told when a request has been answered."""

    def begin(self, exchange: Exchange, scope: Scope) -> Watch | None:
        """A request has come; what is logged from here on in its task names it."""
        parent = TraceContext.parse(scope["headers"]) if b"traceparent" in exchange.headers else None
        watch = None if self._tracing is None else self._tracing.watch(parent)
        context = parent if watch is None else watch.context
        in_request(exchange.request_id, context)
        return watch

    def finished(self, request: Finished) -> None:
        """It has been answered."""
        if self._access is not None:
            self._access(request)
        if self._tracing is not None:
            self._tracing.finished(request)

    def page(self, exchange: Exchange, method: str, route: str) -> None:
        """A page has been answered, which concerns no model: for the access log only."""
        if self._access is not None:
            outcome = "ok" if exchange.status < 400 else str(exchange.status)
            self._access(
                Finished(
                    *(exchange.request_id, method, route, exchange.status, outcome, "unknown", "none"),
                    *(exchange.began_s, exchange.elapsed_s, "", False, None, None),
                )
            )
