"""homorouter: its loss, what the pairwise term is for, and its assignments' limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from outcomes.table import OutcomeTable
from routers.homorouter import HomoRouter, gradient
from routers.policy import Budget, Margin, Utility
from tests.routers.recorded import topical_table, unit


def test_gradient_is_the_derivative() -> None:
    """Of mean squared error plus β times the mean squared error of all pairwise differences, gaps left out."""
    rng = np.random.default_rng(0)
    estimated, score = rng.normal(size=(4, 5)), rng.random((4, 5))
    score[0, 2] = score[1, :3] = np.nan

    def loss(row: int) -> float:
        known = np.flatnonzero(~np.isnan(score[row]))
        error = (estimated[row] - score[row])[known]
        pairs = [(error[j] - error[k]) ** 2 for j in range(len(known)) for k in range(j)]
        return float((error**2).mean() + 0.7 * np.mean(pairs))

    found = gradient(estimated, score, 0.7)
    for at in np.ndindex(estimated.shape):
        kept, losses = estimated[at], []
        for sign in (1, -1):
            estimated[at] = kept + sign * 1e-6
            losses.append(loss(at[0]))
        estimated[at] = kept
        assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(found[at], abs=1e-6)


def test_differences_are_learnt() -> None:
    """Queries differ much in difficulty, tools little: with the pairwise term the estimated order of tools agrees
    better with the true one on held-out queries than with squared error alone."""

    def table(seed: int) -> tuple[OutcomeTable, np.ndarray]:
        rng = np.random.default_rng(seed)
        vectors = unit(rng.normal(size=(500, 12)))
        taste = np.random.default_rng(7).normal(size=(12, 4))
        skill = 0.15 * vectors @ taste
        difficulty = rng.uniform(-0.35, 0.35, (500, 1))
        score = np.clip(0.5 + difficulty + skill + 0.05 * rng.normal(size=(500, 4)), 0, 1)
        return OutcomeTable.of_matrices(
            list("abcd"), [f"{seed} {i}" for i in range(500)], score, embeddings=vectors
        ), skill

    (train, _), (test, skill) = table(0), table(1)

    def agreement(beta: float) -> float:
        quality = HomoRouter(beta=beta, epochs=15).fit(train).estimate(test.queries).quality
        pairs = zip(rankdata(quality, axis=1), rankdata(skill, axis=1), strict=True)
        return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs if np.ptp(a)]))

    plain, pairwise = agreement(0.0), agreement(3.0)
    print(f"mean rank correlation per query: {plain:.3f} by squared error, {pairwise:.3f} with differences")
    assert pairwise > plain


def test_assignment_limits() -> None:
    """Money without end is argmax, just enough the cheapest; tolerance 0 and ∞ likewise; cost falls in between."""
    train, test = topical_table(), topical_table(80, seed=1)
    estimate = HomoRouter().fit(train).estimate(test.queries)
    best, cheapest = Utility().choose(estimate), Utility(float("inf")).choose(estimate)
    low = float(estimate.cost_usd.min())
    for exact in (True, False):
        assert np.array_equal(Budget(1.0, exact).choose(estimate), best)
        assert np.array_equal(Budget(low * (1 + 1e-9), exact).choose(estimate), cheapest)
    assert np.array_equal(Margin(0.0).choose(estimate), best)
    assert np.array_equal(Margin(float("inf")).choose(estimate), cheapest)
    rows = np.arange(len(test))
    costs = [estimate.cost_usd[rows, Margin(t).choose(estimate)].sum() for t in (0, 0.1, 0.3, 0.6, 1)]
    assert costs == sorted(costs, reverse=True)
