"""Group profiles: clusters as good as scikit-learn's, soft assignment by its formula, means that know their gaps."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.groups import category_centres, group_means, kmeans, membership, nearest_groups


def _blobs() -> np.ndarray:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12, 16))[np.arange(600) % 12] + 0.2 * rng.normal(size=(600, 16))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _inertia(vectors: np.ndarray, centres: np.ndarray) -> float:
    return float(((vectors[:, None] - centres) ** 2).sum(axis=2).min(axis=1).sum())


def test_kmeans_is_as_good_as_scikit_learns() -> None:
    """On blobs the within-cluster sum of squares is within 2 % of the best of ten scikit-learn starts."""
    from sklearn.cluster import KMeans

    vectors = _blobs()
    theirs = KMeans(12, n_init=10, random_state=0).fit(vectors).inertia_
    assert _inertia(vectors, kmeans(vectors, 12, seed=0)) <= 1.02 * theirs


def test_kmeans_centres_are_the_means_of_their_members() -> None:
    """At the end every centre is the mean of the vectors nearest to it."""
    vectors = _blobs()
    centres = kmeans(vectors, 20, seed=1)
    nearest = ((vectors[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert all(np.allclose(centres[g], vectors[nearest == g].mean(axis=0)) for g in range(20))


def test_more_clusters_than_distinct_vectors_are_the_vectors() -> None:
    """There is no cluster without a vector of its own."""
    vectors = np.repeat(np.eye(3), 4, axis=0)
    assert sorted(map(tuple, kmeans(vectors, 8, seed=0))) == sorted(map(tuple, np.eye(3)))


def test_nearest_groups_is_the_softmax_over_the_nearest() -> None:
    """Two of three groups weigh exp(−β·d), scaled to 1; one group makes β irrelevant."""
    centres = np.eye(3)
    vector = np.array([[0.8, 0.6, 0.0]])
    expected = np.exp([-6 * 0.2, -6 * 0.4])
    assert np.allclose(nearest_groups(vector, centres, 2, 6.0)[0], [*(expected / expected.sum()), 0])
    assert np.array_equal(nearest_groups(vector, centres, 1, 6.0), nearest_groups(vector, centres, 1, 0.1))


def test_group_means_leave_unknown_values_out() -> None:
    """A group's mean is over what is known there; where nothing is, the overall mean; a prior pulls towards it."""
    values = np.array([[1.0, np.nan], [0.0, np.nan], [1.0, 0.5]])
    groups = membership(np.array([0, 0, 1]), 2)
    assert np.allclose(group_means(groups, values), [[0.5, 0.5], [1.0, 0.5]])
    pulled = group_means(groups, values, prior=2.0)
    assert pulled[1, 0] == pytest.approx((1 + 2 * 2 / 3) / 3)


def test_category_centres_are_unit_means() -> None:
    """Categories are sorted by name; each centre points where the mean of its vectors does."""
    names, centres = category_centres(np.array([[0, 1.0], [1, 0], [0, 1]]), ("b", "a", "b"))
    assert names == ("a", "b")
    assert np.allclose(centres, [[1, 0], [0, 1]])
