"""OpenTelemetry's GenAI metrics of a gateway: as a client of models, as a server of requests, and as what runs
workflows. Each worker is an instance of its own (`service.instance.id`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.catalogue import DIRECT
from gateway.observers import Finished
from gateway.tracing.spans import Upstreams, attempts_of, operation
from gateway.tracing.upstreams import OURS, Upstream

if TYPE_CHECKING:
    from opentelemetry.metrics import Histogram, Meter

__all__ = ["Metrics"]

_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_TOKENS = tuple(float(4**i) for i in range(14))
"""The bounds that the conventions advise."""


class Metrics:
    """Instruments of `meter`; labels are names of the config."""

    def __init__(self, meter: Meter, upstreams: Upstreams) -> None:
        def seconds(name: str, about: str, bounds: tuple[float, ...] = _SECONDS) -> Histogram:
            return meter.create_histogram(name, "s", about, explicit_bucket_boundaries_advisory=bounds)

        self._upstreams = upstreams
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=_TOKENS,
        )
        self._asked = seconds("gen_ai.client.operation.duration", "GenAI operation duration.")
        self._first_chunk = seconds(
            "gen_ai.client.operation.time_to_first_chunk",
            "Time to receive the first chunk of a stream.",
            _FIRST,
        )
        self._served = seconds(
            "gen_ai.server.request.duration", "Duration of requests, from arrival to last byte."
        )
        self._first_token = seconds(
            "gen_ai.server.time_to_first_token",
            "Time to the first byte of a successful streamed answer.",
            _FIRST,
        )
        self._workflow = seconds("gen_ai.workflow.duration", "Duration of requests that a strategy answered.")
        self._cost = meter.create_counter("chorus.cost", "USD", "US dollars spent on models.")

    def record(self, request: Finished) -> None:
        """A request has been answered."""
        served: dict[str, Any] = {
            "gen_ai.operation.name": operation(request.path.removeprefix("/v1")),
            "gen_ai.provider.name": OURS,
            "gen_ai.request.model": request.requested,
        }
        failed = {} if request.outcome == "ok" else {"error.type": request.outcome}
        self._served.record(request.took_s, {**served, **failed})
        if request.streamed and request.began_s is not None and not failed:
            self._first_token.record(request.began_s, served)
        if request.strategy not in (DIRECT, "none"):
            self._workflow.record(request.took_s, {"gen_ai.workflow.name": request.strategy, **failed})
        for asking in () if request.watch is None else request.watch.askings:
            doing = operation(asking.path)
            for attempt, ended, outcome, _ in attempts_of(asking):
                told = self._labels(doing, asking.model, attempt.deployment)
                error = {} if outcome == "ok" else {"error.type": outcome}
                self._asked.record(ended - attempt.began, {**told, **error})
                if asking.streamed and attempt.outcome == "ok":
                    self._first_chunk.record(attempt.ended - attempt.began, told)
            for call in asking.calls:
                told = self._labels(doing, call.model, 0)
                self._cost.add(call.cost_usd, told)
                if not call.estimated:
                    usage = call.usage
                    self._tokens.record(usage.prompt_tokens, {**told, "gen_ai.token.type": "input"})
                    self._tokens.record(usage.completion_tokens, {**told, "gen_ai.token.type": "output"})

    def _labels(self, doing: str, model: str, deployment: int) -> dict[str, Any]:
        known = self._upstreams.get(model, ())
        upstream = known[deployment] if deployment < len(known) else Upstream(OURS)
        return {
            "gen_ai.operation.name": doing,
            "gen_ai.provider.name": upstream.provider,
            "gen_ai.request.model": model,
        }
