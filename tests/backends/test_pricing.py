"""Who spent what."""

from __future__ import annotations

import pytest

from backends.pricing import dearest_usd, seen_shares, shares, text_tokens, usage_bound
from protocol.run import Call
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


def test_what_engines_say_of_a_text_goes_with_the_first_share() -> None:
    """Who wrote what, and who had no part; nothing else of what stands beside them."""
    members = [{"model": name, "prompt_tokens": 1, "completion_tokens": 1} for name in "ab"]
    spans = [{"index": 0, "model": "b", "bytes": 7}]
    first, second = shares({"chorus": {"members": members, "spans": spans, "else": 1}}, "duet", PRICES)
    assert (first.told, second.told) == ({"spans": spans}, {})
    row = Call(first.model, first.usage, first.cost_usd, 0.1, told=first.told).wire()
    assert (row["model"], row["spans"]) == ("a", spans)


def test_unknown() -> None:
    """Without usage or a price nothing is charged."""
    (share,) = shares({}, "c", PRICES)
    assert (share.usage, share.cost_usd) == (Usage(), 0.0)


def test_cached_tokens() -> None:
    """Tokens read from a cache have their own price."""
    usage = {"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}
    (share,) = shares({"usage": usage}, "a", {"a": Price(1.0, 0.0, 0.5)})
    assert share.cost_usd == pytest.approx(8.0)


def test_bound() -> None:
    """The most a call may use: the prompt by length, the answer by the caller's bound, else the model's cap."""
    body = {"messages": [{"role": "user", "content": "x" * 8}], "max_tokens": 5, "n": 2}
    assert usage_bound(body, 99) == Usage(2, 10)
    del body["max_tokens"]
    assert usage_bound(body, 99) == Usage(2, 198)
    assert usage_bound(body, None) == Usage(2, 0)
    assert usage_bound({"input": ["x" * 4, "y" * 4]}, 99) == Usage(2, 0)


def test_dearest() -> None:
    """Every member with a price counts."""
    assert dearest_usd(["a"], PRICES) == (1.0, 10.0)
    assert dearest_usd(["a", "b", "c"], PRICES) == (3.0, 30.0)


def test_seen_shares() -> None:
    """Where nothing was reported, the prompt counts by length and the answer by what was seen; it says so."""
    (share,) = seen_shares({"prompt": "x" * 8}, 3, ["a"], PRICES)
    assert (share.usage, share.cost_usd, share.estimated) == (Usage(2, 3), 32.0, True)


def test_text_tokens() -> None:
    """The texts of all choices count, whatever else an answer lacks."""
    answer = {
        "choices": [{"message": {"content": "x" * 8}}, {"text": "y" * 4}, {"message": {"content": None}}]
    }
    assert text_tokens(answer) == 3
    assert text_tokens({"data": []}) == 0


@pytest.mark.parametrize("told", [None, [], "x", {"members": None}])
def test_foreign_chorus_objects(told: object) -> None:
    """A backend's own `chorus` field is not taken for a table of members."""
    (share,) = shares({"usage": {"prompt_tokens": 1}, "chorus": told}, "a", PRICES)
    assert share.cost_usd == 1.0
