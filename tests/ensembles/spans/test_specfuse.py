"""SpecEM's shares, wins and weights."""

from __future__ import annotations

import math

import pytest

from ensembles.spans.base import Commit, Propose, Score, Span, Task
from ensembles.spans.specfuse import SpecFuse, learned, shares, wins
from protocol.errors import SettingsError


def _spans(n: int) -> list[Span]:
    return [Span(i, b" %d" % i, False, Score((-1.0,), (1.0,), 2)) for i in range(n)]


def test_wins_counted_by_hand() -> None:
    """A 3 × 3 table: row 0 likes 1 over 2, row 1 likes 2 over 0, row 2 has 0 and 1 level; own rows do not count."""
    table = ((0.9, 0.06, 0.04), (0.2, 0.5, 0.3), (0.4, 0.4, 0.2))
    # span 0: judge 1: ≥ span 1 no, ≥ span 2 no; judge 2: ≥ span 1 yes, ≥ span 2 yes
    # span 1: judge 0: ≥ span 0 no, ≥ span 2 yes; judge 2: ≥ span 0 yes, ≥ span 2 yes
    # span 2: judge 0: none; judge 1: ≥ span 0 yes, ≥ span 1 no
    assert wins(table, (0, 1, 2)) == (2, 3, 1)


def test_weights_stay_on_the_simplex() -> None:
    """Σw = 1 after many rounds; the weight of who always wins never falls; a rate of 0 keeps them."""
    spans, weights = _spans(3), (0.2, 0.3, 0.5)
    table = ((0.5, 0.3, 0.2),) * 3
    last = weights[0]
    for t in range(1, 60):
        weights = learned(weights, spans, table, 0.3 / t)
        assert sum(weights) == pytest.approx(1)
        assert min(weights) > 0
        assert weights[0] >= last
        last = weights[0]
    assert learned((0.2, 0.3, 0.5), spans, table, 0.0) == pytest.approx((0.2, 0.3, 0.5))
    assert learned((0.4, 0.6), spans[:1], ((1.0,),), 0.5) == (0.4, 0.6)


def test_a_step_of_the_weights_by_hand() -> None:
    """Two members, each wins or loses one comparison: w ∝ w exp(η · max(1, wins))."""
    table = ((0.3, 0.7), (0.2, 0.8))
    # span 0: judge 1 puts it below: 0, at least 1; span 1: judge 0 puts it above: 1
    assert learned((0.5, 0.5), _spans(2), table, 0.1) == pytest.approx((0.5, 0.5))
    assert wins(table, (0, 1)) == (1, 1)


def test_shares_are_geometric_means_or_raw_logits() -> None:
    """Each judge's row sums to 1; raw logits are the authors' way, and turn round where they are negative."""
    better, worse = Score((-0.5, -0.7), (-1.0, -1.0), 2), Score((-2.0,), (-3.0,), 2)
    (row,) = shares(((better, worse),))
    assert row == pytest.approx(
        (math.exp(-0.6) / (math.exp(-0.6) + math.exp(-2)), math.exp(-2) / (math.exp(-0.6) + math.exp(-2)))
    )
    (faithful,) = shares(((better, worse),), faithful=True)
    assert faithful == pytest.approx((0.25, 0.75))


def test_fast_takes_the_first_that_ends() -> None:
    """With `fast` a member that ended its answer wins without a vote."""
    work = SpecFuse(fast=True).write(Task((0.5, 0.5), lambda head, tail: True))
    assert isinstance(next(work), Propose)
    first = _spans(2)
    ended = Span(1, b" end", True, first[1].score)
    assert work.send((first[0], ended)) == Commit(ended)


def test_a_segment_keeps_punctuation_and_drops_half_a_word() -> None:
    """What ends in a letter may go on, and is cut behind the last whole word; a sentence's end is kept."""
    asked = next(SpecFuse(window=3).write(Task((1.0,), lambda head, tail: True)))
    assert isinstance(asked, Propose)
    stop = asked.drafts[0].stop
    assert asked.drafts[0].tokens == 3
    assert stop(b" one tw", final=False) is None
    assert stop(b" one tw", final=True) == len(b" one")
    assert stop(b" one two.", final=True) == len(b" one two.")
    assert stop(b" onetw", final=True) == len(b" onetw")
    assert stop(" caf\u00e9".encode(), final=True) == len(" caf\u00e9".encode())


@pytest.mark.parametrize("options", [{"window": 0}, {"rate": -1}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    """A wrong option names the method."""
    with pytest.raises(SettingsError, match="specfuse"):
        SpecFuse(**options)  # type: ignore[arg-type]
