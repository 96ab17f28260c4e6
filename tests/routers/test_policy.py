"""Policies: utility and RouteLLM's threshold."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.assignment import calibrate_threshold
from protocol.errors import MethodError
from protocol.routing import Estimate
from routers.policy import Threshold, Utility


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
