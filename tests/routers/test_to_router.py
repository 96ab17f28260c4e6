"""to-router: the limits of its labels and neighbours, and its place between zero router and optimum."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.metrics import oracle
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from routers.policy import Utility
from routers.to_router import ToRouter, soft_labels, votes
from tests.routers.recorded import random_table, realised


def test_soft_label_limits() -> None:
    """T → 0 is the hard label, T → ∞ uniform; unknown scores get nothing; every label sums to 1."""
    score = np.array([[0.9, 0.8, np.nan], [0.1, 0.3, 0.2]])
    assert np.allclose(soft_labels(score, 1e-3), [[1, 0, 0], [0, 1, 0]])
    assert np.allclose(soft_labels(score, 1e6), [[0.5, 0.5, 0], [1 / 3] * 3], atol=1e-6)
    assert np.allclose(soft_labels(score, 0.2).sum(axis=1), 1)


def test_votes_are_shared_by_equals() -> None:
    """Each query has one vote."""
    assert np.allclose(votes(np.array([[1.0, 1, 0], [0, 0.5, 0.2]])), [[0.5, 0.5, 0], [0, 1, 0]])


def test_neighbour_limits() -> None:
    """K = n names the expert that is best most often; k = 1 at a training query an expert that is best there."""
    table = random_table()
    everyone = ToRouter(head="knn", k=10_000).fit(table)
    telling = np.ptp(table.score, axis=1) > 0
    counts = votes(table.score[telling]).mean(axis=0)
    assert np.allclose(everyone.estimate(table.queries).quality, counts)
    one = table.take(telling)
    assert realised(ToRouter(head="knn", k=1).fit(table), one) == pytest.approx(oracle(one.score).mean())


def test_queries_that_say_nothing_are_left_out() -> None:
    """Adding queries all experts get right, or all wrong, changes nothing; of nothing else, kNN is an error."""
    table = random_table(100)
    alike = random_table(30, seed=1)
    alike.score[:] = 1.0
    rows = [*table.rows(), *alike.rows()]
    both = OutcomeTable.of(rows, table.models)
    both = both.embedded(np.concatenate([table.queries.embeddings, alike.queries.embeddings]))
    asked = random_table(20, seed=2).queries
    for head in ("knn", "mlp"):
        first, second = (ToRouter(head=head).fit(t).estimate(asked).quality for t in (table, both))
        assert np.allclose(first, second, rtol=1e-5)
    with pytest.raises(MethodError, match="differ"):
        ToRouter(head="knn").fit(alike)
    with pytest.raises(MethodError, match="mlp or knn"):
        ToRouter(head="bert")


def test_between_zero_router_and_optimum(llmrouter: tuple[OutcomeTable, OutcomeTable]) -> None:
    """On held-out queries both heads score above the mean of the experts and below the per-query best."""
    train, test = llmrouter
    for head in ("knn", "mlp"):
        score = realised(ToRouter(head=head).fit(train), test)
        print(
            f"{head}: {score:.3f}, zero router {test.score.mean():.3f}, optimum {oracle(test.score).mean():.3f}"
        )
        assert test.score.mean() + 0.1 < score < oracle(test.score).mean()


def test_quality_is_a_distribution() -> None:
    """The head's outputs are probabilities of being best."""
    table = random_table()
    quality = ToRouter().fit(table).estimate(table.queries).quality
    assert np.allclose(quality.sum(axis=1), 1)
    assert set(Utility().choose(ToRouter().fit(table).estimate(table.queries))) <= {0, 1, 2}
