"""Every registered scorer passes the cascade contract, and every check catches the fault it is meant for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cascades.base import Rule, Shown
from cascades.simulator import Simulation, simulate
from cascades.token_uncertainty import TokenUncertainty
from protocol.methods import load_method, methods
from tests.contracts import scorer_checks as checks

CASES = [
    pytest.param(method, check, id=f"{method.id}-{check.__name__}")
    for method in methods("scorer")
    for check in checks.CHECKS
    if checks.NEEDS.get(check) in (None, *method.needs)
]


@pytest.mark.parametrize(("method", "check"), CASES)
def test_scorer_contract(method, check) -> None:
    """A registered scorer, and a cascade with it, keep the law."""
    check(load_method(method), simulate)


class _TiresOfLooking(TokenUncertainty):
    looks = 0

    def score(self, shown: Shown) -> float | None:
        self.looks += 1
        return (super().score(shown) or 0.0) - self.looks


class _ForgetsParameters(TokenUncertainty):
    def __init__(self, variant: Any = "chow-sum", alpha: float = 0.0) -> None:
        super().__init__(variant, alpha)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"variant": "chow-average"}


class _TrustsSilence(TokenUncertainty):
    def score(self, shown: Shown) -> float | None:
        return super().score(shown) or 0.0


class _DividesByNothing(TokenUncertainty):
    def score(self, shown: Shown) -> float | None:
        return float("nan") if len(shown.logprobs) == 1 else super().score(shown)


class _LikesDoubt(TokenUncertainty):
    def score(self, shown: Shown) -> float | None:
        found = super().score(shown)
        return None if found is None else -found


def _paid_last_only(rule: Rule, scores: Any, quality: Any, cost: Any, judges: Any = None) -> Simulation:
    done = simulate(rule, scores, quality, cost, judges)
    return replace(done, cost_usd=cost[np.arange(len(cost)), done.stage])


def _judges_for_free(rule: Rule, scores: Any, quality: Any, cost: Any, judges: Any = None) -> Simulation:
    return simulate(rule, scores, quality, cost)


def _never_accepts_stage_one(
    rule: Rule, scores: Any, quality: Any, cost: Any, judges: Any = None
) -> Simulation:
    return simulate(Rule((np.inf, *rule.thresholds[1:])), scores, quality, cost, judges)


def _accepts_low_scores(rule: Rule, scores: Any, quality: Any, cost: Any, judges: Any = None) -> Simulation:
    turned = Rule(tuple(-threshold if np.isfinite(threshold) else threshold for threshold in rule.thresholds))
    return simulate(turned, -scores, quality, cost, judges)


def _keeps_the_best(rule: Rule, scores: Any, quality: Any, cost: Any, judges: Any = None) -> Simulation:
    return replace(simulate(rule, scores, quality, cost, judges), quality=quality.max(axis=1))


def _clips(rule: Rule, scores: Any, quality: Any, cost: Any, judges: Any = None) -> Simulation:
    return simulate(rule, np.clip(scores, -1, 0), quality, cost, judges)


BROKEN = [
    (checks.check_same_answer_same_score, _TiresOfLooking, simulate),
    (checks.check_parameters_rebuild, _ForgetsParameters, simulate),
    (checks.check_nothing_shown_is_unjudged, _TrustsSilence, simulate),
    (checks.check_scores_are_numbers, _DividesByNothing, simulate),
    (checks.check_surer_is_higher, _LikesDoubt, simulate),
    (checks.check_accept_always_is_stage_one, TokenUncertainty, _never_accepts_stage_one),
    (checks.check_accept_never_is_the_last_at_summed_cost, TokenUncertainty, _paid_last_only),
    (checks.check_every_call_is_paid, TokenUncertainty, _judges_for_free),
    (checks.check_higher_threshold_defers_more, TokenUncertainty, _accepts_low_scores),
    (checks.check_oracle_bounds, TokenUncertainty, _keeps_the_best),
    (checks.check_monotone_change_changes_nothing, TokenUncertainty, _clips),
]


@pytest.mark.parametrize(("check", "make", "run"), BROKEN, ids=lambda part: part.__name__)
def test_checks_bite(check, make, run) -> None:
    """A scorer or simulator broken on purpose is caught by the check meant for it."""
    with pytest.raises((AssertionError, ValueError, TypeError)):
        check(make, run)


def test_every_check_is_proven() -> None:
    """No check is without a broken example."""
    assert {check for check, _, _ in BROKEN} == set(checks.CHECKS)
