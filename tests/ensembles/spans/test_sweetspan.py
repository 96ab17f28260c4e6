"""SweetSpan: its filter, and where it is another method."""

from __future__ import annotations

import pytest

from ensembles.spans.base import Score, words
from ensembles.spans.cool_fusion import CoolFusion
from ensembles.spans.sweetspan import SweetSpan, steady
from protocol.errors import SettingsError
from tests.contracts.span_checks import ONE, THREE, TWO, Play


def test_one_word_without_a_filter_is_cool_fusion() -> None:
    """With n = 1 and no filter every span kept is that of cool-fusion's shortest mode."""
    for scripts in ((ONE, TWO), (ONE, TWO, THREE), (THREE, ONE)):
        sweet = Play(scripts).run(SweetSpan(words=1, filter=False, tokens=32))
        cool = Play(scripts).run(CoolFusion("shortest"))
        assert sweet.committed == cool.committed
        assert sweet.judged == cool.judged


def _rows(*swings: float) -> tuple[tuple[Score, ...], ...]:
    return tuple(tuple(Score((-1.0 - s * sign,), (0.0,), 3) for sign in (-1, 1)) for s in swings)


def test_the_filter_leaves_out_who_swings() -> None:
    """Of several evaluators the one that stands out goes; of two nobody, and of equal ones nobody."""
    assert steady(_rows(0.2, 0.3, 0.25, 0.9)) == {0, 1, 2}
    assert steady(_rows(0.2, 0.9)) == {0, 1}
    assert steady(_rows(0.4, 0.4, 0.4)) == {0, 1, 2}


def test_a_span_is_whole_words() -> None:
    """Complete when white space follows the n-th word; a bound cuts behind a whole word."""
    stop = words(2)
    assert stop(b" one two", final=False) is None
    assert stop(b" one two three", final=False) == len(b" one two")
    assert stop(b"\n\n one\n\ntwo\n", final=False) == len(b"\n\n one\n\ntwo")
    assert stop(b" one tw", final=True) == len(b" one")
    assert stop(b" onetw", final=True) == len(b" onetw")


def test_wrong_options_are_refused() -> None:
    """A span has at least one word."""
    with pytest.raises(SettingsError, match="words"):
        SweetSpan(words=0)
