"""The deciding code, apart from models and tables."""

from __future__ import annotations

import math

import pytest

from cascades.base import Rule
from cascades.executor import Outcome, drive, returned


def walk(rule: Rule, *outcomes: Outcome) -> list[str]:
    """The verdicts of a cascade whose stages turn out as given."""
    return [step.verdict for step in drive(rule, lambda stage: outcomes[stage])]


def test_accepts_at_the_threshold() -> None:
    """A score equal to the threshold is good enough."""
    assert walk(Rule((-1.0,)), Outcome(True, -1.0)) == ["accepted"]


def test_defers_below_the_threshold() -> None:
    """A lower score asks the next stage, which is accepted unjudged."""
    assert walk(Rule((-1.0,)), Outcome(True, -1.1), Outcome(True)) == ["deferred", "accepted"]


def test_stops_at_the_first_accepted_stage() -> None:
    """Stages after an accepted one are not asked."""
    asked = []

    def answer(stage: int) -> Outcome:
        asked.append(stage)
        return Outcome(True, float(stage))

    steps = drive(Rule((1.0, 1.0, 1.0)), answer)
    assert asked == [0, 1]
    assert returned(steps) == 1


def test_unjudged_answers_defer() -> None:
    """An answer without a score is not accepted, even by an always-accepting threshold."""
    assert walk(Rule((-math.inf,)), Outcome(True, None), Outcome(True)) == ["unjudged", "accepted"]


def test_failed_stages_are_passed_over() -> None:
    """A stage that fails leads to the next one."""
    assert walk(Rule((0.0,)), Outcome(False), Outcome(True)) == ["failed", "accepted"]


def test_an_answer_in_hand_survives_a_failing_last_stage() -> None:
    """When the last stage fails, the last one that answered is returned."""
    steps = drive(Rule((0.0, 0.0)), lambda stage: Outcome(stage == 0, -1.0))
    assert [step.verdict for step in steps] == ["deferred", "failed", "failed"]
    assert returned(steps) == 0


def test_nothing_answered() -> None:
    """When every stage fails there is nothing to return."""
    assert returned(drive(Rule((0.0,)), lambda stage: Outcome(False))) is None


@pytest.mark.parametrize("thresholds", [(), (math.nan,)])
def test_rules_need_thresholds(thresholds: tuple[float, ...]) -> None:
    """A rule without thresholds, or with NaN, is refused."""
    with pytest.raises(ValueError, match="threshold"):
        Rule(thresholds)
