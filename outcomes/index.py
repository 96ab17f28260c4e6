"""Which stored queries are nearest: exact while there are few, an inverted file over clusters when there are many.

Cells are those of spherical k-means (a few steps from evenly spread rows). A search compares the query with the
centres, then exactly with the queries of the nearest cells: as many cells as hold a share of all queries and
`PER_PLACE` for each one that is wanted, which finds 98 % and more of the true neighbours among the published tables'
embeddings (`python -m benchmarks.routers.latency`). Nothing is stored in artefacts: cells are made when one is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

__all__ = ["EXACT", "NeighbourIndex"]

EXACT = 8192
"""Stored queries up to which all are compared: below this the product costs less than half a millisecond."""
STEPS = 6
SHARE, PER_PLACE = 0.13, 32
MOST = 0.3
"""Share of the stored queries that are compared for a few neighbours, and at most: beyond it, all are."""


class NeighbourIndex:
    """Over unit-length rows, shape (n, dimensions)."""

    def __init__(self, vectors: Vectors, *, exact: int = EXACT) -> None:
        self.vectors = vectors
        self.exact = len(vectors) <= exact
        if not self.exact:
            self._centres = _centres(vectors, int(np.sqrt(len(vectors))))
            cell = _nearest(vectors, self._centres)
            self._order = np.argsort(cell, kind="stable")
            self._rows = np.ascontiguousarray(vectors[self._order])
            self._starts = np.searchsorted(cell[self._order], np.arange(len(self._centres) + 1))

    def near(self, vector: Vectors, k: int) -> tuple[NDArray[np.intp], Vectors]:
        """The stored rows worth comparing with one query, shape (dimensions,), for its `k` nearest, and their
        cosines. Exact: all of them, in order."""
        n = len(self.vectors)
        wanted = SHARE * n + PER_PLACE * k
        if self.exact or wanted > MOST * n:
            return np.arange(n), np.asarray(self.vectors @ vector, dtype=np.float32)
        cells = np.argsort(-(self._centres @ vector), kind="stable")
        sizes = np.diff(self._starts)[cells]
        cells = cells[: int(np.searchsorted(sizes.cumsum(), wanted)) + 1]
        spans = [slice(self._starts[cell], self._starts[cell + 1]) for cell in cells.tolist()]
        # One product a cell, on rows that lie together: gathering them first would cost more than comparing.
        cosine = np.concatenate([self._rows[span] @ vector for span in spans])
        return np.concatenate([self._order[span] for span in spans]), cosine


def _centres(vectors: Vectors, count: int) -> Vectors:
    """Unit-length cluster centres, from starts that are evenly spread along the rows' first principal axis, so that the
    order of the rows does not decide."""
    _, axes = np.linalg.eigh(vectors.T @ vectors)
    ordered = np.argsort(vectors @ axes[:, -1], kind="stable")
    centres = vectors[ordered[np.linspace(0, len(vectors) - 1, count).astype(np.intp)]]
    for _ in range(STEPS):
        cell = _nearest(vectors, centres)
        sums = np.zeros_like(centres)
        np.add.at(sums, cell, vectors)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1.0), centres)
    return np.asarray(centres, dtype=np.float32)


def _nearest(vectors: Vectors, centres: Vectors) -> NDArray[np.intp]:
    blocks = [(vectors[i : i + 4096] @ centres.T).argmax(axis=1) for i in range(0, len(vectors), 4096)]
    return np.concatenate(blocks)
