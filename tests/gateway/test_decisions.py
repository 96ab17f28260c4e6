"""Decisions as they are read off a trace."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.decisions import HOW, Decision, decisions
from protocol.run import Trace

ESTIMATES = {"a": {"quality": 0.5, "cost_usd": 0.25}, "b": {"quality": None, "cost_usd": None}}


@pytest.mark.parametrize(
    ("facts", "chosen", "how"),
    [
        ({"chosen": "a", "reason": "best quality", "estimates": ESTIMATES}, "a", "estimated"),
        ({"chosen": "a", "reason": "default: the request has no text"}, "a", "default"),
        ({"accepted": "a", "stages": [{"model": "a"}]}, "a", "first"),
        ({"accepted": "b", "stages": [{"model": "a"}, {"model": "b"}]}, "b", "deferred"),
        ({"stages": [{"model": "a"}, {"model": "b"}]}, "none", "deferred"),
        ({"chosen": 1, "samples": [{"model": "a"}, {"model": "b"}], "votes": {}}, "b", "merged"),
        ({"something": "new"}, "none", "other"),
    ],
)
def test_read_off_the_trace(facts: dict[str, Any], chosen: str, how: str) -> None:
    """Whatever the method, one decision with who was chosen and one of the known ways."""
    (decision,) = decisions("s", facts)
    assert (decision.strategy, decision.chosen, decision.how) == ("s", chosen, how)
    assert how in HOW


def test_estimates_are_kept() -> None:
    """The chosen model's quality and every model's cost, as far as they are known."""
    assert list(decisions("auto", {"chosen": "a", "estimates": ESTIMATES})) == [
        Decision("auto", "a", "estimated", 0.5, {"a": 0.25})
    ]


def test_nested_strategies_decide_too() -> None:
    """A strategy asked by another one has a decision of its own; a plain model has none."""
    trace = Trace()
    trace.nested("inner").note(accepted="a", stages=[{"model": "a"}])
    assert [decision.strategy for decision in decisions("direct", trace.decision)] == ["inner"]
    trace.note(chosen="inner", estimates={})
    assert [decision.strategy for decision in decisions("auto", trace.decision)] == ["auto", "inner"]
