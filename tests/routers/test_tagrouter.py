"""tagrouter: its table's independence, its limit, its decider, and its level on a recorded table."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.table import OutcomeTable
from routers.policy import Utility
from routers.tagrouter import TagRouter, compared
from tests.routers.recorded import random_table, realised, topical_table


def test_adding_a_model_changes_no_other_row() -> None:
    """The table of the others is the same with and without a further model, as long as the reference is."""
    table = random_table(m=4)
    table.score[:, 3] = 1.0  # the reference, with and without m1
    fewer = table.only(("m0", "m2", "m3"))
    whole, part = TagRouter().fit(table), TagRouter().fit(fewer)
    assert np.allclose(whole.table_[:, [0, 2, 3]], part.table_)


def test_comparisons() -> None:
    """Win 1, tie s_tie, loss −1, unknown where either is."""
    score = np.array([[1.0, 0.0, 0.5], [0.5, 0.5, np.nan], [np.nan, 1.0, 1.0]])
    found = compared(score, 0, 0.15)
    assert np.array_equal(found[0], [0.15, -1, -1])
    assert np.array_equal(found[1], [0.15, 0.15, np.nan], equal_nan=True)
    assert np.isnan(found[2]).all()


def test_universal_tag_is_the_best_by_win_rate() -> None:
    """With one category and one cluster the choice is the model of best mean comparison with the reference."""
    table = random_table(categories=1)
    router = TagRouter(tags=1, support=0.0).fit(table)
    rates = np.nanmean(compared(table.score, router.reference_, 0.15), axis=0)
    assert set(Utility().choose(router.estimate(table.queries))) == {int(rates.argmax())}


def test_the_reference_is_the_strongest() -> None:
    """By mean score."""
    table = random_table()
    assert TagRouter().fit(table).reference_ == int(table.score.mean(axis=0).argmax())


def test_cost_falls_with_theta() -> None:
    """θ = −∞ is argmax; mean cost never rises with θ; θ = ∞ never asks the reference where a cheaper one is."""
    table = random_table(300)
    table.score[:, 2] = np.maximum(table.score[:, 2], table.score[:, 1])
    router = TagRouter().fit(table)
    assert router.reference_ == 2
    plain = Utility().choose(router.estimate(table.queries))
    assert np.array_equal(router.decide(table.queries, -np.inf), plain)
    costs = [router.costs_[router.decide(table.queries, t)].mean() for t in (-1, 0, 0.1, 0.3, 1, np.inf)]
    assert costs == sorted(costs, reverse=True)
    assert not (router.decide(table.queries, np.inf) == 2).any()


def test_level_on_a_recorded_table(llmrouter: tuple[OutcomeTable, OutcomeTable]) -> None:
    """Clusters and categories as tags: above random on held-out queries, far above the best where models have
    topics."""
    train, test = topical_table(), topical_table(seed=1)
    assert realised(TagRouter().fit(train), test) > test.score.mean(axis=0).max() + 0.2
    score = realised(TagRouter().fit(llmrouter[0]), llmrouter[1])
    print(f"held-out: {score:.3f}, best single {llmrouter[1].score.mean(axis=0).max():.3f}")
    assert score > llmrouter[1].score.mean() + 0.1
    assert TagRouter().theta == pytest.approx(0.0)
