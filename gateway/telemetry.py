"""What Prometheus sees. Own prefix, base units, labels bounded by the config; no prompt, key or address among
them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from gateway.run_dir import MULTIPROC_DIR
from protocol.run import Trace

__all__ = ["CONTENT_TYPE", "Telemetry", "merged"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
LOOP_PROBE_S = 0.5
COMPONENTS = ("shared state", "ledger")


class Telemetry:
    """The metrics of one gateway. `names` are the public names that may stand in a label."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "chorus_requests", "Requests answered, by what was asked for and how it ended",
            ["requested_model", "strategy", "outcome"], registry=registry,
        )  # fmt: skip
        self._duration = Histogram(
            "chorus_request_duration_seconds", "From the request's arrival to the end of its answer",
            ["requested_model", "strategy"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._begin = Histogram(
            "chorus_response_start_seconds", "From the request's arrival to the first byte of its answer",
            ["requested_model", "strategy"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._calls = Counter(
            "chorus_calls", "Calls to models, by how they ended", ["model", "outcome"], registry=registry
        )
        self._tokens = Counter(
            "chorus_tokens",
            "Tokens that models read (input) and wrote (output)",
            ["model", "kind"],
            registry=registry,
        )
        self._cost = Counter("chorus_cost_usd", "US dollars spent on models", ["model"], registry=registry)
        self._in_flight = Gauge(
            "chorus_requests_in_flight",
            "Requests being answered now",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._loop_delay = Gauge(
            "chorus_event_loop_delay_seconds", "How late the event loop ran a timer: the worst of ten",
            registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip

        self._ledger_dropped = Counter(
            "chorus_ledger_dropped", "Requests that the ledger lost: its queue was full", registry=registry
        )
        self._degraded = Gauge(
            "chorus_degraded", "1 while it does not work, though requests are answered",
            ["component"], registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip

    def ledger_dropped(self, count: int) -> None:
        """`count` requests will not be in the ledger."""
        self._ledger_dropped.inc(count)

    def started(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def finished(
        self,
        requested: str,
        strategy: str,
        outcome: str,
        trace: Trace | None,
        *,
        began_s: float | None,
        took_s: float,
    ) -> None:
        """It has been answered: `outcome` is "ok", "cancelled" or an error's code; times in seconds."""
        requested = requested if requested in self._names else "unknown"
        self._in_flight.dec()
        self._requests.labels(requested, strategy, outcome).inc()
        self._duration.labels(requested, strategy).observe(took_s)
        if began_s is not None:
            self._begin.labels(requested, strategy).observe(began_s)
        for call in (*trace.calls, *trace.embeddings) if trace else ():
            self._calls.labels(call.model, call.outcome).inc()
            self._tokens.labels(call.model, "input").inc(call.usage.prompt_tokens)
            self._tokens.labels(call.model, "output").inc(call.usage.completion_tokens)
            self._cost.labels(call.model).inc(call.cost_usd)

    async def watch_loop(self, degraded: Callable[[], Collection[str]] = tuple) -> None:
        """Measure the event loop's delay until cancelled (the gauge keeps the worst of ten probes), and watch what is
        `degraded`."""
        loop = asyncio.get_running_loop()
        recent: list[float] = []
        while True:
            due = loop.time() + LOOP_PROBE_S
            await asyncio.sleep(LOOP_PROBE_S)
            recent = [*recent[-9:], max(0.0, loop.time() - due)]
            self._loop_delay.set(max(recent))
            missing = degraded()
            for component in COMPONENTS:
                self._degraded.labels(component).set(component in missing)

    def exposition(self) -> bytes:
        """The metrics as text: of all workers where they share a folder, else of this process."""
        folder = os.environ.get(MULTIPROC_DIR)
        return merged(Path(folder)) if folder else generate_latest(self.registry)


def merged(folder: Path) -> bytes:
    """The metrics of every process that writes, or wrote, into `folder`, added up."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
