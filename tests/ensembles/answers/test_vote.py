"""Counting votes."""

from __future__ import annotations

from ensembles.answers.vote import plurality, tally


def test_tally_counts_weights_in_order_of_appearance() -> None:
    """Votes are sums of weights a key; abstentions have none."""
    assert list(tally(["b", None, "a", "b"]).items()) == [("b", 2.0), ("a", 1.0)]
    assert tally(["b", "a", None], [0.5, 2.0, 9.0]) == {"b": 0.5, "a": 2.0}


def test_plurality() -> None:
    """The first voter of the heaviest key wins; the first key on ties; nobody when all abstain."""
    assert plurality(["a", "b", "b"]) == 1
    assert plurality(["a", "b"]) == 0
    assert plurality(["a", "b"], [1.0, 3.0]) == 1
    assert plurality([None, "a"]) == 1
    assert plurality([None, None]) is None
