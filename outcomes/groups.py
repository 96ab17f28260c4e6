"""Group profiles: soft assignment of a query to groups × what each model is worth in each group.

    value(q, m) = Σ_g a(q, g) · profile(g, m)

Groups are clusters, tags, capabilities or the queries themselves; methods differ in `a` and in the profile.
Vectors have unit length; a distance is 1 − cosine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["category_centres", "group_means", "kmeans", "membership", "nearest_group", "nearest_groups"]


def kmeans(vectors: Floats, k: int, *, seed: int, starts: int = 4, iterations: int = 1000) -> Floats:
    """Centres of k-means, shape (min(k, n_distinct), dimensions): the best of a few greedy k-means++ starts, each run
    by Lloyd until nothing moves. Centres are means, not scaled to unit length. A cluster that loses all members
    keeps its centre."""
    distinct = np.unique(vectors, axis=0)
    if len(distinct) <= k:
        return np.asarray(distinct, dtype=np.float64)
    rng = np.random.default_rng(seed)
    runs = [_lloyd(vectors, _spread(vectors, k, rng), iterations) for _ in range(starts)]
    return min(runs, key=lambda run: run[1])[0]


def membership(labels: NDArray[np.intp], groups: int) -> Floats:
    """One-hot rows, shape (n, groups)."""
    return np.asarray(labels[:, None] == np.arange(groups), dtype=np.float64)


def nearest_group(vectors: Floats, centres: Floats) -> NDArray[np.intp]:
    """The nearest centre by Euclidean distance, shape (n,); of those equally near up to rounding, the first."""
    distance = (centres**2).sum(axis=1) - 2 * vectors @ centres.T
    return np.asarray(np.round(distance, 9).argmin(axis=1), dtype=np.intp)


def nearest_groups(vectors: Floats, centres: Floats, top: int, beta: float) -> Floats:
    """Weights of the `top` nearest groups of every vector, softmax of −`beta`·(1 − cosine) over them, 0 for the
    others; shape (n, n_groups), rows sum to 1."""
    closeness = vectors @ centres.T
    top = min(top, closeness.shape[1])
    order = np.argsort(-closeness, axis=1, kind="stable")[:, :top]
    near = np.take_along_axis(closeness, order, axis=1)
    weights = np.exp(beta * (near - near[:, :1]))
    weights /= weights.sum(axis=1, keepdims=True)
    found = np.zeros(closeness.shape)
    np.put_along_axis(found, order, weights, axis=1)
    return found


def group_means(assignment: Floats, values: Floats, *, prior: float = 0.0) -> Floats:
    """Mean of each model's known `values` (n, n_models) in each group under `assignment` (n, n_groups), shape
    (n_groups, n_models). `prior`: how many pseudo-queries of the model's overall mean every group holds (shrinkage).
    Where nothing is known, the overall mean."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        overall = filled.sum(axis=0) / known.sum(axis=0)
        counts = assignment.T @ known + prior
        means = (assignment.T @ filled + prior * np.nan_to_num(overall)) / counts
    return np.asarray(np.where(counts > 0, means, overall), dtype=np.float64)


def category_centres(vectors: Floats, categories: tuple[str, ...]) -> tuple[tuple[str, ...], Floats]:
    """The categories' names, sorted, and the unit-length mean of each one's vectors, shape (n_categories,
    dimensions)."""
    names, labels = np.unique(np.array(categories, dtype=np.str_), return_inverse=True)
    means = membership(labels, len(names)).T @ vectors
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    return tuple(map(str, names)), means / np.where(lengths > 0, lengths, 1.0)


def _lloyd(vectors: Floats, centres: Floats, iterations: int) -> tuple[Floats, float]:
    """Centres where assigning and averaging has come to rest, and their sum of squared distances."""
    labels = np.full(len(vectors), -1)
    for _ in range(iterations):
        distances = _squared_distances(vectors, centres)
        found = distances.argmin(axis=1)
        if (found == labels).all():
            break
        labels = found
        members = membership(labels, len(centres))
        counts = members.sum(axis=0)[:, None]
        centres = np.where(counts > 0, members.T @ vectors / np.maximum(counts, 1), centres)
    return np.asarray(centres, dtype=np.float64), float(distances.min(axis=1).sum())


def _spread(vectors: Floats, k: int, rng: np.random.Generator) -> Floats:
    """k-means++: each next centre drawn with probability proportional to the squared distance to those there are;
    of a few draws the one that lowers the total most (as scikit-learn does)."""
    trials = 2 + int(np.log(k))
    centres = [vectors[rng.integers(len(vectors))]]
    nearest = _squared_distances(vectors, centres[0][None])[:, 0]
    for _ in range(1, k):
        draws = rng.choice(len(vectors), size=trials, p=nearest / nearest.sum())
        after = np.minimum(nearest[:, None], _squared_distances(vectors, vectors[draws]))
        best = int(after.sum(axis=0).argmin())
        centres.append(vectors[draws[best]])
        nearest = after[:, best]
    return np.array(centres)


def _squared_distances(vectors: Floats, centres: Floats) -> Floats:
    squared = (vectors**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * vectors @ centres.T
    return np.asarray(np.maximum(squared, 0.0), dtype=np.float64)
