"""avengers: its formula on a toy file, its limits, and its figure on RouterDC's tables."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.metrics import best_single
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from protocol.routing import Queries
from routers.avengers import Avengers, _frequent, _ranks
from routers.policy import Utility
from tests.routers.recorded import random_table, realised


def test_limits() -> None:
    """One cluster is the best single model; with one nearest cluster β does not matter."""
    table = random_table(300)
    one = Avengers(clusters=1).fit(table).estimate(table.queries)
    assert set(Utility().choose(one)) == {best_single(table.score)}
    assert one.quality.max() == pytest.approx(1.0)
    sharp, flat = (Avengers(nearest=1, beta=b).fit(table).estimate(table.queries) for b in (9.0, 0.1))
    assert np.array_equal(sharp.quality, flat.quality)


def test_score_is_the_formula() -> None:
    """On two centroids: w = softmax(−6·d) and score = Σ w / (rank + 0.1)."""
    router = Avengers()
    centres = np.array([[0.9, 0.0], [0.0, 0.8]])
    ranks = np.array([[0.0, 1.0, 2.0], [2.0, 0.0, 1.0]])
    router._keep(("a", "b", "c"), centres, 0.1 / (ranks + 0.1), np.ones(3))
    e = np.array([0.8, 0.6])
    w = np.exp(-6 * (1 - centres @ e))
    expected = (w / w.sum()) @ (1 / (ranks + 0.1))
    found = router.estimate(Queries(["?"], e[None].astype(np.float32))).quality[0]
    assert 10 * found == pytest.approx(expected, rel=1e-6)


def test_ranks_are_shared_and_over_all_models() -> None:
    """Equal accuracies share the mean of their places; the most frequent winners make the pool."""
    ranks = _ranks(np.array([[0.5, 0.9, 0.5, 0.1], [1.0, 1.0, 1.0, 1.0]]))
    assert ranks.tolist() == [[1.5, 0, 1.5, 3], [1.5, 1.5, 1.5, 1.5]]
    assert _frequent(np.array([[0.0, 1, 2], [0, 1, 2], [2, 1, 0]]), 2).tolist() == [True, True, False]


def test_pruning_the_pool_changes_no_remaining_score() -> None:
    """Models outside the pool are never taken, those inside keep their scores."""
    table = random_table(300, 5)
    whole, pruned = (Avengers(pool=size).fit(table).estimate(table.queries).quality for size in (0, 2))
    kept = pruned.max(axis=0) > 0
    assert kept.sum() == 2
    assert np.array_equal(whole[:, kept], pruned[:, kept])


def test_pro_trades_accuracy_for_cost() -> None:
    """α = 1 looks at accuracy alone, α = 0 takes the cheapest, and mean cost never falls as α rises."""
    table = random_table(300)
    costs = []
    for alpha in (0.0, 0.4, 0.7, 1.0):
        estimate = Avengers(variant="pro", alpha=alpha).fit(table).estimate(table.queries)
        costs.append(float(estimate.cost_usd[np.arange(300), Utility().choose(estimate)].mean()))
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(np.nanmean(table.cost_usd, axis=0).min())
    with pytest.raises(MethodError, match="rank or pro"):
        Avengers(variant="max")


def test_routerdc_figure(routerdc: tuple[OutcomeTable, dict[str, OutcomeTable]]) -> None:
    """On TF-IDF features the macro average over five tests is about the card's 56.8 (16 clusters), and flat in K."""
    train, tests = routerdc
    figures = {}
    for k in (16, 32, 64):
        router = Avengers(clusters=k).fit(train)
        figures[k] = 100 * float(np.mean([realised(router, test) for test in tests.values()]))
    print(f"macro average by K: {figures}")
    assert min(figures.values()) >= 56
    assert np.ptp(list(figures.values())) < 2
