"""Assignments: the rules' limits, the integer programme's exactness, the greedy's bound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from outcomes.assignment import utility_choice
from outcomes.batch_assignment import (
    UNANSWERED,
    integer_choice,
    margin_choice,
    threshold_choice,
    upgrade_choice,
)
from protocol.errors import MethodError
from protocol.routing import Estimate

ROWS = np.arange(40)


def _estimate(n: int = 40, m: int = 4, seed: int = 0) -> Estimate:
    rng = np.random.default_rng(seed)
    cost = rng.uniform(0.5, 1.5, (n, m)) * np.geomspace(1e-6, 1e-3, m)
    return Estimate(tuple("abcd"[:m]), rng.random((n, m)), cost)


def _totals(estimate: Estimate, choice: np.ndarray) -> tuple[float, float]:
    answered = np.flatnonzero(choice != UNANSWERED)
    picked = answered, choice[answered]
    return float(estimate.quality[picked].sum()), float(estimate.cost_usd[picked].sum())


def test_margin_limits_and_monotonicity() -> None:
    """Tolerance 0 is the best model, ∞ the cheapest; cost never rises with it."""
    estimate = _estimate()
    assert np.array_equal(margin_choice(estimate, 0.0), utility_choice(estimate, 0.0))
    assert np.array_equal(margin_choice(estimate, np.inf), utility_choice(estimate, np.inf))
    costs = [_totals(estimate, margin_choice(estimate, t))[1] for t in (0, 0.05, 0.1, 0.3, 0.6, 1)]
    assert costs == sorted(costs, reverse=True)


def test_threshold_with_true_labels_is_the_cheapest_right_oracle() -> None:
    """Quality that is the label itself picks the cheapest right model; where none is, the fallback asked for."""
    estimate = _estimate()
    labels = (estimate.quality > 0.6).astype(float)
    sure = Estimate(estimate.models, labels, estimate.cost_usd)
    right = labels.any(axis=1)
    cheapest = np.where(labels > 0, estimate.cost_usd, np.inf).argmin(axis=1)
    for otherwise, fallback in (
        ("dearest", estimate.cost_usd.argmax(axis=1)),
        ("cheapest", estimate.cost_usd.argmin(axis=1)),
    ):
        choice = threshold_choice(sure, 0.5, otherwise=otherwise)
        assert np.array_equal(choice, np.where(right, cheapest, fallback))


def test_integer_programme_equals_brute_force() -> None:
    """On tiny batches the total quality under a budget is the best of all assignments, with and without skipping."""
    for seed in range(4):
        estimate = _estimate(4, 3, seed)
        budget = float(estimate.cost_usd.sum()) / 4
        for skip in (None, 0.0):
            options = range(3) if skip is None else (UNANSWERED, 0, 1, 2)
            totals = [_totals(estimate, np.array(choice)) for choice in itertools.product(options, repeat=4)]
            best = max(quality for quality, cost in totals if cost <= budget)
            found = integer_choice(estimate, budget_usd=budget, skip_penalty=skip)
            assert _totals(estimate, found)[0] == pytest.approx(best)
            assert _totals(estimate, found)[1] <= budget * (1 + 1e-6)


def test_budget_limits() -> None:
    """Without bound the programme is argmax; with nothing to spend all is unanswered, or an error."""
    estimate = _estimate()
    best = integer_choice(estimate, budget_usd=1e3)
    assert np.array_equal(best, estimate.quality.argmax(axis=1))
    assert (integer_choice(estimate, budget_usd=0.0, skip_penalty=0.0) == UNANSWERED).all()
    cheapest = float(estimate.cost_usd.min(axis=1).sum())
    assert np.array_equal(
        integer_choice(estimate, budget_usd=cheapest * (1 + 1e-9)), estimate.cost_usd.argmin(axis=1)
    )
    for assign in (upgrade_choice, lambda e, b: integer_choice(e, budget_usd=b)):
        with pytest.raises(MethodError):
            assign(estimate, cheapest * 0.9)


def test_lagrangian_sandwich() -> None:
    """The rule argmax(P − μc) that just fits is no better than the programme, which is no better than the dual
    bound, and all three are within one query's largest step."""
    estimate = _estimate(200)
    budget = 0.2 * float(estimate.cost_usd.max(axis=1).sum())
    value = _totals(estimate, integer_choice(estimate, budget_usd=budget, skip_penalty=0.0))[0]

    def at(mu: float) -> tuple[float, float, float]:
        net = np.concatenate([estimate.quality - mu * estimate.cost_usd, np.zeros((200, 1))], axis=1)
        choice = np.where(net.argmax(axis=1) == 4, UNANSWERED, net.argmax(axis=1))
        return *_totals(estimate, choice), float(net.max(axis=1).sum()) + mu * budget

    sweep = [at(mu) for mu in np.geomspace(1, 1e6, 4000)]
    lower = max(quality for quality, cost, _ in sweep if cost <= budget)
    upper = min(bound for *_, bound in sweep)
    assert lower - 1e-9 <= value <= upper + 1e-6
    assert upper - lower <= 1.0


