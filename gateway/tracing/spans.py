"""The spans of one request, made of what was noted while it ran. Names are those of OpenTelemetry's HTTP and GenAI
conventions (the latter in development: open-telemetry/semantic-conventions-genai); what they have no name for begins
with `chorus.`.

    POST /v1/chat/completions                SERVER     the request
    └── invoke_workflow auto                 INTERNAL   its strategy, with the decision
        ├── chat one                         CLIENT     an attempt
        ├── chat one                         CLIENT     a retry
        ├── chat duet                        CLIENT     a fusion
        │   └── chat smollm2-135m            INTERNAL   a member of it
        └── invoke_workflow cautious         INTERNAL   a strategy asked by the strategy

An attempt ends with its answer; the last one of a stream with the stream. A strategy ends with the last of what it
asked, the request's own with the request. There is no prompt, no answer and no key in any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway.ledger.entry import facts
from gateway.observers import Finished
from gateway.tracing.upstreams import OURS, Upstream
from protocol.run import Call
from protocol.tracing import Asking, Attempt, Watch, random_hex
from protocol.usage import Usage

__all__ = ["OPERATIONS", "Span", "attempts_of", "operation", "spans_of"]

Kind = Literal["server", "internal", "client"]
Upstreams = Mapping[str, Sequence[Upstream]]

OPERATIONS: Mapping[str, str] = {
    "/chat/completions": "chat",
    "/completions": "text_completion",
    "/embeddings": "embeddings",
    "/messages": "chat",
    "/responses": "chat",
}
WORKFLOW = "invoke_workflow"

_REQUESTED = {
    "dimensions": "gen_ai.embeddings.dimension.count",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "max_output_tokens": "gen_ai.request.max_tokens",
    "max_tokens": "gen_ai.request.max_tokens",
    "n": "gen_ai.request.choice.count",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "temperature": "gen_ai.request.temperature",
    "top_k": "gen_ai.request.top_k",
    "top_p": "gen_ai.request.top_p",
}
_ANSWERED = {
    "id": "gen_ai.response.id",
    "model": "gen_ai.response.model",
    "finish_reasons": "gen_ai.response.finish_reasons",
}


@dataclass(frozen=True, slots=True)
class Span:
    """Ids in hexadecimal; `parent_id` empty for none; times in nanoseconds since the epoch. `failed`: its status is
    an error."""

    name: str
    kind: Kind
    trace_id: str
    span_id: str
    parent_id: str
    began: int
    ended: int
    attributes: Mapping[str, Any]
    failed: bool = False
    state: str = field(default="")


def operation(path: str) -> str:
    """The conventions' word for what is asked on the surface `path`; of other surfaces, their first word."""
    return OPERATIONS.get(path) or path.strip("/").partition("/")[0]


def spans_of(request: Finished, upstreams: Upstreams) -> list[Span]:
    """The request's span first, then those below it. Empty for a request that nobody watched."""
    return [] if request.watch is None else list(_Tree(request, request.watch, upstreams).spans())


def attempts_of(asking: Asking) -> Iterator[tuple[Attempt, float, str, bool]]:
    """Each attempt, its end, how it ended, a stream once begun included, and whether it was the last."""
    last = len(asking.attempts) - 1
    for i, attempt in enumerate(asking.attempts):
        winner = attempt.outcome == "ok"
        ended = asking.ended if winner else attempt.ended
        yield (
            attempt,
            max(ended, attempt.began),
            asking.outcome if winner else attempt.outcome,
            winner or i == last,
        )


