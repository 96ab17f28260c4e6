"""Every registered aggregator passes its contract, and every check catches the fault it is meant for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ensembles.answers.agent_forest import AgentForest
from ensembles.answers.base import Candidate, Combined, Slot
from protocol.chat import ChatRequest
from protocol.methods import load_method, methods
from tests.contracts import aggregator_checks as checks

CASES = [
    pytest.param(method, check, id=f"{method.id}-{check.__name__}")
    for method in methods("aggregator")
    for check in checks.CHECKS
]


@pytest.mark.parametrize(("method", "check"), CASES)
def test_aggregator_contract(method, check) -> None:
    """A registered aggregator keeps the law."""
    check(load_method(method))


class _ForgetsOneMember(AgentForest):
    def slots(self, request: ChatRequest) -> list[Slot]:
        return super().slots(request)[1:]


class _CountsItsCalls(AgentForest):
    calls = 0

    def slots(self, request: ChatRequest) -> list[Slot]:
        self.calls += 1
        return super().slots(request) * self.calls


class _SharesTheSeed(AgentForest):
    def slots(self, request: ChatRequest) -> list[Slot]:
        return [Slot(slot.member, {**slot.fields, "seed": 1}) for slot in super().slots(request)]


class _InsistsOnHeat(AgentForest):
    def slots(self, request: ChatRequest) -> list[Slot]:
        return [Slot(slot.member, {**slot.fields, "temperature": 1}) for slot in super().slots(request)]


class _DropsChoices(AgentForest):
    def slots(self, request: ChatRequest) -> list[Slot]:
        return super().slots(request.changed(n=None))


class _Broken(AgentForest):
    """A sound vote to break: what a subclass makes of the result is its one fault."""

    def combine(self, request: ChatRequest, candidates: Sequence[Candidate]) -> Combined:
        return self.spoil(super().combine(request, candidates), candidates)

    def spoil(self, combined: Combined, candidates: Sequence[Candidate]) -> Combined:
        return combined


class _WantsCompany(_Broken):
    def spoil(self, combined: Combined, candidates: Sequence[Candidate]) -> Combined:
        return replace(combined, index=len(candidates) if len(candidates) == 1 else combined.index)


class _TakesTheLast(_Broken):
    def spoil(self, combined: Combined, candidates: Sequence[Candidate]) -> Combined:
        best = max((s for s in combined.scores if s is not None), default=None)
        return replace(combined, index=max(i for i, s in enumerate(combined.scores) if s == best))


class _FavoursTheFirst(_Broken):
    def spoil(self, combined: Combined, candidates: Sequence[Candidate]) -> Combined:
        first, *rest = combined.scores
        return replace(combined, scores=(None if first is None else first + 0.5, *rest))


class _CountsAbstentions(_Broken):
    def spoil(self, combined: Combined, candidates: Sequence[Candidate]) -> Combined:
        keys = [key or "?" for key in combined.keys]
        votes = {key: float(keys.count(key)) for key in keys}
        scores = tuple(votes[key] for key in keys)
        return replace(combined, scores=scores, votes=votes, index=scores.index(max(scores)))


class _LosesAScore(_Broken):
    def spoil(self, combined: Combined, candidates: Sequence[Candidate]) -> Combined:
        return replace(combined, scores=combined.scores[:-1])


class _Unbounded(AgentForest):
    def __init__(self, members: Sequence[str], samples: int = 2) -> None:
        super().__init__(members or ("a",), min(samples, 2))


BROKEN = [
    (checks.check_slots_ask_every_member, _ForgetsOneMember),
    (checks.check_slots_are_pure, _CountsItsCalls),
    (checks.check_seeds_differ, _SharesTheSeed),
    (checks.check_caller_keeps_sampling, _InsistsOnHeat),
    (checks.check_several_choices_are_not_dropped, _DropsChoices),
    (checks.check_one_candidate_wins, _WantsCompany),
    (checks.check_unanimity_wins, _TakesTheLast),
    (checks.check_permuting_permutes_scores, _FavoursTheFirst),
    (checks.check_ties_take_the_first, _TakesTheLast),
    (checks.check_abstention_is_no_class, _CountsAbstentions),
    (checks.check_result_fits, _LosesAScore),
    (checks.check_bounded, _Unbounded),
]


@pytest.mark.parametrize(("check", "make"), BROKEN, ids=lambda part: part.__name__)
def test_checks_bite(check, make) -> None:
    """An aggregator broken on purpose is caught by the check meant for it."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(make)


def test_every_check_is_proven() -> None:
    """No check is without a broken example."""
    assert {check for check, _ in BROKEN} == set(checks.CHECKS)
