"""inferencedynamics: rank weights, its profile query by query, and its limit."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.table import OutcomeTable
from routers.inferencedynamics import InferenceDynamics, places, rank_weights
from routers.policy import Utility
from tests.routers.recorded import random_table, realised, topical_table


def test_rank_weights() -> None:
    """α = 0 is the first place only, α = 1 all alike, and they always sum to 1."""
    assert rank_weights(3, 0.0).tolist() == [1, 0, 0]
    assert np.allclose(rank_weights(4, 1.0), 0.25)
    assert np.allclose(rank_weights(3, 0.5), np.array([4, 2, 1]) / 7)
    assert all(rank_weights(n, a).sum() == pytest.approx(1) for n in (1, 2, 5) for a in (0, 0.3, 1))


def test_profile_is_the_formula() -> None:
    """P(M, e) is the mean over the queries that contain e of s·α^(j−1)/Σα^(l−1), gaps left out."""
    rng = np.random.default_rng(0)
    elements = np.array([rng.permutation(4)[:3] for _ in range(40)])
    value = rng.random((40, 2))
    value[:5, 1] = np.nan
    weights = rank_weights(3, 0.5)
    found = InferenceDynamics(alpha=0.5, support=0.0).profile(elements, value, 4)
    for e in range(4):
        for m in range(2):
            terms = [
                value[i, m] * weights[list(elements[i]).index(e)]
                for i in range(40)
                if e in elements[i] and not np.isnan(value[i, m])
            ]
            assert found[e, m] == pytest.approx(np.mean(terms))


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_universal_element_is_best_single(beta: float) -> None:
    """With one category and one cluster all go to the best of s − βc."""
    table = random_table(categories=1)
    router = InferenceDynamics(beta=beta, capabilities=1).fit(table)
    cost = table.cost_usd.mean(axis=0)
    value = table.score.mean(axis=0) - beta * cost / cost.max()
    assert set(Utility().choose(router.estimate(table.queries))) == {int(value.argmax())}


def test_places_are_ordered_and_own_category_is_first() -> None:
    """Nearest elements come first; what is known to come first does, whatever the distance."""
    vectors, centres = np.array([[1.0, 0.0]]), np.array([[0.9, 0.1], [0.0, 1.0], [0.5, 0.5]])
    assert places(vectors, centres, 2).tolist() == [[0, 2]]
    assert places(vectors, centres, 2, np.array([1])).tolist() == [[1, 0]]


def test_learns_who_knows_what(llmrouter: tuple[OutcomeTable, OutcomeTable]) -> None:
    """Far above the best single model where models have topics; above random on published tables."""
    train, test = topical_table(), topical_table(seed=1)
    assert realised(InferenceDynamics().fit(train), test) > test.score.mean(axis=0).max() + 0.2
    score = realised(InferenceDynamics().fit(llmrouter[0]), llmrouter[1])
    print(f"held-out: {score:.3f}, best single {llmrouter[1].score.mean(axis=0).max():.3f}")
    assert score > llmrouter[1].score.mean() + 0.1