def test_greedy_is_within_one_query_of_the_programme() -> None:
    """Upgrades along the hull never break the budget and lose at most one query's gain; more money never hurts."""
    estimate = _estimate(100)
    low, high = (float(getattr(estimate.cost_usd, f)(axis=1).sum()) for f in ("min", "max"))
    before = -1.0
    for share in (0, 0.05, 0.2, 0.5, 1):
        budget = low + share * (high - low)
        quality, cost = _totals(estimate, upgrade_choice(estimate, budget))
        exact = _totals(estimate, integer_choice(estimate, budget_usd=budget * (1 + 1e-12)))[0]
        assert cost <= budget * (1 + 1e-9)
        assert exact - 1.0 <= quality <= exact + 1e-6
        assert quality >= before
        before = quality
    assert np.array_equal(upgrade_choice(estimate, high), estimate.quality.argmax(axis=1))


def test_two_models_of_constant_price_are_a_sorted_prefix() -> None:
    """The programme then upgrades the queries of largest gain, as many as the money buys."""
    quality = np.random.default_rng(1).random((30, 2))
    estimate = Estimate(("a", "b"), quality, np.tile([1.0, 3.0], (30, 1)))
    choice = integer_choice(estimate, budget_usd=30 + 2 * 7)
    gain = quality[:, 1] - quality[:, 0]
    assert set(np.flatnonzero(choice)) == set(np.argsort(-gain)[:7])


def test_cheapest_for_a_target_and_the_trade_off() -> None:
    """A target quality is met at the least cost; α = 1 is the best model for each; exactly one aim may be named."""
    estimate = _estimate()
    choice = integer_choice(estimate, target_quality=0.7)
    quality, cost = _totals(estimate, choice)
    assert quality / 40 >= 0.7 - 1e-6
    assert _totals(estimate, integer_choice(estimate, budget_usd=cost * 0.98))[0] < 0.7 * 40
    assert np.array_equal(integer_choice(estimate, alpha=1.0), estimate.quality.argmax(axis=1))
    for aims in ({}, {"alpha": 0.5, "budget_usd": 1.0}):
        with pytest.raises(MethodError, match="one of"):
            integer_choice(estimate, **aims)


def test_unknown_quality_is_never_chosen() -> None:
    """By no rule."""
    estimate = _estimate()
    gaps = estimate.quality.copy()
    gaps[:, 0] = np.nan
    holed = Estimate(estimate.models, gaps, estimate.cost_usd)
    high = float(estimate.cost_usd.max(axis=1).sum())
    for choice in (
        margin_choice(holed, 10.0),
        threshold_choice(holed, 0.5, otherwise="cheapest"),
        upgrade_choice(holed, high),
        integer_choice(holed, budget_usd=high),
    ):
        assert (choice != 0).all()
