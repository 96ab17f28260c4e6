"""One request as the ledger keeps it. In its rows is no prompt, no answer, and no part of either."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.keys.key import Key
from gateway.limits.bounds import nano
from gateway.transcript import Transcript
from protocol.run import Call, Trace
from protocol.value import value

__all__ = ["Entry", "cost_nano", "facts"]

FACTS = frozenset(
    {
        "router",
        "strategy",
        "method",
        "chosen",
        "reason",
        "propensity",
        "cache",
        "similarity",
        "quality",
        "stage",
        "accepted",
        "nested",
        "estimates",
        "stages",
        "samples",
    }
)
"""What of a decision is kept; a strategy's other facts may hold words of the answer."""
STEPS = {
    "stages": ("model", "score", "threshold", "verdict", "error"),
    "samples": ("model", "score"),
}
"""What is kept of each stage of a cascade and each sample of an ensemble."""
MAX_TEXT = 512
MAX_PAIRS = 16


@value
class Entry:
    """A request that has been answered; made into rows when it is written. `at`: seconds since the epoch.
    `transcript`: what was said, of a key that has that stored; its rows are in `gateway.ledger.texts`."""

    id: str
    request_id: str
    at: float
    key: Key
    user: Any
    metadata: Any
    path: str
    requested: str
    strategy: str
    outcome: str
    latency_s: float
    trace: Trace | None
    transcript: Transcript | None = None

    def rows(self) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
        """The row of `requests`, and those of `calls`."""
        trace, key = self.trace or Trace(), self.key
        calls = [_call(self, number, call, "answer") for number, call in enumerate(trace.calls)]
        read = wrote = 0
        for call in trace.calls:
            read += call.usage.prompt_tokens
            wrote += call.usage.completion_tokens
        for call in trace.embeddings:
            calls.append(_call(self, len(calls), call, "embedding"))
        decision = facts(trace.decision) if trace.decision else None
        row = (
            self.id,
            self.request_id,
            self.at,
            key.id,
            key.alias,
            key.owner,
            key.team,
            orjson.dumps(key.tags).decode() if key.tags else None,
            self.user[:MAX_TEXT] if isinstance(self.user, str) else None,
            _metadata(self.metadata),
            self.path,
            self.requested,
            self.strategy,
            self.outcome,
            read,
            wrote,
            cost_nano(trace),
            self.latency_s,
            orjson.dumps(decision, option=orjson.OPT_SERIALIZE_NUMPY).decode() if decision else None,
        )
        return row, calls


def cost_nano(trace: Trace) -> int:
    """What the whole tree cost, in nanodollars: the sum of what each call did, each in whole nanodollars."""
    spent = 0
    for call in trace.calls:
        spent += nano(call.cost_usd)
    for call in trace.embeddings:
        spent += nano(call.cost_usd)
    return spent


def facts(decision: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a decision that hold nobody's words: names, reasons and numbers of known meaning."""
    kept: dict[str, Any] = {}
    for name, fact in decision.items():
        if name not in FACTS:
            continue
        if isinstance(fact, (str, int, float)):
            kept[name] = fact
        elif name == "nested" and isinstance(fact, list):
            kept[name] = [facts(inner) for inner in fact if isinstance(inner, dict)]
        elif name == "estimates" and isinstance(fact, dict):
            kept[name] = {
                model: {"quality": row.get("quality"), "cost_usd": row.get("cost_usd")}
                for model, row in fact.items()
                if isinstance(row, dict)
            }
        elif name in STEPS and isinstance(fact, list):
            rows = [_step(row, STEPS[name]) for row in fact if isinstance(row, dict)]
            if rows:
                kept[name] = rows
    return kept


def _step(row: Mapping[str, Any], fields: tuple[str, ...]) -> dict[str, Any]:
    return {field: row[field] for field in fields if row.get(field) is not None}


def _call(entry: Entry, number: int, call: Call, kind: str) -> tuple[Any, ...]:
    usage = call.usage
    return (
        entry.id,
        number,
        entry.at,
        call.model,
        kind,
        call.outcome,
        call.attempts,
        int(call.estimated),
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
        nano(call.cost_usd),
        call.latency_s,
        call.began_s,
        call.asker,
        usage.written_tokens,
    )


def _metadata(value: Any) -> str | None:
    """OpenAI's `metadata`: a few short pairs of text."""
    if not isinstance(value, Mapping):
        return None
    pairs = [(str(name)[:64], text[:MAX_TEXT]) for name, text in value.items() if isinstance(text, str)]
    return orjson.dumps(dict(pairs[:MAX_PAIRS])).decode() if pairs else None
