"""What an answer tells about itself: headers, the summed usage, and the `chorus` object."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import orjson

from protocol.chat import ChatRequest
from protocol.run import Call, Reply, Trace
from protocol.usage import Usage
from protocol.wire import chunk, completion_id

__all__ = ["decimal", "decision_body", "explain", "headers", "last_event", "stream_headers", "whole_body"]


NAME = re.compile(r"[\w.:/@+-]{1,128}", re.ASCII)
"""What of a model's name may stand in a header that somebody else named."""


def decimal(usd: float) -> str:
    """US dollars as a plain decimal number, to a millionth of a millionth: `0.0000127`, never `1.27e-05`."""
    return f"{usd:.12f}".rstrip("0").rstrip(".")


def headers(strategy: str, members: Sequence[str], trace: Trace | None = None) -> dict[str, str]:
    """Who answered, how, and, when it is known already, at what cost and without whom."""
    told = {"x-chorus-strategy": strategy, "x-chorus-model": ",".join(members)}
    if trace is not None:
        told["x-chorus-cost-usd"] = decimal(trace.cost_usd)
        told |= _without(_left_out(trace))
    return told


def stream_headers(
    strategy: str, members: Sequence[str], trace: Trace, begun_without: Sequence[str] = ()
) -> dict[str, str]:
    """The same of a stream that begins: without whom as far as the calls before it say, and the engine hosts of those
    under way (`begun_without`)."""
    return headers(strategy, members) | _without([*_left_out(trace), *begun_without])


def _without(names: Iterable[str]) -> dict[str, str]:
    once = dict.fromkeys(filter(_is_name, names))
    return {"x-chorus-left-out": ",".join(once)} if once else {}


def _left_out(trace: Trace) -> list[str]:
    """Members of fusions that had no part in some text of the call tree, or lost theirs, as engine hosts tell it; each
    once."""
    told = [call.told["left_out"] for call in trace.calls if "left_out" in call.told]
    names = [
        row.get("model")
        for rows in told
        if isinstance(rows, list)
        for row in rows
        if isinstance(row, Mapping)
    ]
    return list(dict.fromkeys(filter(_is_name, names)))


def _is_name(name: object) -> TypeGuard[str]:
    """What an upstream says that is no model's name does not get into a header."""
    return isinstance(name, str) and NAME.fullmatch(name) is not None


def whole_body(request: ChatRequest, reply: Reply, strategy: str, trace: Trace) -> bytes:
    """The body of a complete answer: the backend's own bytes wherever nothing had to change."""
    changes: dict[str, Any] = {}
    if trace.composed:
        changes["usage"] = trace.usage.wire()
    if request.options.explain:
        changes["chorus"] = explain(strategy, reply.members, trace)
    if reply.raw is not None and not changes:
        return reply.raw
    return orjson.dumps({**reply.body, **changes}, option=orjson.OPT_SERIALIZE_NUMPY)


def decision_body(request: ChatRequest, chosen: str, strategy: str, trace: Trace) -> bytes:
    """The answer of `/v1/route`: who would answer; what that rests on when the caller asked to `explain`."""
    told: dict[str, Any] = {
        "object": "chorus.route",
        "model": chosen,
        "strategy": strategy,
        "cost_usd": _rounded(trace.cost_usd),
    }
    if request.options.explain:
        told["decision"] = trace.decision
    return orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)


def last_event(
    request: ChatRequest,
    members: Sequence[str],
    strategy: str,
    trace: Trace,
    *,
    tail: Mapping[str, Any] | None,
    head: Mapping[str, Any] | None = None,
) -> bytes:
    """The event before `[DONE]`, when the caller asked for usage or an explanation; else nothing. What the headers of a
    complete answer tell at its end, the cost and who was left out, stands here.

    `tail` is the event in which the backend reported its usage, kept as it is for a single call; `head` any
    earlier chunk, whose id, time and model the event repeats where there is no `tail`.
    """
    if not (request.wants_usage or request.options.explain):
        return b""
    head = head or {"id": completion_id(), "created": 0, "model": request.model}
    event = dict(tail) if tail else chunk(id=head["id"], created=head["created"], model=head["model"])
    event["choices"] = []
    if not request.wants_usage:
        event.pop("usage", None)
    elif trace.composed or tail is None:
        event["usage"] = trace.usage.wire() if trace.usage != Usage() else None
    if request.options.explain:
        event["chorus"] = explain(strategy, members, trace)
    else:
        left_out = _left_out(trace)
        event["chorus"] = {
            "cost_usd": _rounded(trace.cost_usd),
            **({"left_out": left_out} if left_out else {}),
        }
    return b"data: " + orjson.dumps(event, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n\n"


def explain(strategy: str, members: Sequence[str], trace: Trace) -> dict[str, Any]:
    """The decision, the calls it led to, and what each model spent (tokens, US dollars)."""
    told: dict[str, Any] = {
        "strategy": strategy,
        "model": ",".join(members),
        "cost_usd": _rounded(trace.cost_usd),
        "decision": trace.decision,
        "calls": [call.wire() for call in trace.calls],
        "members": _by_model(trace.calls),
    }
    if trace.embeddings:
        told["embeddings"] = [call.wire() for call in trace.embeddings]
    return told


def _by_model(calls: Sequence[Call]) -> list[dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for call in calls:
        row = table.setdefault(
            call.model,
            {"model": call.model, "calls": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.0},
        )
        row["calls"] += 1
        row["prompt_tokens"] += call.usage.prompt_tokens
        row["completion_tokens"] += call.usage.completion_tokens
        row["cost_usd"] = _rounded(row["cost_usd"] + call.cost_usd)
    return list(table.values())


def _rounded(usd: float) -> float:
    """Without the digits that adding binary fractions leaves behind."""
    return round(usd, 12)
