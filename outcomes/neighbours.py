"""Nearest neighbours in embedding space, and weighted means of what is known about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["BLOCK", "TIE", "KnownMeans", "in_blocks", "neighbour_weights"]

TIE = 1e-6
"""Cosines closer than this are equal: float32 products of the same rows differ by this much between batch
shapes."""
BLOCK = 1024
"""Queries compared at once, to bound memory at BLOCK × n_train floats."""


def neighbour_weights(cosine: NDArray[np.floating], k: int) -> Floats:
    """The weight of every training query as a neighbour, shape (n_queries, n_train), each row summing to k:
    1 for those nearer than the k-th, an equal share of the places left for those tied with it."""
    n = cosine.shape[1]
    if k >= n:
        return np.ones(cosine.shape)
    boundary = np.partition(cosine, n - k, axis=1)[:, n - k, None]
    weights = (cosine > boundary + TIE).astype(np.float64)
    tied = np.abs(cosine - boundary) <= TIE
    places = k - weights.sum(axis=1, keepdims=True)
    weights += tied * (places / tied.sum(axis=1, keepdims=True))
    return weights


class KnownMeans:
    """Weighted means of quantities of training queries, shape (n_train, n_quantities), of which some are
    unknown (NaN)."""

    def __init__(self, values: Floats) -> None:
        known = ~np.isnan(values)
        # Weights times this gives the sums of all quantities and how many rows know each, in one product.
        self.sums = np.concatenate([np.where(known, values, 0.0), known], axis=1)
        with np.errstate(invalid="ignore"):
            self.overall: Floats = self.sums[:, : values.shape[1]].sum(axis=0) / known.sum(axis=0)

    def of(self, weights: Floats, rows: NDArray[np.intp] | None = None) -> Floats:
        """Means under `weights`, shape (n, n_train), each of shape (n, n_quantities). Where no row that weighs
        anything knows a quantity, its mean over all rows. `rows`: the training queries that the columns of
        `weights` are for, the others weighing nothing."""
        both = weights @ (self.sums if rows is None else self.sums[rows])
        half = both.shape[1] // 2
        sums, counts = both[:, :half], both[:, half:]
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(counts > TIE, sums / counts, self.overall)


def in_blocks(
    function: Callable[[NDArray[np.floating]], Floats], vectors: NDArray[np.floating], width: int
) -> Floats:
    """`function` of `vectors`, `BLOCK` rows at a time; it gives `width` columns."""
    blocks = [function(vectors[i : i + BLOCK]) for i in range(0, len(vectors), BLOCK)]
    return np.concatenate(blocks) if blocks else np.empty((0, width))
