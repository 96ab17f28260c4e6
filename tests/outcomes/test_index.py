"""The index: exact while it is small, and nearly so when it is not."""

from __future__ import annotations

import numpy as np

from outcomes.index import NeighbourIndex
from outcomes.table import OutcomeTable
from protocol.routing import Queries
from routers.eagle import Eagle
from routers.knn_router import KnnRouter


def _clustered(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = np.random.default_rng(9).normal(size=(40, 24))[rng.integers(0, 40, n)] + 0.5 * rng.normal(
        size=(n, 24)
    )
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_few_are_compared_exactly() -> None:
    """Below the limit every stored query comes back, in order, with its cosine."""
    vectors, asked = _clustered(200), _clustered(1, seed=1)[0]
    rows, cosine = NeighbourIndex(vectors).near(asked, 10)
    assert np.array_equal(rows, np.arange(200))
    assert np.allclose(cosine, vectors @ asked)


def test_of_many_the_nearest_are_found() -> None:
    """Of 4,000 it compares less than a third and finds 98 % of the ten nearest; cosines are those of its rows."""
    vectors, asked = _clustered(4000), _clustered(100, seed=1)
    index = NeighbourIndex(vectors, exact=1000)
    hits = 0
    for vector in asked:
        rows, cosine = index.near(vector, 10)
        assert len(rows) < 0.35 * len(vectors)
        assert len(set(rows.tolist())) == len(rows)
        assert np.allclose(cosine, vectors[rows] @ vector, atol=1e-5)
        hits += len(np.intersect1d(np.argsort(-(vectors @ vector))[:10], rows))
    assert hits >= 980


def test_too_many_neighbours_are_sought_among_all() -> None:
    """Where cells would have to hold most queries anyway, all are compared."""
    assert len(NeighbourIndex(_clustered(2000), exact=100).near(_clustered(1)[0], 500)[0]) == 2000


def test_order_of_the_rows_does_not_matter() -> None:
    """The same queries stored in another order are found the same."""
    vectors, asked = _clustered(3000), _clustered(20, seed=1)
    order = np.random.default_rng(0).permutation(3000)
    first, second = NeighbourIndex(vectors, exact=100), NeighbourIndex(vectors[order], exact=100)
    for vector in asked:
        assert set(first.near(vector, 5)[0]) == set(order[second.near(vector, 5)[0]])


def test_routers_choose_as_they_do_exactly() -> None:
    """Through the index kNN and Eagle estimate nearly what they do by comparing all."""
    vectors = _clustered(3000)
    rng = np.random.default_rng(0)
    score = (rng.random((3000, 3)) < 0.5 + 0.4 * vectors[:, :3]).astype(float)
    table = OutcomeTable.of_matrices(list("abc"), [f"q{i}" for i in range(3000)], score, embeddings=vectors)
    asked = Queries(["?"] * 60, _clustered(60, seed=1))
    for router in (KnnRouter(20).fit(table), Eagle().fit(table)):
        exact = router.estimate(asked).quality
        router.index_ = NeighbourIndex(
            vectors if isinstance(router, KnnRouter) else router.embeddings_.astype(np.float32), exact=100
        )
        assert not router.index_.exact
        found = router.estimate(asked).quality
        assert (found.argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.95
        assert np.abs(found - exact).mean() < 0.01
