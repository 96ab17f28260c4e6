"""How sure a figure on held-out lessons is: bootstrap intervals, drawing lessons and not their tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["area", "share"]


def share(hits: NDArray[np.float64], groups: NDArray[np.intp] | None = None, seed: int = 0) -> list[float]:
    """Mean of `hits`, shape (n,), and its 95 % interval over 2,000 resamples: [mean, low, high]. `groups`, (n,), says
    which hits are one lesson's, which are drawn together."""
    groups = np.arange(len(hits)) if groups is None else np.unique(groups, return_inverse=True)[1]
    totals, counts = np.bincount(groups, hits), np.bincount(groups)
    drawn = np.random.default_rng(seed).integers(len(counts), size=(2000, len(counts)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return [round(float(value), 4) for value in (totals.sum() / counts.sum(), low, high)]


def area(scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often a true one has a higher score than a false one, equal scores half."""
    order = np.unique(scores, return_inverse=True)[1]
    true, false = (
        np.bincount(order[labels], minlength=order.max() + 1),
        np.bincount(order[~labels], minlength=order.max() + 1),
    )
    below = np.cumsum(false) - false
    return float((true * (below + false / 2)).sum() / (true.sum() * false.sum()))
