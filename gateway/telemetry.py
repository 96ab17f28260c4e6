"""What Prometheus sees. Own prefix, base units, labels bounded by the config; no prompt, key or address among
them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from backends.model import Model
from gateway.decisions import decisions
from gateway.run_dir import MULTIPROC_DIR
from protocol.run import Trace

__all__ = ["CONTENT_TYPE", "Telemetry", "merged"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_CALLS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_SHARES = tuple(tenth / 10 for tenth in range(1, 11))
LOOP_PROBE_S = 0.5
COMPONENTS = ("shared state", "ledger", "telemetry")


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
        self._attempts = Counter(
            "chorus_attempts",
            "Times a deployment was asked; beyond the calls, these are retries",
            ["model"],
            registry=registry,
        )
        self._open = Gauge(
            "chorus_deployment_open", "1 while a deployment that failed is left alone, or probed, by some worker",
            ["model", "deployment"], registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        self._call_duration = Histogram(
            "chorus_call_duration_seconds", "From a model's being asked to the end of its answer",
            ["model"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._tokens = Counter(
            "chorus_tokens",
            "Tokens that models read (input) and wrote (output)",
            ["model", "kind"],
            registry=registry,
        )
        self._cost = Counter("chorus_cost_usd", "US dollars spent on models", ["model"], registry=registry)
        self._request_cost = Counter(
            "chorus_request_cost_usd", "US dollars spent on requests, by what was asked for",
            ["requested_model", "strategy"], registry=registry,
        )  # fmt: skip
        self._request_calls = Histogram(
            "chorus_request_calls", "Calls to answering models that a request led to: its fan-out",
            ["strategy"], buckets=_CALLS, registry=registry,
        )  # fmt: skip
        self._decisions = Counter(
            "chorus_decisions", "Decisions of strategies, by who was chosen and how",
            ["strategy", "chosen", "how"], registry=registry,
        )  # fmt: skip
        self._estimated_quality = Histogram(
            "chorus_estimated_quality", "The chosen model's quality as the router estimated it, 0 to 1",
            ["strategy"], buckets=_SHARES, registry=registry,
        )  # fmt: skip
        self._estimated_cost = Counter(
            "chorus_estimated_cost_usd",
            "US dollars that routed requests would have cost had this model answered, as the router estimated",
            ["strategy", "model"], registry=registry,
        )  # fmt: skip
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
        self._traces_dropped = Counter(
            "chorus_traces_dropped", "Requests of which no collector was told: the queue was full, or it was away",
            registry=registry,
        )  # fmt: skip
        self._log_dropped = Counter(
            "chorus_log_lines_dropped",
            "Lines that the log lost: who reads it was too slow",
            registry=registry,
        )
        self._degraded = Gauge(
            "chorus_degraded", "1 while it does not work, though requests are answered",
            ["component"], registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip

    def ledger_dropped(self, count: int) -> None:
        """`count` requests will not be in the ledger."""
        self._ledger_dropped.inc(count)

    def traces_dropped(self, count: int) -> None:
        """No collector will be told of `count` requests."""
        self._traces_dropped.inc(count)

    def log_dropped(self, count: int) -> None:
        """`count` lines will not be in the log."""
        self._log_dropped.inc(count)

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
        if trace is None:
            return
        self._request_cost.labels(requested, strategy).inc(trace.cost_usd)
        self._request_calls.labels(strategy).observe(len(trace.calls))
        for call in (*trace.calls, *trace.embeddings):
            self._calls.labels(call.model, call.outcome).inc()
            self._attempts.labels(call.model).inc(call.attempts)
            self._call_duration.labels(call.model).observe(call.latency_s)
            self._tokens.labels(call.model, "input").inc(call.usage.prompt_tokens)
            self._tokens.labels(call.model, "output").inc(call.usage.completion_tokens)
            self._cost.labels(call.model).inc(call.cost_usd)
        self._decided(strategy, trace)

    def _decided(self, strategy: str, trace: Trace) -> None:
        """Count every decision of the tree."""
        for decision in decisions(strategy, trace.decision):
            self._decisions.labels(decision.strategy, decision.chosen, decision.how).inc()
            if decision.quality is not None:
                self._estimated_quality.labels(decision.strategy).observe(decision.quality)
            for model, cost_usd in decision.cost_usd.items():
                self._estimated_cost.labels(decision.strategy, model).inc(cost_usd)

    async def watch(
        self, models: Mapping[str, Model], degraded: Callable[[], Collection[str]] = tuple
    ) -> None:
        """Until cancelled, note which deployments of `models` are left alone, what is `degraded`, and the event loop's
        delay, of which the gauge keeps the worst of ten probes."""
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
            for name, model in models.items():
                for i, seat in enumerate(model.seats):
                    self._open.labels(name, str(i)).set(seat.breaker.open)

    def exposition(self) -> bytes:
        """The metrics as text: of all workers where they share a folder, else of this process."""
        folder = os.environ.get(MULTIPROC_DIR)
        return merged(Path(folder)) if folder else generate_latest(self.registry)


def merged(folder: Path) -> bytes:
    """The metrics of every process that writes, or wrote, into `folder`, added up."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
