"""What a choice of models is worth: baselines, cost-quality curves, strong-weak curves, and paired
bootstrap intervals.

Matrices have shape (n_queries, n_models): `score` in [0, 1], `cost_usd` in US dollars. A choice is the
index of a model for each query, shape (n_queries,). A curve's points have shape (n_points, 2): cost,
quality.

AIQ, the non-decreasing convex hull and the cheapest-right oracle: Hu et al., RouterBench, arXiv 2403.12031.
PGR, APGR and CPT: Ong et al., RouteLLM, arXiv 2406.18665. Both papers and their code differ in places;
where they do, both are here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Choice = NDArray[np.intp]

__all__ = [
    "DeferralCurve",
    "Interval",
    "aiq_code",
    "aiq_paper",
    "best_single",
    "cheapest_right",
    "chosen",
    "deferral_curve",
    "hull",
    "oracle",
    "paired_bootstrap",
]

AT_ONCE = 8_000_000
"""Counts that the bootstrap holds at a time."""


def chosen(matrix: Floats, choice: Choice) -> Floats:
    """The chosen model's value for each query, shape (n_queries,)."""
    return np.asarray(matrix[np.arange(len(matrix)), choice], dtype=np.float64)


def best_single(score: Floats) -> int:
    """The model with the highest mean score over the queries it has scores for."""
    return int(np.nanargmax(_column_means(score)))


def oracle(score: Floats) -> Floats:
    """The best score of any model for each query, shape (n_queries,). No choice can do better."""
    return np.asarray(np.nanmax(score, axis=1), dtype=np.float64)


def cheapest_right(score: Floats, cost_usd: Floats) -> tuple[Floats, Floats]:
    """RouterBench's oracle: per query the cheapest of the models with the highest score, and no model at
    zero cost where all score 0. Returns score and cost, each of shape (n_queries,)."""
    best = oracle(score)
    cost = np.nanmin(np.where(score == best[:, None], cost_usd, np.nan), axis=1)
    return best, np.where(best > 0, cost, 0.0)


def hull(points: ArrayLike) -> Floats:
    """The non-decreasing convex hull of a curve: its upper concave envelope up to its highest quality.

    Every point of it is achievable by mixing two settings. Of points of equal cost the best counts (the
    reference keeps an arbitrary one). Returns points in order of cost, shape (n_hull, 2).
    """
    ordered = np.asarray(points, dtype=np.float64)
    ordered = ordered[np.lexsort((-ordered[:, 1], ordered[:, 0]))]
    envelope: list[Floats] = []
    for point in ordered:
        if envelope and point[1] <= envelope[-1][1]:
            continue  # dearer and no better: beyond or below what is there
        while len(envelope) > 1 and _cross(envelope[-2], envelope[-1], point) >= 0:
            envelope.pop()
        envelope.append(point)
    return np.array(envelope)


def aiq_paper(points: ArrayLike, cost_min: float, cost_max: float) -> float:
    """Average improvement in quality, as the paper defines it: the hull's mean height over [cost_min,
    cost_max].

    The range must be common to all compared routers. Right of the last point the hull is flat; left of the
    first it joins the null router at (0, 0).
    """
    curve = np.concatenate([[[0.0, 0.0]], hull(points)])
    inside = curve[(curve[:, 0] > cost_min) & (curve[:, 0] < cost_max), 0]
    costs = np.concatenate([[cost_min], inside, [cost_max]])
    return float(np.trapezoid(np.interp(costs, *curve.T), costs) / (cost_max - cost_min))


def aiq_code(points: ArrayLike, cost_max: float) -> float:
    """Average improvement in quality, as the authors' code computes it: from the router's own first cost to
    `cost_max` (the dearest of all compared routers), divided by `cost_max` and not by the range."""
    curve = hull(points)
    curve = np.concatenate([curve, [[cost_max, curve[-1, 1]]]])
    return float(np.trapezoid(curve[:, 1], curve[:, 0]) / cost_max)


