"""Tells a collector of answered requests, from a thread of its own.

The request path appends to a bounded queue and does nothing else. Spans are built in the thread, with the times noted
while the request ran, as `ReadableSpan`s: the SDK's tracer would want to be there when they begin and end. A collector
that is away or slow costs its requests their traces, never the gateway an answer: what does not fit, or cannot be told
within the timeout, is dropped and counted, and said in the log once.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from gateway.observers import Finished
from gateway.telemetry import Telemetry
from gateway.tracing.spans import Span, spans_of
from gateway.tracing.upstreams import upstreams
from protocol.errors import SettingsError
from protocol.redaction import Redaction, secrets_of
from protocol.settings import Settings
from protocol.tracing import TraceContext, Watch, random_hex

if TYPE_CHECKING:
    from gateway.tracing.metrics import Metrics

__all__ = ["Exporter", "make_tracing"]

log = logging.getLogger("chorus.telemetry")

EVERY_S = 1.0
CLOSE_S = 5.0
"""How long the last requests may take to be told, once there are no more."""

BATCH = 128
"""Requests told at once; each has a handful of spans."""

MISSING = "telemetry.endpoint needs OpenTelemetry, which is not installed: pip install 'chorus-gateway[otel]'"

Send = Callable[[list[Span]], bool]


class Exporter:
    """`send` tells the collector of spans and says whether it took them; it may block. `dropped` is told how many
    requests' traces were lost, each time some are. `traces` False: only `metrics` are recorded."""

    def __init__(
        self,
        send: Send,
        spans: Callable[[Finished], list[Span]],
        *,
        metrics: Metrics | None = None,
        traces: bool = True,
        sample_ratio: float = 1.0,
        queue: int = 2048,
        dropped: Callable[[int], None] = lambda count: None,
        close: Callable[[], None] = lambda: None,
        learn: Callable[[Settings], None] = lambda settings: None,
    ) -> None:
        self.learn = learn
        """To be told of settings that come into force."""
        self._send, self._spans, self._metrics, self._traces = send, spans, metrics, traces
        self._ratio, self._limit, self._dropped, self._close = sample_ratio, queue, dropped, close
        self._waiting: deque[Finished] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._dice = random.Random()
        self.failing = False
        """Whether the collector did not take what it was told last."""

    def watch(self, parent: TraceContext | None) -> Watch:
        """A request that has come: part of its caller's trace, sampled as the caller decided; else the root of one."""
        if parent is not None:
            context = TraceContext(parent.trace_id, random_hex(16), parent.sampled, parent.state)
        else:
            sampled = self._dice.random() < self._ratio
            context = TraceContext(random_hex(32), random_hex(16), sampled)
        recording = (context.sampled and self._traces) or self._metrics is not None
        return Watch(context, parent, recording)

    def finished(self, request: Finished) -> None:
        """It has been answered. Never waits."""
        if request.watch is None or not request.watch.recording:
            return
        if len(self._waiting) >= self._limit:
            self._dropped(1)
        else:
            self._waiting.append(request)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def close(self) -> None:
        """Tell what waits, as far as the collector takes it, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._close()

    def _run(self) -> None:
        until = float("inf")
        while until == float("inf"):
            if self._stop.wait(EVERY_S):
                until = time.monotonic() + CLOSE_S
            while self._waiting and time.monotonic() < until:
                batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
                try:
                    self._tell(batch)
                except Exception:  # whatever it is, the next ones are to be told
                    log.exception("a bug of ours: traces were lost")
                    self._dropped(len(batch))
                if self._stop.is_set() and self.failing:
                    break
        self._dropped(len(self._waiting))

    def _tell(self, batch: list[Finished]) -> None:
        if self._metrics is not None:
            for request in batch:
                self._metrics.record(request)
        if not self._traces:
            return
        sampled = [request for request in batch if request.watch and request.watch.context.sampled]
        spans = [span for request in sampled for span in self._spans(request)]
        if not spans:
            return
        if self._send(spans):
            self.failing = False
            return
        if not self.failing:  # once, not every second
            log.error(
                "the collector at telemetry.endpoint does not take traces; they are dropped until it does"
            )
        self.failing = True
        self._dropped(len(sampled))  # last: who reads that some are lost finds the reason


def make_tracing(settings: Settings, telemetry: Telemetry) -> Exporter | None:
    """What the settings say of OpenTelemetry; None: it is off. Raises `SettingsError` where it is not installed."""
    told = settings.telemetry
    if told.endpoint is None or not (told.traces or told.metrics):
        return None
    try:
        from gateway.tracing import sdk
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise SettingsError(MISSING) from error
    collector = sdk.Collector(told, instance=uuid4().hex)
    known, redaction = dict(upstreams(settings)), Redaction(secrets_of(settings))

    def learn(settings: Settings) -> None:
        known.update(upstreams(settings))  # a model that is gone may still be answering
        redaction.learn(secrets_of(settings))

    def spans(request: Finished) -> list[Span]:
        return [_clean(span, redaction) for span in spans_of(request, known)]

    return Exporter(
        collector.send,
        spans,
        metrics=collector.metrics(known),
        traces=told.traces,
        sample_ratio=told.sample_ratio,
        queue=told.queue,
        dropped=telemetry.traces_dropped,
        close=collector.close,
        learn=learn,
    )


def _clean(span: Span, redaction: Redaction) -> Span:
    """What others chose of a span (a request's id, an answer's id and model) is no place for secrets either."""

    def clean(value: Any) -> Any:
        return redaction.text(value) if isinstance(value, str) else value

    attributes: Mapping[str, Any] = {name: clean(value) for name, value in span.attributes.items()}
    return replace(span, attributes=attributes, state=redaction.text(span.state))
