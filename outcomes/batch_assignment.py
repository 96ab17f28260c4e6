"""Assigning queries to models from estimates: rules query by query, and batches under one budget.

A choice is the index of a model for each query, shape (n_queries,); where a rule may leave a query unanswered,
`UNANSWERED`. Unknown quality is never chosen; unknown cost is held to be as dear as the dearest known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from outcomes.assignment import utility_choice
from protocol.errors import MethodError
from protocol.routing import Estimate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Choice = NDArray[np.intp]

__all__ = ["UNANSWERED", "integer_choice", "margin_choice", "threshold_choice", "upgrade_choice"]

UNANSWERED = -1


def margin_choice(estimate: Estimate, tolerance: float) -> Choice:
    """The cheapest model whose quality is within `tolerance` of the best. 0 is the best, ∞ the cheapest."""
    quality, _ = _filled(estimate)
    near = quality >= quality.max(axis=1, keepdims=True) - tolerance - 1e-9
    kept = Estimate(estimate.models, np.where(near, estimate.quality, np.nan), estimate.cost_usd)
    return utility_choice(kept, float("inf"))


def threshold_choice(
    estimate: Estimate, theta: float, *, otherwise: Literal["dearest", "cheapest", "best"] = "dearest"
) -> Choice:
    """FORC's thresholding: the cheapest model whose quality is above `theta`; where none is, the dearest, the
    cheapest, or the one of highest quality."""
    quality, cost = _filled(estimate)
    enough = quality > theta
    kept = Estimate(estimate.models, np.where(enough, estimate.quality, np.nan), estimate.cost_usd)
    dearest = Estimate(estimate.models, estimate.quality, -cost)
    fallback = {
        "dearest": lambda: utility_choice(dearest, float("inf")),
        "cheapest": lambda: utility_choice(estimate, float("inf")),
        "best": lambda: utility_choice(estimate, 0.0),
    }[otherwise]()
    return np.where(enough.any(axis=1), utility_choice(kept, float("inf")), fallback).astype(np.intp)


def upgrade_choice(estimate: Estimate, budget_usd: float) -> Choice:
    """Greedy for a batch: start everyone at the cheapest, then apply the upgrades of highest gain per dollar, along
    each query's convex hull, until the next one does not fit `budget_usd` (US dollars, whole batch).

    Within one query's gain of the best possible. Raises `MethodError` when not even the cheapest fits.
    """
    quality, cost = _filled(estimate)
    choice = utility_choice(estimate, float("inf"))
    rows = np.arange(len(choice))
    left = budget_usd - float(cost[rows, choice].sum())
    if left < -1e-12:
        raise MethodError(
            f"The cheapest assignment costs {budget_usd - left:.6g} USD, more than {budget_usd:.6g}."
        )
    upgrades = [
        (-gain / price, i, step, price, model)
        for i in range(len(choice))
        for step, (gain, price, model) in enumerate(_upgrades(quality[i], cost[i], int(choice[i])))
    ]
    # Along a hull the ratio falls, so sorting by ratio never puts a query's later upgrade before an earlier one.
    for _, i, _, price, model in sorted(upgrades):
        if price > left:
            break
        left -= price
        choice[i] = model
    return choice


def integer_choice(
    estimate: Estimate,
    *,
    budget_usd: float | None = None,
    target_quality: float | None = None,
    skip_penalty: float | None = None,
    alpha: float | None = None,
    gap: float = 1e-9,
) -> Choice:
    """The best assignment of a batch, by integer programming (HiGHS). One of:

    - `budget_usd`: most total quality for at most that much money in total;
    - `target_quality`: least money for at least that mean quality;
    - `alpha`: most α·quality − (1 − α)·cost.

    With `skip_penalty` a query may stay `UNANSWERED` at that penalty (quality where money is bounded, US dollars
    where quality is). `gap`: relative optimality gap at which to stop. Raises `MethodError` when nothing fits.
    """
    from scipy import sparse
    from scipy.optimize import Bounds, LinearConstraint, milp

    if sum(aim is not None for aim in (budget_usd, target_quality, alpha)) != 1:
        raise MethodError("integer_choice aims at one of: a budget, a target quality, a trade-off alpha.")
    quality, cost = _filled(estimate)
    n, m = quality.shape
    if not n:
        return np.empty(0, dtype=np.intp)
    allowed = np.isfinite(quality).ravel()
    worth, price = np.where(allowed, quality.ravel(), 0.0), cost.ravel()
    skips = n if skip_penalty is not None else 0
    penalty = np.full(skips, skip_penalty or 0.0)
    if alpha is not None:
        goal = np.concatenate([(1 - alpha) * price - alpha * worth, penalty])
    else:
        goal = np.concatenate([price if budget_usd is None else -worth, penalty])
    one_each = sparse.kron(sparse.eye_array(n), np.ones((1, m)))
    if skips:
        one_each = sparse.hstack([one_each, sparse.eye_array(n)])
    bounds = [LinearConstraint(one_each.tocsr(), 1, 1)]
    padded = np.zeros(skips)
    if budget_usd is not None:
        # In units of the budget: HiGHS' tolerances are absolute, and US dollars a query are tiny.
        unit = max(budget_usd, float(price.max()), 1e-300)
        bounds.append(
            LinearConstraint(np.concatenate([price / unit, padded])[None], -np.inf, budget_usd / unit)
        )
    if target_quality is not None:
        unit = max(float(price.max()), 1e-300)
        goal = goal / unit
        bounds.append(LinearConstraint(np.concatenate([worth, padded])[None], target_quality * n, np.inf))
    upper = np.concatenate([allowed.astype(float), np.ones(skips)])
    found = milp(
        goal,
        constraints=bounds,
        integrality=np.ones(len(goal)),
        bounds=Bounds(0, upper),
        options={"mip_rel_gap": gap},
    )
    if found.x is None:
        raise MethodError(f"No assignment fits: {found.message}")
    picked = np.round(found.x[: n * m]).reshape(n, m)
    return np.where(picked.any(axis=1), picked.argmax(axis=1), UNANSWERED).astype(np.intp)


def _filled(estimate: Estimate) -> tuple[Floats, Floats]:
    """Quality and cost without gaps: unknown quality −∞, unknown cost the query's dearest known."""
    known = ~np.isnan(estimate.cost_usd)
    dearest = np.where(known, estimate.cost_usd, 0.0).max(axis=1, keepdims=True, initial=0.0)
    quality = np.where(np.isnan(estimate.quality), -np.inf, estimate.quality)
    return quality, np.where(known, estimate.cost_usd, dearest)


def _upgrades(quality: Floats, cost: Floats, start: int) -> list[tuple[float, float, int]]:
    """The steps up one query's upper concave hull from its cheapest model: (gain, price, model)."""
    steps: list[tuple[float, float, int]] = []
    at = start
    while True:
        gain, price = quality - quality[at], cost - cost[at]
        dearer = (gain > 1e-12) & (price > 0)
        if not dearer.any():
            return steps
        ratio = np.where(dearer, gain / np.where(dearer, price, 1.0), -np.inf)
        best = np.flatnonzero(ratio >= ratio.max() * (1 - 1e-12))
        to = int(best[np.argmax(gain[best])])
        steps.append((float(gain[to]), float(price[to]), to))
        at = to
