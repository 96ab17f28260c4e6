"""Ensemble-Hub's choice of segments and of members, and its ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ensembles.rewards import Panel
from ensembles.spans.base import Aside, Commit, Draft, Propose, Reading, Score, Span, Survey, Task, Writing
from ensembles.spans.ensemble_hub import (
    EnsembleHub,
    Reference,
    is_sound,
    load_references,
    picked,
    save_references,
)
from protocol.errors import ArtefactMismatch, MethodError, SettingsError
from tests.contracts.span_checks import ONE, THREE, TWO, Play

TASK = Task((0.5, 0.5), lambda head, tail: True, question="Why?")
SCORE = Score((-1.0,), (1.0,), 1)


def _marked(marker: str, text: str) -> float:
    return 0.9 if marker in text else 0.2


@pytest.mark.parametrize(("marker", "script"), [("purred", ONE), ("animal", TWO), ("who", THREE)])
def test_a_reward_that_loves_a_marker_gets_it(marker: str, script: bytes) -> None:
    """Whoever writes the marker is kept, wherever it stands in the order; the reward is shown the text so far."""
    shown: list[str] = []

    def reward(question: str, answers: Sequence[str]) -> list[float]:
        shown.extend(answers)
        return [_marked(marker, text) for text in answers]

    play = Play((ONE, TWO, THREE)).run(EnsembleHub(reward=reward))
    assert (play.text, play.ended) == (script, True)
    assert shown == [text.decode() for text in (ONE, TWO, THREE)]


def test_rounds_go_on_from_what_was_kept() -> None:
    """Later segments are judged behind the text that was kept."""
    shown: list[str] = []

    def reward(question: str, answers: Sequence[str]) -> list[float]:
        shown.extend(answers)
        return [0.5] * len(answers)

    Play((b"first line\nsecond line",)).run(EnsembleHub(segment=14, reward=reward))
    assert shown == ["first line\n", "first line\nsecond line"]


def _asked(method: EnsembleHub, spans: Sequence[Span], rounds: int = 50, task: Task = TASK) -> list[Any]:
    """What the method asks for where every round brings `spans`; to its end, or so many asks."""
    work, result, asked = method.write(task), None, []
    while len(asked) < rounds and (latest := _next(work, result)):
        asked.append(latest)
        result = None
        if isinstance(latest, Propose):
            result = tuple(spans)
        elif isinstance(latest, Aside):
            result = latest.call()
    return asked


def _next(work: Writing, result: Any) -> Any:
    """What the method asks for next; None at its end."""
    try:
        return work.send(result)
    except StopIteration:
        return None


def test_it_always_ends() -> None:
    """Rewards below the threshold, nothing but rubbish, or one segment for ever: a bounded number of rounds."""

    def never(question: str, answers: Sequence[str]) -> list[float]:
        return [0.0] * len(answers)

    def fresh() -> list[Span]:
        return [Span(m, b"some words of %d\n" % m, False, SCORE) for m in (0, 1)]

    # Nothing is good enough: each round is tried twice more, then the best is kept; the same thrice is the end.
    work, result, rounds, kept = EnsembleHub(retries=2, reward=never).write(TASK), None, 0, 0
    while asked := _next(work, result):
        result = None
        if isinstance(asked, Propose):
            rounds += 1
            result = tuple(replace(span, score=Score((-float(rounds),), (1.0,), 1)) for span in fresh())
        elif isinstance(asked, Aside):
            result = asked.call()
        else:
            kept += 1
    assert (rounds, kept) == (9, 3)
    rubbish = [Span(0, b"....\n", False, SCORE), Span(1, b"aaaaaaaaa\n", False, SCORE)]
    assert not [ask for ask in _asked(EnsembleHub(), rubbish) if isinstance(ask, Commit)]
    endless = _asked(EnsembleHub(rounds=5, repeats=100), fresh())
    assert sum(isinstance(ask, Commit) for ask in endless) == 5


def test_greedy_drafts_are_not_tried_again() -> None:
    """The same segments below the threshold twice: more rounds would bring the same."""
    spans = [Span(0, b"some words\n", False, SCORE)]
    asked = _asked(EnsembleHub(retries=50, repeats=1, reward=lambda q, a: [0.0] * len(a)), spans)
    assert sum(isinstance(ask, Propose) for ask in asked) == 2
    assert isinstance(asked[-1], Commit)


def test_segments_end_with_a_line() -> None:
    """A draft runs to its bound and is cut behind its last line, if it has one; it heeds stop strings."""
    asked = next(EnsembleHub(segment=7).write(TASK))
    assert isinstance(asked, Propose)
    (draft, _) = asked.drafts
    assert isinstance(draft, Draft)
    assert (draft.tokens, draft.temperature, draft.top_p, draft.stops) == (7, 0.95, 0.7, True)
    assert draft.stop(b"one\ntwo\nthr", final=False) is None
    assert draft.stop(b"one\ntwo\nthr", final=True) == 8
    assert draft.stop(b"one two", final=True) == 7


def test_rubbish_is_left_out() -> None:
    """Short, without a letter, of one or two characters, or with one five times in a row; an end may be short."""
    assert is_sound(b"The capital is Paris.\n")
    for rubbish in (b"  a\n", b"?!?!...,;", b"abababab", b"good loooooong", b"\n\n\n"):
        assert not is_sound(rubbish), rubbish
    short = [Span(0, b"No", True, SCORE), Span(1, b"No", False, SCORE)]
    asked = _asked(EnsembleHub(reward=lambda q, a: [0.5] * len(a)), short, 3)
    assert asked[-1] == Commit(short[0])


def _reading(perplexity: float, confidence: float) -> Reading:
    return Reading((-math.log(perplexity),), (confidence,))


def test_members_are_picked_as_by_hand() -> None:
    """The z of four members from recorded perplexities and confidences."""
    references = [
        Reference((10.0, 2.0), (0.5, 0.1)),
        Reference((20.0, 5.0), (0.6, 0.05)),
        Reference((8.0, 1.0), (0.4, 0.2)),
        Reference((12.0, 4.0), (0.5, 0.1)),
    ]
    readings = [_reading(11, 0.55), _reading(15, 0.62), _reading(9, 0.3), _reading(12, 0.45)]
    # z: (10-11)/2 + (.55-.5)/.1 = 0; (20-15)/5 + .02/.05 = 1.4; (8-9)/1 - .1/.2 = -1.5; 0 - .05/.1 = -0.5
    for reading, reference, z in zip(readings, references, (0.0, 1.4, -1.5, -0.5), strict=True):
        assert reference.z(reading) == pytest.approx(z)
    assert picked(readings, references, 2) == [0, 1]
    assert picked(readings, references, 1) == [1]
    # all find it harder than usual: one more
    hard = [_reading(11, 0.55), _reading(21, 0.62), _reading(9, 0.3), _reading(13, 0.45)]
    # z: 0; -0.2 + 0.4 = 0.2; -1.5; -0.25 - 0.5 = -0.75
    assert picked(hard, references, 2) == [0, 1, 3]


def test_only_picked_members_write() -> None:
    """The members are asked to read the question first; who is not picked never drafts."""
    references = (Reference((10.0, 1.0), (0.5, 0.1)), Reference((10.0, 1.0), (0.5, 0.1)))
    work = EnsembleHub(pick=1, references=references).write(TASK)
    assert next(work) == Survey((0, 1))
    asked = work.send((_reading(10.5, 0.5), _reading(9, 0.5)))
    assert isinstance(asked, Propose)
    assert [draft.member for draft in asked.drafts] == [1]


def test_statistics_of_a_set_of_questions(tmp_path: Path) -> None:
    """Mean and standard deviation by hand, through an artefact, by name; unknown members are refused."""
    first = [_reading(8, 0.4), _reading(12, 0.6)]
    second = [_reading(5, 0.9), _reading(5, 0.8)]
    assert Reference.of(first).perplexity == pytest.approx((10.0, 2 * math.sqrt(2)))
    save_references(tmp_path, {"a": first, "b": second}, "questions")
    b, a = load_references(tmp_path, ["b", "a"])
    assert a.confidence == pytest.approx((0.5, 0.1 * math.sqrt(2)))
    assert b.perplexity == pytest.approx((5.0, 0.0), abs=1e-12)
    assert b.z(_reading(7, 0.85)) == pytest.approx(0.0)  # what never varies says nothing
    with pytest.raises(MethodError, match="has no statistics of c"):
        load_references(tmp_path, ["a", "c"])
    with pytest.raises(ArtefactMismatch):
        EnsembleHub().load(["a"], {"reward": tmp_path})


def test_several_rewards_are_weighed() -> None:
    """A panel is the mean by weight; what is no number in [0, 1] for each answer is refused."""
    panel = Panel(((3.0, lambda q, a: [1.0] * len(a)), (1.0, lambda q, a: [0.2] * len(a))))
    assert panel("why", ["because", "so"]) == pytest.approx([0.8, 0.8])
    for wrong in ([1.5], [float("nan")], []):
        with pytest.raises(MethodError, match="process reward"):
            Panel(((1.0, lambda q, a, w=wrong: w),))("why", ["so"])


@pytest.mark.parametrize(
    "options",
    [{"segment": 0}, {"threshold": 2}, {"pick": 0}, {"scorers": {}}, {"scorers": {"a": 0}}, {"rounds": 0}],
)
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    """A wrong option names the method; so does a reward that is not there."""
    with pytest.raises(SettingsError, match="ensemble-hub"):
        EnsembleHub(**options)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="needs artefacts"):
        EnsembleHub().load(["a"], {})
