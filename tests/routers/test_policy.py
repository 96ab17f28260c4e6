"""Policies: utility and RouteLLM's threshold."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.assignment import Knob, calibrate_knob, calibrate_threshold
from protocol.errors import MethodError
from protocol.routing import Estimate
from routers.policy import Paced, Pacing, Threshold, Utility


def _estimate(n: int = 300, seed: int = 0) -> Estimate:
    rng = np.random.default_rng(seed)
    return Estimate(("a", "b", "c"), rng.random((n, 3)), rng.uniform(0.8, 1.2, (n, 3)) * [1e-6, 3e-6, 9e-6])


def test_utility_trades_quality_for_money() -> None:
    """A lead in quality is worth paying for until λ times the price exceeds it."""
    estimate = Estimate(("cheap", "dear"), np.array([[0.5, 0.8]]), np.array([[1e-6, 4e-6]]))
    assert Utility(0.99e5).choose(estimate)[0] == 1
    assert Utility(1.01e5).choose(estimate)[0] == 0


def test_threshold_sends_the_share_it_was_calibrated_to() -> None:
    """α calibrated for a share sends that share of the same traffic to the strong model, up to ties."""
    estimate = _estimate(1000)
    policy = Threshold("c", "a", 0.0)
    for share in (0.0, 0.1, 0.5, 1.0):
        alpha = calibrate_threshold(policy.lead(estimate), share)
        chosen = Threshold("c", "a", alpha).choose(estimate)
        assert set(chosen) <= {0, 2}
        assert (chosen == 2).mean() == pytest.approx(share, abs=0.002)


def test_threshold_is_not_strict() -> None:
    """A lead that equals α goes to the strong model (RouteLLM)."""
    estimate = Estimate(("a", "b"), np.array([[0.5, 0.75]]), np.ones((1, 2)))
    assert Threshold("b", "a", 0.25).choose(estimate)[0] == 1
    assert Threshold("b", "a", 0.2500001).choose(estimate)[0] == 0


def test_threshold_names_a_missing_model() -> None:
    """A model that the router does not estimate is a `MethodError`."""
    with pytest.raises(MethodError, match="'x'"):
        Threshold("x", "a", 0.5).choose(_estimate(1))


def test_threshold_where_one_is_no_candidate() -> None:
    """Of the pair, the one that something is known of."""
    nan = np.nan
    quality = np.array([[nan, 0.2, 0.9], [0.2, 0.9, nan]])
    assert Threshold("c", "a", 0.0).choose(Estimate(("a", "b", "c"), quality, np.ones((2, 3)))).tolist() == [
        2,
        0,
    ]


@pytest.mark.parametrize("between", [0.2, 0.5, 0.8])
def test_a_paced_budget_is_held(between: float) -> None:
    """While the knob stays off its ends, the mean cost differs from the budget by no more than window/T of it,
    and more of the budget buys more quality than choosing by chance would."""
    estimate = _estimate(3000)
    rows, knob = np.arange(3000), calibrate_knob(_estimate(500, seed=1))
    cheap, best = (
        estimate.cost_usd[rows, Utility(lam).choose(estimate)].mean() for lam in (float("inf"), 0.0)
    )
    budget = cheap + between * (best - cheap)
    choice = Paced(knob, budget, window=50).choose(estimate)
    assert estimate.cost_usd[rows, choice].mean() == pytest.approx(budget, rel=50 / 3000)
    bought = estimate.quality[rows, choice].mean() - estimate.quality[:, 0].mean()
    assert bought > 1.1 * between * (estimate.quality.max(axis=1).mean() - estimate.quality[:, 0].mean())


def test_pacing_follows_any_traffic() -> None:
    """Costs that an adversary picks by the level are paced as well, as long as the knob moves them at all; at its ends
    it stays, and what was saved there is not carried on."""
    pacing, spent = Pacing(1.0, 20, 0.5), 0.0
    for turn in range(1000):
        cost = (3.0 if turn % 7 else 0.2) if pacing.level > 0.5 else 0.1
        spent += cost
        pacing.spent(cost)
        assert 0 < pacing.level < 1
    assert spent / 1000 == pytest.approx(1.0, abs=20 / 1000)
    for _ in range(100):
        pacing.spent(0.0)
    assert pacing.level == 1
    pacing.spent(11.0)
    assert pacing.level == 0.5
    pacing.spent(1000.0)
    assert pacing.level == 0


def test_paced_where_costs_are_unknown() -> None:
    """A query whose cost nobody knows moves nothing."""
    estimate = Estimate(("a", "b"), np.array([[0.1, 0.9]] * 5), np.full((5, 2), np.nan))
    assert Paced(Knob((0.5,), (1.0,)), 1e-6, window=1, start=1.0).choose(estimate).tolist() == [1] * 5
