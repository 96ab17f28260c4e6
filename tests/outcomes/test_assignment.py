"""From estimates to choices: utility and the quality knob."""

from __future__ import annotations

import math

import numpy as np
import pytest

from outcomes.assignment import Knob, calibrate_knob, utility_choice
from protocol.routing import Estimate


def _estimate(n: int = 300, seed: int = 0) -> Estimate:
    rng = np.random.default_rng(seed)
    return Estimate(("a", "b", "c"), rng.random((n, 3)), rng.uniform(0.8, 1.2, (n, 3)) * [1e-6, 3e-6, 9e-6])


def _spent(estimate: Estimate, lam: float) -> float:
    return float(estimate.cost_usd[np.arange(len(estimate.quality)), utility_choice(estimate, lam)].mean())


def test_ends_of_lambda_are_best_and_cheapest() -> None:
    """λ = 0 takes the best model of each query whatever it costs, λ = ∞ the cheapest."""
    estimate = _estimate()
    assert np.array_equal(utility_choice(estimate, 0.0), estimate.quality.argmax(axis=1))
    assert np.array_equal(utility_choice(estimate, math.inf), estimate.cost_usd.argmin(axis=1))


@pytest.mark.parametrize("lam", [0.0, 1e5, math.inf])
def test_ties_never_favour_the_first_listed(lam: float) -> None:
    """Of equal models the same one is chosen in whatever order they are listed."""
    estimate = Estimate(("b", "a", "c"), np.array([[0.5, 0.5, 0.5]]), np.full((1, 3), 2e-6))
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        listed = tuple(estimate.models[i] for i in order)
        permuted = Estimate(listed, estimate.quality[:, order], estimate.cost_usd[:, order])
        assert listed[int(utility_choice(permuted, lam)[0])] == "a"


def test_of_equally_good_models_the_cheaper_answers() -> None:
    """Quality that differs by rounding only is no reason to pay more."""
    estimate = Estimate(("a", "b"), np.array([[0.5 + 1e-13, 0.5]]), np.array([[2e-6, 1e-6]]))
    assert utility_choice(estimate, 0.0)[0] == 1


@pytest.mark.parametrize("lam", [0.0, 1e5, math.inf])
def test_unknown_quality_is_never_chosen(lam: float) -> None:
    """A model nobody measured is not taken, not even as the cheapest."""
    estimate = Estimate(("a", "b"), np.array([[np.nan, 0.1]]), np.array([[1e-6, 9e-6]]))
    assert utility_choice(estimate, lam)[0] == 1


def test_unknown_cost_counts_as_the_dearest() -> None:
    """A model of unknown price is no bargain; with no price known at all, quality decides."""
    estimate = Estimate(("a", "b", "c"), np.array([[0.5, 0.6, 0.5]]), np.array([[np.nan, 9e-6, 8e-6]]))
    assert utility_choice(estimate, math.inf)[0] == 2
    assert utility_choice(estimate, 1.0)[0] == 1
    blank = Estimate(("a", "b"), np.array([[0.4, 0.5]]), np.full((1, 2), np.nan))
    assert utility_choice(blank, 1e6)[0] == 1


def test_knob_spends_the_share_it_says() -> None:
    """Level x spends x of the money between the cheapest and the best, and more never costs less."""
    estimate = _estimate()
    knob = calibrate_knob(estimate)
    low, high = _spent(estimate, math.inf), _spent(estimate, 0.0)
    spent = [_spent(estimate, knob.lam(x)) for x in np.linspace(0, 1, 21)]
    assert spent == sorted(spent)
    assert np.allclose((np.array(spent) - low) / (high - low), np.linspace(0, 1, 21), atol=0.06)


def test_knob_round_trip_and_refusals() -> None:
    """A knob is read back from its JSON form; one that is not monotone or not finite is refused."""
    knob = calibrate_knob(_estimate())
    assert Knob.parse(knob.wire()) == knob
    for levels, lams in (
        ([], []),
        ([0.5, 0.4], [1, 2]),
        ([0.5], [math.inf]),
        ([0.5], [0]),
        ([0.5, 0.6], [1]),
    ):
        with pytest.raises(ValueError):
            Knob.parse({"levels": levels, "lams": lams})


@pytest.mark.parametrize("cost", [np.full((4, 2), np.nan), np.full((4, 2), 3e-6), np.zeros((4, 2))])
def test_knob_without_price_differences_still_works(cost: np.ndarray) -> None:
    """Where costs are unknown or all alike the knob is finite and quality decides."""
    quality = np.array([[0.2, 0.8], [0.9, 0.1], [0.5, 0.6], [1.0, 0.0]])
    estimate = Estimate(("a", "b"), quality, cost)
    choice = utility_choice(estimate, calibrate_knob(estimate).lam(0.5))
    assert choice.tolist() == [1, 0, 1, 0]
