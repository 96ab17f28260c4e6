"""Which stored queries are nearest: exact while there are few, an inverted file over clusters when there are many.

Three steps; the first two only say what the third compares (`python -m benchmarks.routers.latency` measures what they
lose):

1. Cells of spherical k-means over a sample of the rows. What a cell promises is the mean cosine of its rows with the
   query, which is exactly the query's product with the mean row, plus `SPREADS` times how far they scatter about it.
   The best cells that hold a share of the rows are looked at, and then every other one that promises a neighbour
   nearly as near as the k-th found there: few cells for most queries, many for the one that lies between topics.
2. Their rows, in the `AXES` directions in which the stored queries differ most: a third of the numbers.
3. Those that come nearly as near as the k-th by that, by their true cosines: the other directions could still put them
   before it.

How much "nearly" is, says a `Care`. Where the estimate is the mean of the neighbours, as in kNN, two models are often a
neighbour apart, and one that was missed decides: `CAREFUL`. Who weighs them against something else can be `QUICK`.

Nothing is stored in artefacts: cells are made when one is loaded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

__all__ = ["CAREFUL", "EXACT", "QUICK", "Care", "NeighbourIndex"]

EXACT = 8192
"""Stored queries up to which all are compared: below this the product costs less than half a millisecond."""
STEPS = 4
SAMPLED = 12_500
"""Rows that the cells are made from, at most."""
SPREADS = 3.0
FREE = 100
"""Directions that rows of a cell scatter in, roughly: a cosine's spread is the scatter over the root of this."""
AXES = 128


@dataclass(frozen=True, slots=True)
class Care:
    """`share` of the rows whose cells are looked at in any case; cosine `margin` by which a cell may promise less than
    the k-th neighbour found, and still be looked at; cosine `unseen`, at most, between what row and query have beyond
    the axes, where that could put the row before it."""

    share: float
    margin: float
    unseen: float


QUICK, CAREFUL = Care(0.03, 0.04, 0.25), Care(0.04, 0.1, 0.3)
FEW = 24
"""Stored queries a neighbour from which on looking for the nearest first is worth it."""


class NeighbourIndex:
    """Over unit-length rows, shape (n, dimensions)."""

    def __init__(self, vectors: Vectors, *, exact: int = EXACT) -> None:
        self.vectors = vectors
        self.exact = len(vectors) <= exact
        if self.exact:
            return
        _, axes = np.linalg.eigh(vectors.T @ vectors)
        centres = _centres(vectors, axes[:, -1], int(2 * np.sqrt(len(vectors))))
        cell = _nearest(vectors, centres)
        self._order = np.argsort(cell, kind="stable")
        starts = np.unique(cell[self._order], return_index=True)[1]
        # Rows of a cell lie together: what is compared for one query is then near in memory.
        self._rows = rows = vectors[self._order]
        self._starts = [*starts.tolist(), len(rows)]
        self._ends = np.array(self._starts[1:])
        self._sizes = np.diff(self._starts)
        self._means = np.add.reduceat(rows, starts, axis=0) / self._sizes[:, None].astype(np.float32)
        scatter = np.sqrt(np.maximum(1 - (self._means**2).sum(axis=1), 0))
        self._promise = (SPREADS / np.sqrt(FREE) * scatter).astype(np.float32)
        self._axes = np.ascontiguousarray(axes[:, -AXES:].T)
        self._short = np.ascontiguousarray(rows @ self._axes.T)
        self._beyond = np.sqrt(np.maximum(1 - (self._short**2).sum(axis=1), 0))
        self._longest = float(self._beyond.max())

    def near(self, vector: Vectors, k: int, care: Care = CAREFUL) -> tuple[NDArray[np.intp], Vectors]:
        """The stored rows worth comparing with one query, shape (dimensions,), for its `k` nearest, and their
        cosines. Exact: all of them, in order."""
        n = len(self.vectors)
        if self.exact or FEW * k > n:
            return np.arange(n), np.asarray(self.vectors @ vector, dtype=np.float32)
        promised = self._means @ vector + self._promise
        cells = np.argsort(-promised)
        bounds = self._sizes[cells].cumsum()
        first = int(np.searchsorted(bounds, max(care.share * n, 2 * k))) + 1
        short, close = self._axes @ vector, np.empty(n, dtype=np.float32)
        seen = self._compare(cells[:first], short, close, 0)
        least = np.partition(close[:seen], seen - k)[seen - k]
        # Promises fall along `cells`: whoever promises enough comes first.
        enough = int(np.count_nonzero(promised >= least - care.margin))
        if enough > first:
            seen = self._compare(cells[first:enough], short, close, seen)
            least = np.partition(close[:seen], seen - k)[seen - k]
        unseen = care.unseen * math.sqrt(max(0.0, 1.0 - float(short @ short)))
        near = np.flatnonzero(close[:seen] >= least - unseen * self._longest)
        # From places among the rows that were compared to places among all.
        which = np.searchsorted(bounds, near, side="right")
        places = near + (self._ends[cells] - bounds)[which]
        places = places[close[near] + unseen * self._beyond[places] >= least]
        return self._order[places], self._rows[places] @ vector

    def _compare(self, cells: NDArray[np.intp], short: Vectors, close: Vectors, seen: int) -> int:
        """Write the rows of `cells` compared along the axes to `close` from `seen` on; returns where it ends."""
        starts = self._starts
        for cell in cells.tolist():
            rows = self._short[starts[cell] : starts[cell + 1]]
            # One product a cell, on rows that lie together: gathering them first would cost more than comparing.
            np.dot(rows, short, out=close[seen : seen + len(rows)])
            seen += len(rows)
        return seen


def _centres(vectors: Vectors, axis: Vectors, count: int) -> Vectors:
    """Unit-length cluster centres of a sample that is evenly spread along `axis`, the rows' first principal one, so
    that the order of the rows does not decide; they start evenly spread too."""
    order = np.argsort(vectors @ axis, kind="stable")
    sample = vectors[order[:: -(-len(order) // SAMPLED)]]
    centres = sample[np.linspace(0, len(sample) - 1, min(count, len(sample))).astype(np.intp)]
    for _ in range(STEPS):
        cell = _nearest(sample, centres)
        by_cell = np.argsort(cell, kind="stable")
        present, starts = np.unique(cell[by_cell], return_index=True)
        sums = np.add.reduceat(sample[by_cell], starts, axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres[present] = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1.0), centres[present])
    return centres


def _nearest(vectors: Vectors, centres: Vectors) -> NDArray[np.intp]:
    blocks = [(vectors[i : i + 4096] @ centres.T).argmax(axis=1) for i in range(0, len(vectors), 4096)]
    return np.concatenate(blocks)
