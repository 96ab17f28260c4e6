"""Cascades over recorded outcomes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cascades.base import Rule
from cascades.simulator import means, simulate

QUALITY = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
COST = np.array([[1.0, 10.0]] * 4)
SCORES = np.array([[-0.1], [-2.0], [-1.0], [np.nan]])


def test_runs_each_query() -> None:
    """Accepted queries keep the first answer at its cost, deferred and unjudged ones pay for both."""
    done = simulate(Rule((-1.0,)), SCORES, QUALITY, COST)
    assert done.chains == ((0,), (0, 1), (0,), (0, 1))
    assert done.stage.tolist() == [0, 1, 0, 1]
    assert done.quality.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert done.cost_usd.tolist() == [1.0, 11.0, 1.0, 11.0]
    assert done.deferred(0) == 0.5


def test_random_scorer_lies_on_the_line() -> None:
    """A scorer that knows nothing gives, at every share deferred, the mix of both ends."""
    rng = np.random.default_rng(0)
    n = 4_000
    quality = np.stack([rng.random(n) < 0.4, rng.random(n) < 0.7], axis=1).astype(float)
    scores = rng.random((n, 1))
    for threshold in (0.25, 0.5, 0.75):
        done = simulate(Rule((threshold,)), scores, quality, np.ones((n, 2)))
        share = done.deferred(0)
        line = (1 - share) * quality[:, 0].mean() + share * quality[:, 1].mean()
        assert done.quality.mean() == pytest.approx(line, abs=0.02)


def test_the_fast_twin_is_equal() -> None:
    """`means` is what `simulate` gives, for any thresholds, unjudged answers included."""
    rng = np.random.default_rng(0)
    for stages in (2, 3, 4):
        scores = rng.normal(size=(50, stages - 1))
        scores[rng.random(scores.shape) < 0.1] = np.nan
        quality, cost = rng.random((50, stages)), rng.random((50, stages))
        for thresholds in [
            (-math.inf,) * (stages - 1),
            (math.inf,) * (stages - 1),
            *rng.normal(size=(8, stages - 1)),
        ]:
            rule = Rule(tuple(map(float, thresholds)))
            done = simulate(rule, scores, quality, cost)
            assert means(rule, scores, quality, cost) == pytest.approx(
                (done.quality.mean(), done.cost_usd.mean())
            )


def test_judges_are_paid_and_shown() -> None:
    """A scorer's own cost is part of the sum and a line of its own; it is not asked about the last stage."""
    done = simulate(Rule((-1.0,)), SCORES, QUALITY, COST, np.full((4, 1), 0.5))
    assert done.cost_usd.tolist() == [1.5, 11.5, 1.5, 11.5]
    assert done.judge_usd.tolist() == [0.5] * 4


def test_failed_stages() -> None:
    """A stage without an outcome failed: the next is asked; an answer in hand survives."""
    quality = np.array([[np.nan, 1.0], [1.0, np.nan], [np.nan, np.nan]])
    done = simulate(
        Rule((math.inf,)), np.zeros((3, 1)), quality, np.array([[1.0, 2.0], [1.0, np.nan], [np.nan] * 2])
    )
    assert done.stage.tolist() == [1, 0, -1]
    assert done.quality.tolist() == [1.0, 1.0, 0.0]
    assert done.cost_usd.tolist() == [3.0, 1.0, 0.0]


def test_shapes_must_agree() -> None:
    """A rule for three stages does not run on a table of two."""
    with pytest.raises(ValueError, match="3 stages"):
        simulate(Rule((0.0, 0.0)), SCORES, QUALITY, COST)
