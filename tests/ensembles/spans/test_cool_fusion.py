"""Cool-Fusion's choice and its segments."""

from __future__ import annotations

import pytest

from ensembles.spans.base import Commit, Judge, Propose, Score, Span, Task
from ensembles.spans.cool_fusion import CoolFusion
from protocol.errors import SettingsError


def _score(*logprobs: float, size: int = 4) -> Score:
    return Score(logprobs, logprobs, size)


def test_the_lowest_average_perplexity_is_kept() -> None:
    """Perplexities, not log-likelihoods, are averaged: one judge's horror outweighs another's mild liking."""
    work = CoolFusion().write(Task((0.5, 0.5), lambda head, tail: True))
    assert isinstance(next(work), Propose)
    spans = (Span(0, b" yes", False, _score(-0.1)), Span(1, b" no", False, _score(-2.0)))
    asked = work.send(spans)
    assert isinstance(asked, Judge)
    assert [(ask.member, ask.text) for ask in asked.asks] == [(0, b" no"), (1, b" yes")]
    # mean log-likelihoods: yes -2.05, no -2.1; perplexities: (e^0.1 + e^4) / 2 against (e^2.2 + e^2) / 2
    assert work.send((_score(-2.2), _score(-4.0))) == Commit(spans[1])


def test_who_has_no_weight_is_not_heard() -> None:
    """A judge of weight nought decides nothing, even where its perplexity overflows."""
    work = CoolFusion().write(Task((1.0, 0.0), lambda head, tail: True))
    next(work)
    spans = (Span(0, b" yes", False, _score(-2.0)), Span(1, b" no", False, _score(-0.1)))
    work.send(spans)
    assert work.send((_score(-1.0), _score(-800.0))) == Commit(spans[1])


def test_per_byte_measures_no_tokens() -> None:
    """With `measure: byte` a text of the same likelihood costs the same in one token or in four."""
    work = CoolFusion(measure="byte").write(Task((0.5, 0.5), lambda head, tail: True))
    next(work)
    spans = (
        Span(0, b" four", False, _score(-1.0, -1.0, -1.0, -1.0, size=5)),
        Span(1, b" five", False, _score(-4.1, size=5)),
    )
    work.send(spans)
    assert work.send((_score(-4.1, size=5), _score(-1.0, -1.0, -1.0, -1.0, size=5))) == Commit(spans[0])


def test_an_aligned_segment_waits_for_all_tokenizers() -> None:
    """A word's end that some member would not split at is passed over; without one the bound cuts at a word."""
    task = Task((1.0,), lambda head, tail: not head.endswith(b"one"))
    drafts = next(CoolFusion().write(task))
    assert isinstance(drafts, Propose)
    stop = drafts.drafts[0].stop
    assert stop(b" one", final=False) is None
    assert stop(b" one two", final=False) is None
    assert stop(b" one two t", final=False) == len(b" one two")
    assert stop(b" one tw", final=True) == len(b" one")
    assert stop("東京".encode(), final=True) == 6
    shortest = next(CoolFusion("shortest").write(task))
    assert isinstance(shortest, Propose)
    assert shortest.drafts[0].stop(b" one t", final=False) == len(b" one")


@pytest.mark.parametrize("options", [{"boundary": "loose"}, {"measure": "word"}, {"tokens": 0}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    """A wrong option names the method and what it takes."""
    with pytest.raises(SettingsError, match="cool-fusion"):
        CoolFusion(**options)  # type: ignore[arg-type]
