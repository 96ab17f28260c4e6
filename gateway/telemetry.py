"""What Prometheus sees. Own prefix, base units, labels bounded by the config; no prompt, key or address among
them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from backends.model import Model
from gateway.decisions import decisions
from gateway.run_dir import MULTIPROC_DIR
from gateway.tally import Count, Spread
from protocol.run import Call, Trace

__all__ = ["CONTENT_TYPE", "Telemetry", "merged"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_CALLS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
_SHARES = tuple(tenth / 10 for tenth in range(1, 11))
LOOP_PROBE_S = 0.5
FLUSH_S = 0.25
"""How old a scraped number may be; what a killed worker's counters lose."""
COMPONENTS = ("shared state", "ledger", "telemetry")
RELOADS = ("applied", "refused")


class Telemetry:
    """The metrics of one gateway. `names` are the public names that may stand in a label."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(names)
        self.registry = registry = CollectorRegistry()
        self._tallies: list[Count | Spread] = []
        self._requests = self._count(
            "chorus_requests", "Requests answered, by what was asked for and how it ended",
            "requested_model", "strategy", "outcome",
        )  # fmt: skip
        self._duration = self._spread(
            "chorus_request_duration_seconds", "From the request's arrival to the end of its answer",
            _SECONDS, "requested_model", "strategy",
        )  # fmt: skip
        self._begin = self._spread(
            "chorus_response_start_seconds", "From the request's arrival to the first byte of its answer",
            _SECONDS, "requested_model", "strategy",
        )  # fmt: skip
        self._calls = self._count("chorus_calls", "Calls to models, by how they ended", "model", "outcome")
        self._attempts = self._count(
            "chorus_attempts", "Times a deployment was asked; beyond the calls, these are retries", "model"
        )
        self._open = Gauge(
            "chorus_deployment_open", "1 while a deployment that failed is left alone, or probed, by some worker",
            ["model", "deployment"], registry=registry, multiprocess_mode="livemax",
        )  # fmt: skip
        self._call_duration = self._spread(
            "chorus_call_duration_seconds", "From a model's being asked to the end of its answer", _SECONDS, "model"
        )  # fmt: skip
        self._tokens = self._count(
            "chorus_tokens", "Tokens that models read (input) and wrote (output)", "model", "kind"
        )
        self._cost = self._count("chorus_cost_usd", "US dollars spent on models", "model")
        self._request_cost = self._count(
            "chorus_request_cost_usd", "US dollars spent on requests, by what was asked for",
            "requested_model", "strategy",
        )  # fmt: skip
        self._request_calls = self._spread(
            "chorus_request_calls", "Calls to answering models that a request led to: its fan-out", _CALLS, "strategy"
        )  # fmt: skip
        self._decisions = self._count(
            "chorus_decisions",
            "Decisions of strategies, by who was chosen and how",
            "strategy",
            "chosen",
            "how",
        )
        self._estimated_quality = self._spread(
            "chorus_estimated_quality", "The chosen model's quality as the router estimated it, 0 to 1",
            _SHARES, "strategy",
        )  # fmt: skip
        self._estimated_cost = self._count(
            "chorus_estimated_cost_usd",
            "US dollars that routed requests would have cost had this model answered, as the router estimated",
            "strategy", "model",
        )  # fmt: skip
        self._cached = self._count(
            "chorus_cache_answers",
            "Requests that the cache was asked: given an exact or a semantic answer, or a miss",
            "requested_model",
            "how",
        )
        self._under_way = 0
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
        self._text_dropped = Counter(
            "chorus_ledger_texts_dropped",
            "Requests of whose prompt and answer, though their key has them stored, there was no room for the wait",
            registry=registry,
        )
        self._reloads = Counter(
            "chorus_config_reloads", "Reloads of the config, by outcome: applied, or refused and the old one kept",
            ["outcome"], registry=registry,
        )  # fmt: skip
        for outcome in RELOADS:
            self._reloads.labels(outcome)
        self._config_hash = Gauge(
            "chorus_config_hash", "The first 48 bits of the digest of the config in force, as a number",
            registry=registry, multiprocess_mode="livemostrecent",
        )  # fmt: skip
        self._config_since = Gauge(
            "chorus_config_last_reload_success_timestamp_seconds",
            "When the config in force was loaded, in seconds since the epoch",
            registry=registry, multiprocess_mode="livemostrecent",
        )  # fmt: skip
        self._config_restart = Gauge(
            "chorus_config_restart_needed", "Settings that were changed and need a restart to come into force",
            registry=registry, multiprocess_mode="livemostrecent",
        )  # fmt: skip
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

    def names_are(self, names: Collection[str]) -> None:
        """The public names that may stand in a label from now on."""
        self._names = frozenset(names)

    def reloaded(self, outcome: str) -> None:
        """A reload ended: `outcome` is one of `RELOADS`."""
        self._reloads.labels(outcome).inc()

    def config_is(self, digest: str, at: float, restart_needed: int = 0) -> None:
        """The config with this `digest` (hexadecimal) is in force since `at`, seconds since the epoch, but for
        `restart_needed` of its settings."""
        self._config_hash.set(int(digest[:12], 16))
        self._config_since.set(at)
        self._config_restart.set(restart_needed)

    def ledger_dropped(self, count: int) -> None:
        """`count` requests will not be in the ledger."""
        self._ledger_dropped.inc(count)

    def text_dropped(self, count: int) -> None:
        """Of `count` requests the ledger will not have what was said."""
        self._text_dropped.inc(count)

    def traces_dropped(self, count: int) -> None:
        """No collector will be told of `count` requests."""
        self._traces_dropped.inc(count)

    def log_dropped(self, count: int) -> None:
        """`count` lines will not be in the log."""
        self._log_dropped.inc(count)

    def _count(self, name: str, help: str, *labels: str) -> Count:
        self._tallies.append(count := Count(Counter(name, help, labels, registry=self.registry)))
        return count

    def _spread(self, name: str, help: str, bounds: Sequence[float], *labels: str) -> Spread:
        histogram = Histogram(name, help, labels, buckets=bounds, registry=self.registry)
        self._tallies.append(spread := Spread(histogram, bounds))
        return spread

    def started(self) -> None:
        """A request has come."""
        self._under_way += 1

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
        if requested not in self._names:
            requested = "unknown"
        asked = (requested, strategy)
        self._under_way -= 1
        self._requests.add((requested, strategy, outcome))
        self._duration.add(asked, took_s)
        if began_s is not None:
            self._begin.add(asked, began_s)
        if trace is None:
            return
        self._request_cost.add(asked, trace.cost_usd)
        self._request_calls.add((strategy,), len(trace.calls))
        for call in trace.calls:
            self._called(call)
        for call in trace.embeddings:
            self._called(call)
        if trace.decision:
            self._decided(strategy, trace)
            if "cache" in trace.decision:
                self._cached.add((requested, trace.decision["cache"]))

    def _called(self, call: Call) -> None:
        """Count one call of the tree."""
        model = (call.model,)
        self._calls.add((call.model, call.outcome))
        self._attempts.add(model, call.attempts)
        self._call_duration.add(model, call.latency_s)
        self._tokens.add((call.model, "input"), call.usage.prompt_tokens)
        self._tokens.add((call.model, "output"), call.usage.completion_tokens)
        self._cost.add(model, call.cost_usd)

    def _decided(self, strategy: str, trace: Trace) -> None:
        """Count every decision of the tree."""
        for decision in decisions(strategy, trace.decision):
            self._decisions.add((decision.strategy, decision.chosen, decision.how))
            if decision.quality is not None:
                self._estimated_quality.add((decision.strategy,), decision.quality)
            for model, cost_usd in decision.cost_usd.items():
                self._estimated_cost.add((decision.strategy, model), cost_usd)

    def flush(self) -> None:
        """Hand on what was counted since the last time, to this process's registry or the workers' folder."""
        self._in_flight.set(self._under_way)
        for tally in self._tallies:
            tally.flush()

    async def flush_often(self) -> None:
        """Flush every `FLUSH_S` seconds, and once more on being cancelled."""
        try:
            while True:
                await asyncio.sleep(FLUSH_S)
                self.flush()
        finally:
            self.flush()

    async def watch(
        self, models: Callable[[], Mapping[str, Model]], degraded: Callable[[], Collection[str]] = tuple
    ) -> None:
        """Until cancelled, note which deployments of `models()` are left alone, what is `degraded`, and the event
        loop's delay, of which the gauge keeps the worst of ten probes."""
        loop = asyncio.get_running_loop()
        recent: list[float] = []
        known: set[tuple[str, str]] = set()
        while True:
            due = loop.time() + LOOP_PROBE_S
            await asyncio.sleep(LOOP_PROBE_S)
            recent = [*recent[-9:], max(0.0, loop.time() - due)]
            self._loop_delay.set(max(recent))
            missing = degraded()
            for component in COMPONENTS:
                self._degraded.labels(component).set(component in missing)
            opened = {
                (name, str(i)): seat.breaker.open
                for name, model in models().items()
                for i, seat in enumerate(model.seats)
            }
            for name, place in known - opened.keys():  # gone with a reload
                self._open.labels(name, place).set(0)
            known = set(opened)
            for (name, place), is_open in opened.items():
                self._open.labels(name, place).set(is_open)

    def exposition(self) -> bytes:
        """The metrics as text, of this process to the last request."""
        self.flush()
        return self.text()

    def text(self) -> bytes:
        """The metrics as they were flushed: of all workers where they share a folder, else of this process."""
        folder = os.environ.get(MULTIPROC_DIR)
        return merged(Path(folder)) if folder else generate_latest(self.registry)


def merged(folder: Path) -> bytes:
    """The metrics of every process that writes, or wrote, into `folder`, added up."""
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return generate_latest(registry)
