"""From estimates of quality and cost to an assignment of queries to models; shared by every router and
planner.

λ (lam) is what a unit of quality costs in reverse: the quality one gives up to save a US dollar. Utility =
quality − λ·cost: λ = 0 takes the best model whatever it costs, λ → ∞ the cheapest.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from protocol.routing import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Knob", "calibrate_knob", "calibrate_threshold", "utilities", "utility_choice"]

TOLERANCE = 1e-9
"""Estimates closer than this are ties: they differ by rounding, not by evidence."""


def utility_choice(estimate: Estimate, lam: float) -> NDArray[np.intp]:
    """The model with the highest quality − lam·cost for each query, shape (n_queries,).

    Of equal ones the cheaper is taken, then the one whose name sorts first: never the one that happens to
    be listed first. A model of unknown quality is never taken, one of unknown cost is held to be as dear as
    the dearest.
    """
    quality, cost = _filled(estimate)
    if np.isinf(lam):
        # Cheapest of those that can be taken at all; quality breaks ties.
        utility, second = np.where(quality == -np.inf, -np.inf, -cost), quality
        slack = np.zeros((len(cost), 1))
    else:
        utility, second = quality - lam * cost, -cost
        slack = np.full((len(cost), 1), TOLERANCE)
    tied = utility >= utility.max(axis=1, keepdims=True) - slack
    second = np.where(tied, second, -np.inf)
    tied &= second >= second.max(axis=1, keepdims=True)
    by_name = np.argsort(np.argsort(np.array(estimate.models)))
    return np.asarray(np.where(tied, by_name, len(by_name)).argmin(axis=1), dtype=np.intp)


def utilities(estimate: Estimate, lam: float) -> NDArray[np.float64]:
    """The utility quality − lam·cost, shape (n_queries, n_models), the unknown as in `utility_choice`; `lam` finite."""
    quality, cost = _filled(estimate)
    return quality - lam * cost


def _filled(estimate: Estimate) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Quality with −∞ where it is unknown, and cost with the query's dearest."""
    known = ~np.isnan(estimate.cost_usd)
    dearest = np.where(known, estimate.cost_usd, 0.0).max(axis=1, keepdims=True)
    quality = np.where(np.isnan(estimate.quality), -np.inf, estimate.quality)
    return quality, np.where(known, estimate.cost_usd, dearest)


@dataclass(frozen=True, slots=True)
class Knob:
    """The `quality` knob in [0, 1] → λ. `lams` fall as `levels` rise; between levels log λ is linear.

    1 is λ = 0, the best model; 0 is λ = ∞, the cheapest. In between, a level x spends x of the money that
    lies between the two on the queries the knob was calibrated on.
    """

    levels: tuple[float, ...]
    lams: tuple[float, ...]

    def lam(self, quality: float) -> float:
        """λ for a setting of the knob."""
        if quality >= 1:
            return 0.0
        if quality <= 0:
            return float("inf")
        return float(np.exp(np.interp(quality, self.levels, np.log(self.lams))))

    def wire(self) -> dict[str, list[float]]:
        return {"levels": list(self.levels), "lams": list(self.lams)}

    @classmethod
    def parse(cls, value: Any) -> Self:
        """Raises ValueError unless both lists are of one length, levels rise, and every λ is positive and
        finite."""
        levels, lams = (tuple(map(float, value[key])) for key in ("levels", "lams"))
        rising = all(a < b for a, b in pairwise(levels))
        if (
            not levels
            or len(levels) != len(lams)
            or not rising
            or not all(0 < lam < float("inf") for lam in lams)
        ):
            raise ValueError("a knob needs rising levels, each with a positive λ")
        return cls(levels, lams)


def calibrate_knob(estimate: Estimate, *, levels: int = 19, grid: int = 256) -> Knob:
    """The knob whose level x makes the mean estimated cost over these queries c_cheapest + x·(c_best −
    c_cheapest).

    Mean cost never rises with λ, so the map is monotone. Where all choices cost the same any λ does, and
    the knob is one that trades a point of quality for the mean cost of a query.
    """
    quality, cost = estimate.quality, estimate.cost_usd
    gains = np.abs(quality[:, :, None] - quality[:, None, :])
    prices = np.abs(cost[:, :, None] - cost[:, None, :])
    with np.errstate(divide="ignore", invalid="ignore"):
        # Between a pair of models the choice changes where λ = gain / price: outside these values nothing
        # moves.
        switches = (gains / prices)[(gains > TOLERANCE) & (prices > 0)]
    positions = np.linspace(0, 1, levels + 2)[1:-1]
    if not len(switches):
        known = cost[cost > 0]
        return Knob((0.5,), (0.01 / float(known.mean()) if len(known) else 1.0,))
    lams = np.geomspace(switches.max() * 1.01, switches.min() / 1.01, grid)
    rows = np.arange(len(cost))
    filled = np.where(np.isnan(cost), np.nanmax(cost), cost)
    spent = np.array([filled[rows, utility_choice(estimate, lam)].mean() for lam in lams])
    span = spent[-1] - spent[0]
    if span <= 0:
        return Knob((0.5,), (float(np.median(lams)),))
    share = np.maximum.accumulate((spent - spent[0]) / span)
    return Knob(
        tuple(map(float, positions)), tuple(map(float, np.exp(np.interp(positions, share, np.log(lams)))))
    )


def calibrate_threshold(strong_win: NDArray[np.float64], share: float) -> float:
    """The threshold α that sends about `share` of the queries to the strong model: the (1 − share) quantile
    of `strong_win`, shape (n_queries,); a query goes to the strong one when its value is ≥ α (RouteLLM)."""
    return float(np.quantile(strong_win, 1 - share))
