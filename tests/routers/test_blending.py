"""blending: its draws, and what a blended conversation sends."""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2_contingency, chisquare

from protocol.routing import Queries
from routers.blending import Blending
from routers.policy import Utility
from tests.routers.recorded import random_table, realised

TURNS = Queries([f"turn {i}" for i in range(6000)])


def test_draws_are_uniform_and_independent() -> None:
    """Each model is drawn a third of the time, whatever was drawn before, and with one model gone the others half each
    (chi-square at the 0.1 % level)."""
    router = Blending().fit(random_table())
    estimate = router.estimate(TURNS)
    drawn = Utility().choose(estimate)
    assert chisquare(np.bincount(drawn, minlength=3)).pvalue > 0.001
    table = np.zeros((3, 3))
    np.add.at(table, (drawn[:-1], drawn[1:]), 1)
    assert chi2_contingency(table).pvalue > 0.001
    left = estimate.quality[:, :2].argmax(axis=1)
    assert chisquare(np.bincount(left, minlength=2)).pvalue > 0.001


def test_a_retry_keeps_its_model_and_a_seed_changes_it() -> None:
    """The same turn is drawn the same model each time; another seed draws another sequence."""
    first, again, other = (Blending(seed=s).fit(random_table()).estimate(TURNS).quality for s in (0, 0, 1))
    assert np.array_equal(first, again)
    assert (first.argmax(axis=1) == other.argmax(axis=1)).mean() < 0.4


def test_one_model_is_plain_serving() -> None:
    """There is nobody else to draw."""
    table = random_table(m=1)
    assert set(Utility().choose(Blending().fit(table).estimate(table.queries))) == {0}


def test_score_is_the_mean_of_the_models() -> None:
    """On single turns, within three standard errors."""
    table = random_table(5000)
    error = table.score.std() / len(table) ** 0.5
    assert abs(realised(Blending().fit(table), table) - table.score.mean()) < 3 * error