class _Tree:
    def __init__(self, request: Finished, watch: Watch, upstreams: Upstreams) -> None:
        self._request, self._watch, self._upstreams = request, watch, upstreams
        self._offset = request.at - request.perf
        self._ids = [random_hex(16) for _ in watch.levels]

    def spans(self) -> Iterator[Span]:
        yield self._server()
        for index in range(len(self._watch.levels)):
            yield self._strategy(index)
        for asking in self._watch.askings:
            yield from self._asking(asking)

    def _server(self) -> Span:
        request, watch = self._request, self._watch
        surface = request.path.removeprefix("/v1")
        told: dict[str, Any] = {
            "http.request.method": request.method,
            "http.route": request.path,
            "gen_ai.operation.name": operation(surface),
            "gen_ai.request.model": request.requested,
            "gen_ai.request.stream": request.streamed,
            "chorus.request_id": request.request_id,
            "chorus.strategy": request.strategy,
            "chorus.outcome": request.outcome,
        }
        if request.status:
            told["http.response.status_code"] = request.status
        if request.key:
            told["chorus.key_id"] = request.key
        if request.began_s is not None:
            told["chorus.first_byte_s"] = request.began_s
        if request.trace is not None:
            told |= _spent(request.trace.calls)
            told["chorus.cost_usd"] = request.trace.cost_usd
            told["chorus.calls"] = len(request.trace.calls)
        failed = request.status >= 500 or (
            request.status == 200 and request.outcome not in ("ok", "cancelled")
        )
        if request.outcome != "ok":
            told["error.type"] = request.outcome
        ended = request.perf
        parent = watch.parent.span_id if watch.parent else ""
        name = f"{request.method} {request.path}"
        return self._span(
            name, "server", watch.context.span_id, parent, ended - request.took_s, ended, told, failed
        )

    def _strategy(self, index: int) -> Span:
        level = self._watch.levels[index]
        outermost = level.parent is None
        told: dict[str, Any] = {
            "gen_ai.operation.name": WORKFLOW,
            "gen_ai.workflow.name": level.strategy,
            **{f"chorus.decision.{name}": value for name, value in _flat(facts(level.decision))},
        }
        failed = outermost and self._request.outcome not in ("ok", "cancelled")
        if failed:
            told["error.type"] = self._request.outcome
        ended = self._request.perf if outermost else max(self._ends(index), default=level.began)
        name = f"{WORKFLOW} {level.strategy}"
        parent = self._watch.context.span_id if level.parent is None else self._ids[level.parent]
        return self._span(name, "internal", self._ids[index], parent, level.began, ended, told, failed)

    def _ends(self, index: int) -> Iterator[float]:
        """When what the strategy asked ended."""
        yield from (asking.ended for asking in self._watch.askings if asking.level == index)
        for inner, level in enumerate(self._watch.levels):
            if level.parent == index:
                yield from self._ends(inner)

    def _asking(self, asking: Asking) -> Iterator[Span]:
        parent = self._ids[asking.level] if self._ids else self._watch.context.span_id
        doing = operation(asking.path)
        name = f"{doing} {asking.model}"
        if not asking.attempts:  # refused before anybody was asked
            told = {
                **self._asked(asking, doing, None),
                "chorus.outcome": asking.outcome,
                "error.type": asking.outcome,
            }
            yield self._span(name, "client", random_hex(16), parent, asking.began, asking.ended, told, True)
            return
        for number, (attempt, ended, outcome, last) in enumerate(attempts_of(asking)):
            told = {
                **self._asked(asking, doing, attempt.deployment),
                "chorus.attempt": number + 1,
                "chorus.deployment": attempt.deployment,
                "chorus.outcome": outcome,
            }
            failed = outcome not in ("ok", "hedged", "cancelled")
            if outcome not in ("ok", "hedged"):
                told["error.type"] = outcome
            if asking.streamed and attempt.outcome == "ok":
                told["gen_ai.response.time_to_first_chunk"] = attempt.ended - attempt.began
            booked = [call for call in asking.calls if (call.outcome == "hedged") == (outcome == "hedged")]
            if outcome == "hedged":  # what each of them cost is booked alike
                hedges = sum(other.outcome == "hedged" for other in asking.attempts)
                booked = booked[: len(booked) // max(1, hedges)]
            elif not last:
                booked = []  # a failed attempt that another followed costs nothing
            told |= _spent(booked)
            told["chorus.cost_usd"] = sum(call.cost_usd for call in booked)
            if any(call.estimated for call in booked):
                told["chorus.usage_estimated"] = True
            if attempt.outcome == "ok":
                told |= {_ANSWERED[fact]: value for fact, value in asking.answer.items()}
            span_id = attempt.span_id or random_hex(16)
            yield self._span(name, "client", span_id, parent, attempt.began, ended, told, failed)
            if len(booked) > 1:
                yield from self._members(asking, booked, doing, span_id, attempt.began, ended)

    def _members(
        self, asking: Asking, booked: Iterable[Call], doing: str, parent: str, began: float, ended: float
    ) -> Iterator[Span]:
        """The models of a fusion, which decode together."""
        for call in booked:
            told = {
                "gen_ai.operation.name": doing,
                "gen_ai.provider.name": OURS,
                "gen_ai.request.model": call.model,
                "chorus.fusion": asking.model,
                "chorus.cost_usd": call.cost_usd,
                **_spent([call]),
            }
            yield self._span(
                f"{doing} {call.model}", "internal", random_hex(16), parent, began, ended, told, False
            )

    def _asked(self, asking: Asking, doing: str, deployment: int | None) -> dict[str, Any]:
        known = self._upstreams.get(asking.model, ())
        upstream = known[deployment or 0] if (deployment or 0) < len(known) else Upstream(OURS)
        told: dict[str, Any] = {
            "gen_ai.operation.name": doing,
            "gen_ai.provider.name": upstream.provider,
            "gen_ai.request.model": asking.model,
            **{_REQUESTED[name]: value for name, value in asking.parameters.items()},
        }
        if asking.streamed:
            told["gen_ai.request.stream"] = True
        if asking.fallback:
            told["chorus.fallback"] = True
        if upstream.address:
            told["server.address"] = upstream.address
            if upstream.port:
                told["server.port"] = upstream.port
        return told

    def _span(
        self,
        name: str,
        kind: Kind,
        span_id: str,
        parent: str,
        began: float,
        ended: float,
        told: Mapping[str, Any],
        failed: bool,
    ) -> Span:
        context = self._watch.context
        times = self._ns(began), self._ns(ended)
        return Span(name, kind, context.trace_id, span_id, parent, *times, told, failed, context.state)

    def _ns(self, at: float) -> int:
        return int((at + self._offset) * 1e9)


def _spent(calls: Sequence[Call]) -> dict[str, Any]:
    """Tokens of those calls; nothing where none were told or estimated."""
    usage = sum((call.usage for call in calls), Usage())
    if usage == Usage():
        return {}
    told = {
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
    }
    if usage.cached_tokens:
        told["gen_ai.usage.cache_read.input_tokens"] = usage.cached_tokens
    if usage.reasoning_tokens:
        told["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    return told


def _flat(decision: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The facts of a decision as attributes; what strategies below decided stands in their own spans."""
    for name, value in decision.items():
        if (
            name == "nested" or value is None or isinstance(value, list)
        ):  # a cascade's steps are spans themselves
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (str, bool, int, float)):
            yield prefix + name, value
        else:  # a number of numpy's
            yield prefix + name, float(value)