@dataclass(frozen=True, slots=True)
class DeferralCurve:
    """A strong-weak router's curve: `fraction` of queries sent to the strong model, rising from 0 to 1, and
    mean `quality` there; `weak` and `strong` are the two models' own mean scores."""

    fraction: Floats
    quality: Floats
    weak: float
    strong: float

    def pgr(self) -> Floats:
        """Performance gap recovered at each point: 0 is the weak model, 1 the strong one; it may exceed 1."""
        return (self.quality - self.weak) / (self.strong - self.weak)

    def apgr(self) -> float:
        """Area under `pgr` over the fraction of strong calls; a random router's is 0.5."""
        return float(np.trapezoid(self.pgr(), self.fraction))

    def cpt(self, share: float) -> float:
        """Call-performance threshold: the smallest fraction of strong calls that recovers `share` of the
        gap, linear between points; NaN when the curve never does."""
        pgr = self.pgr()
        above = np.flatnonzero(pgr >= share)
        if not len(above):
            return float("nan")
        i = int(above[0])
        if i == 0:
            return float(self.fraction[0])
        weight = (share - pgr[i - 1]) / (pgr[i] - pgr[i - 1])
        return float(self.fraction[i - 1] + weight * (self.fraction[i] - self.fraction[i - 1]))

    def cpt_code(self, share: float) -> float:
        """`cpt` as the authors' code has it, by interpolating the fraction as a function of quality: right
        only where quality rises with every call."""
        return float(np.interp(self.weak + share * (self.strong - self.weak), self.quality, self.fraction))


def deferral_curve(
    strong_win: Floats, weak_score: Floats, strong_score: Floats, *, thresholds: int | None = None
) -> DeferralCurve:
    """The curve of sending to the strong model the queries whose `strong_win` reaches a threshold.

    All arguments have shape (n_queries,). By default every distinct threshold gives a point; queries of
    equal `strong_win` go together. `thresholds=10` is the authors' code: the 11 decile edges, the last one
    exclusive.
    """
    n = len(strong_win)
    ordered = np.argsort(-strong_win, kind="stable")
    rising = np.sort(strong_win)
    # Of the authors' edges the highest is exclusive: nothing lies above it, which is the point of no calls.
    edges = rising if thresholds is None else np.quantile(rising, np.linspace(0, 1, thresholds + 1))[:-1]
    calls = np.unique([0, *(n - np.searchsorted(rising, edges, side="left")), n])
    gained = np.concatenate([[0.0], np.cumsum((strong_score - weak_score)[ordered])])
    weak = float(weak_score.mean())
    return DeferralCurve(calls / n, weak + gained[calls] / n, weak, float(strong_score.mean()))


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over queries with a percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(
    values: Floats,
    *,
    weights: Floats | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """An interval for the mean of each column of `values`, shape (n_queries, n_columns); with `weights` of the same
    shape, for the weighted mean.

    All columns are resampled with the same queries, so that the interval of a difference is obtained by
    passing the difference as a column: what makes a query hard for all cancels. NaN are left out of a
    column's mean.
    """
    n = len(values)
    rng = np.random.default_rng(seed)
    counted = ~np.isnan(values) * (1.0 if weights is None else weights)
    weighted = np.where(counted != 0, values, 0.0) * counted
    means, at_once = [], max(1, AT_ONCE // max(n, 1))
    for first in range(0, resamples, at_once):
        # How often each query is drawn, shape (some resamples, n_queries): their means are two matrix products.
        some = min(at_once, resamples - first)
        counts = rng.multinomial(n, np.full(n, 1 / n), size=some).astype(np.float64)
        with np.errstate(invalid="ignore"):
            means.append((counts @ weighted) / (counts @ counted))
    tail = (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        centre = weighted.sum(axis=0) / counted.sum(axis=0)
    columns = np.concatenate(means).T
    low, high = np.array([_quantiles(column[~np.isnan(column)], (tail, 1 - tail)) for column in columns]).T
    return [Interval(*map(float, triple)) for triple in zip(centre, low, high, strict=True)]


def _quantiles(column: Floats, at: tuple[float, float]) -> Floats:
    return np.asarray(np.quantile(column, at) if len(column) else (np.nan, np.nan), dtype=np.float64)


def _column_means(values: Floats) -> Floats:
    """Means over the known values of each column; NaN for a column without any."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0), dtype=np.float64)


def _cross(a: Floats, b: Floats, c: Floats) -> float:
    """Above 0 when b lies below the line from a to c."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))
