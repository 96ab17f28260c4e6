"""Who spent what."""

from __future__ import annotations

import pytest

from backends.pricing import estimate_usd, shares
from protocol.usage import Price, Usage

PRICES = {"a": Price(1.0, 10.0), "b": Price(2.0, 20.0)}


def test_plain_share() -> None:
    """A plain answer is its model's alone, at its price."""
    (share,) = shares({"usage": {"prompt_tokens": 2, "completion_tokens": 3}}, "a", PRICES)
    assert (share.model, share.usage, share.cost_usd) == ("a", Usage(2, 3), 32.0)


def test_fused_shares() -> None:
    """Each member of a fused answer is priced for itself."""
    members = [
        {"model": "a", "prompt_tokens": 1, "completion_tokens": 1},
        {"model": "b", "prompt_tokens": 1, "completion_tokens": 0},
    ]
    told = shares({"usage": {"prompt_tokens": 2}, "chorus": {"members": members}}, "duet", PRICES)
    assert [(share.model, share.cost_usd) for share in told] == [("a", 11.0), ("b", 2.0)]


def test_unknown() -> None:
    """Without usage or a price nothing is charged."""
    (share,) = shares({}, "c", PRICES)
    assert (share.usage, share.cost_usd) == (Usage(), 0.0)


def test_cached_tokens() -> None:
    """Tokens read from a cache have their own price."""
    usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}
    (share,) = shares({"usage": usage}, "a", {"a": Price(1.0, 0.0, 0.5)})
    assert share.cost_usd == pytest.approx(8.0)


def test_estimate() -> None:
    """An estimate counts the prompt by length and the answer by its bound, for every member."""
    body = {"messages": [{"role": "user", "content": "x" * 8}], "max_tokens": 5, "n": 2}
    assert estimate_usd(body, ["a"], PRICES) == 2 * 1.0 + 10 * 10.0
    assert estimate_usd(body, ["a", "b", "c"], PRICES) == 3 * (2 * 1.0 + 10 * 10.0)
    assert estimate_usd({"input": ["x" * 4, "y" * 4]}, ["a"], PRICES) == 2.0
