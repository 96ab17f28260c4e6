"""What strategies decided, as bounded facts that metrics can count.

A strategy notes in its trace whatever its decision rested on. From that every decision of the tree is read
here in the same way, whatever the method: who was chosen, and how. What a fact is called is the strategy's
choice; those that mean the same are listed here together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

from protocol.value import value

__all__ = ["HOW", "Decision", "chosen_of", "decisions"]

HOW = ("estimated", "default", "first", "deferred", "merged", "other")
"""A router chose by its estimates, or could not and took its default; a cascade kept its first stage's
answer, or asked on; several answers were merged into one; or the trace tells none of these."""


OF_OTHERS = frozenset({"nested", "strategy", "cache", "similarity"})
"""Facts that are no decision of a strategy's."""


@value
class Decision:
    """One strategy's decision. `chosen`: a configured name, or "none"; `how`: one of `HOW`.

    `quality`: the chosen model's estimated quality, 0 to 1, where there is one; `cost_usd`: what each model
    was estimated to cost for this query, in US dollars.
    """

    strategy: str
    chosen: str
    how: str
    quality: float | None = None
    cost_usd: Mapping[str, float] = field(default_factory=dict)


def decisions(strategy: str, facts: Mapping[str, Any]) -> Iterator[Decision]:
    """The decision that `facts` (a trace's) tell of, if they do, and those of the strategies it asked."""
    if not OF_OTHERS.issuperset(facts):
        chosen = chosen_of(facts)
        estimates: Mapping[str, Any] = facts.get("estimates") or {}
        yield Decision(
            strategy,
            chosen,
            _how(facts),
            estimates.get(chosen, {}).get("quality"),
            {name: cost for name, row in estimates.items() if (cost := row.get("cost_usd")) is not None},
        )
    for inner in facts.get("nested", ()):
        yield from decisions(inner["strategy"], inner)


def chosen_of(facts: Mapping[str, Any]) -> str:
    """The configured name that was chosen, or "none". A router's `chosen` and a cascade's `accepted` are names; an
    answer ensemble's `chosen` is the index of a sample."""
    chosen = facts.get("accepted", facts.get("chosen"))
    if isinstance(chosen, int):
        samples = facts.get("samples", ())
        chosen = samples[chosen]["model"] if 0 <= chosen < len(samples) else None
    return chosen if isinstance(chosen, str) else "none"


def _how(facts: Mapping[str, Any]) -> str:
    if "stages" in facts:
        return "first" if len(facts["stages"]) == 1 else "deferred"
    if "samples" in facts:
        return "merged"
    if str(facts.get("reason", "")).startswith("default"):
        return "default"
    return "estimated" if "estimates" in facts else "other"
