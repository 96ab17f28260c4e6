"""forc: what its meta-model learns, and its assignments under a budget."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.batch_assignment import UNANSWERED, integer_choice
from outcomes.metrics import cheapest_right, chosen
from protocol.routing import Estimate
from routers.forc import Forc
from routers.policy import CheapestAbove, Utility
from tests.routers.recorded import realised, topical_table


def test_the_tag_decides() -> None:
    """The same query has another P under another model's tag, and P knows each model's topic on held-out queries."""
    train, test = topical_table(), topical_table(seed=1)
    router = Forc(epochs=30).fit(train)
    assert np.ptp(router.estimate(test.queries).quality, axis=1).mean() > 0.1
    assert realised(router, test) > test.score.mean(axis=0).max() + 0.2


def test_the_split_first_layer_is_the_network() -> None:
    """Computing the query's part once equals running the meta-model on every (query, tag) row."""
    table = topical_table(60)
    router = Forc().fit(table)
    vectors = np.asarray(table.queries.embeddings, dtype=float)
    for j, tag in enumerate(np.eye(3)):
        rows = np.concatenate([vectors, np.tile(tag, (60, 1))], axis=1)
        p = 1 / (1 + np.exp(-router.network_(rows)[:, 0]))
        assert np.allclose(router.estimate(table.queries).quality[:, j], p)


def test_budget_limits_and_monotonicity() -> None:
    """Without bound argmax P, without money nobody answers; spending stays within B and total P never falls with B."""
    train, test = topical_table(), topical_table(90, seed=1)
    estimate = Forc().fit(train).estimate(test.queries)
    everything = float(estimate.cost_usd.max(axis=1).sum())
    assert np.array_equal(integer_choice(estimate, budget_usd=2 * everything), Utility().choose(estimate))
    totals = []
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        choice = integer_choice(estimate, budget_usd=share * everything, skip_penalty=0.0)
        asked = np.flatnonzero(choice != UNANSWERED)
        assert estimate.cost_usd[asked, choice[asked]].sum() <= share * everything * (1 + 1e-6)
        totals.append(float(estimate.quality[asked, choice[asked]].sum()))
    assert totals == sorted(totals)
    assert totals[0] == 0


def test_labels_as_estimates_make_the_cheapest_right_oracle() -> None:
    """Thresholding on perfect P scores and costs what RouterBench's oracle does, wherever somebody is right."""
    test = topical_table(120)
    choice = CheapestAbove(0.5).choose(Estimate(test.models, test.score, test.cost_usd))
    right = test.score.any(axis=1)
    score, cost = cheapest_right(test.score, test.cost_usd)
    assert chosen(test.score, choice)[right] == pytest.approx(score[right])
    assert chosen(test.cost_usd, choice)[right] == pytest.approx(cost[right])
