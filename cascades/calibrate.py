"""Fitting a cascade's thresholds on an outcome table, and measuring what they buy on queries held out.

The stages' answers are scored exactly as online, and the card comes from `simulate`, which shares its
deciding code with the live strategy. Queries are split by a hash of their text; thresholds see the one part,
the card reports the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascades.base import Rule, Scorer, Shown
from cascades.simulator import means, simulate
from outcomes.evaluate import CardRow
from outcomes.metrics import best_single, deferral_curve, paired_bootstrap
from outcomes.table import OutcomeTable, split
from protocol.errors import MethodError

__all__ = ["Objective", "calibrate", "evaluate", "fit"]

Matrix = NDArray[np.float64]
CANDIDATES = 256
"""Threshold combinations tried: quantiles of the scores, spread evenly over the judged stages."""
CURVE_POINTS = 21


@dataclass(frozen=True, slots=True)
class Objective:
    """What the thresholds are for; exactly one is given.

    `share` in [0, 1]: how many of the queries that reach a stage it defers. `max_cost_usd`: highest mean
    quality at a mean cost of at most that many US dollars a query. `worth_usd`: highest mean of worth_usd ·
    quality − cost, a right answer being worth that many US dollars.
    """

    share: float | None = None
    max_cost_usd: float | None = None
    worth_usd: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.share, self.max_cost_usd, self.worth_usd) if value is not None]
        if len(given) != 1 or not 0 <= given[0] < math.inf or (self.share or 0) > 1:
            raise MethodError("Give exactly one of share (0 to 1), max_cost_usd and worth_usd, none below 0.")


def calibrate(
    table: OutcomeTable,
    stages: Sequence[str],
    scorer: Scorer,
    objective: Objective,
    *,
    test_share: float = 0.3,
) -> tuple[Rule, dict[str, Any]]:
    """The rule fitted on the queries not held out, and its card (see `evaluate`) on those that are.

    Raises `MethodError` when the table lacks a stage, or what the scorer needs of a stage.
    """
    train, test = split(_complete(table, stages), test_share)
    if not len(train) or not len(test):
        raise MethodError(f"{len(train)} queries to fit on and {len(test)} held out: collect more outcomes.")
    rule = fit(_scores(train, scorer), train.score, train.cost_usd, objective)
    asked = {key: value for key, value in asdict(objective).items() if value is not None}
    return rule, {"objective": asked, "fitted_on": len(train), **evaluate(rule, test, stages, scorer)}


def fit(scores: Matrix, quality: Matrix, cost_usd: Matrix, objective: Objective) -> Rule:
    """The best rule by `objective` among quantiles of the scores. Shapes as in `simulate`.

    Of equally good rules the one that defers least is taken. Raises `MethodError` when no rule is within
    `max_cost_usd`.
    """
    if objective.share is not None:
        return _deferring(scores, objective.share)
    per_stage = max(2, int(CANDIDATES ** (1 / scores.shape[1])))
    best: tuple[float, float] = (-math.inf, -math.inf)
    rule = None
    for thresholds in product(*(_candidates(column, per_stage) for column in scores.T)):
        tried = Rule(thresholds)
        mean_quality, mean_cost = means(tried, scores, quality, cost_usd)
        # A budget typed as the first stage's own price must not fail by the rounding of a mean.
        if objective.max_cost_usd is not None and mean_cost > objective.max_cost_usd * (1 + 1e-9):
            continue
        value = (
            mean_quality if objective.worth_usd is None else objective.worth_usd * mean_quality - mean_cost
        )
        if (value, -mean_cost) > best:
            best, rule = (value, -mean_cost), tried
    if rule is None:
        cheapest = float(cost_usd[:, 0].mean())
        raise MethodError(
            f"Even the first stage alone costs {cheapest:.3g} USD a query on average; raise max_cost_usd."
        )
    return rule


def evaluate(rule: Rule, table: OutcomeTable, stages: Sequence[str], scorer: Scorer) -> dict[str, Any]:
    """The card of `rule` on `table`, as JSON values; intervals are 95 % paired bootstrap over queries.

    `rows` (`outcomes.evaluate.CardRow`) compare the cascade with each stage alone and, for two stages, with
    deferring the same share at random and by an oracle that knows the scores; `gain_over_random` is [mean,
    low, high]. `auc_df` is the area under (share deferred, mean quality), trapezoid, beside the random
    line's (q̄_1 + q̄_2)/2 and the oracle's; `curve` are points of it.
    """
    table = _complete(table, stages)
    scores, quality, cost = _scores(table, scorer), table.score, table.cost_usd
    run = simulate(rule, scores, quality, cost)
    columns = {"cascade": (run.quality, run.cost_usd)}
    columns |= {stage: (quality[:, i], cost[:, i]) for i, stage in enumerate(stages)}
    card: dict[str, Any] = {
        "queries": len(table),
        "stages": list(stages),
        "thresholds": [_json(threshold) for threshold in rule.thresholds],
        "deferred": [run.deferred(stage) for stage in range(rule.n_stages - 1)],
        "unjudged": [float(np.isnan(column).mean()) for column in scores.T],
    }
    if len(stages) == 2:
        share, gain = run.deferred(0), quality[:, 1] - quality[:, 0]
        columns["random"] = (quality[:, 0] + share * gain, cost[:, 0] + share * cost[:, 1])
        defer = np.zeros(len(gain), dtype=np.bool_)
        defer[np.argsort(-gain, kind="stable")[: round(share * len(gain))]] = True
        columns["oracle"] = (np.where(defer, quality[:, 1], quality[:, 0]), cost[:, 0] + defer * cost[:, 1])
        card |= _areas(scores[:, 0], quality)
    best = quality[:, best_single(quality)]
    rows = {name: _intervals(score, cost, score - best) for name, (score, cost) in columns.items()}
    card["rows"] = [
        asdict(CardRow(name, *score, *cost, *gain, shares={})) for name, (score, cost, gain) in rows.items()
    ]
    if "random" in columns:
        (lead,) = _intervals(run.quality - columns["random"][0])
        card["gain_over_random"] = list(lead)
    return card


def _areas(scores: Matrix, quality: Matrix) -> dict[str, Any]:
    """AUC-DF of the scorer, of chance and of the oracle, and the scorer's curve."""
    weak, strong = quality.T
    unsure = -np.where(np.isnan(scores), -np.inf, scores)
    curve, oracle = deferral_curve(unsure, weak, strong), deferral_curve(strong - weak, weak, strong)
    at = np.linspace(0, 1, CURVE_POINTS)
    return {
        "auc_df": float(np.trapezoid(curve.quality, curve.fraction)),
        "auc_df_random": float((weak.mean() + strong.mean()) / 2),
        "auc_df_oracle": float(np.trapezoid(oracle.quality, oracle.fraction)),
        "curve": [
            [float(x), float(y)]
            for x, y in zip(at, np.interp(at, curve.fraction, curve.quality), strict=True)
        ],
    }


def _intervals(*columns: Matrix) -> list[tuple[float, float, float]]:
    """(mean, low, high) of each column."""
    return [(found.mean, found.low, found.high) for found in paired_bootstrap(np.stack(columns, axis=1))]


def _complete(table: OutcomeTable, stages: Sequence[str]) -> OutcomeTable:
    """The stages' columns, and the queries that every stage answered. Raises `MethodError`."""
    table = table.only(stages)
    known = ~np.isnan(table.score).any(axis=1) & ~np.isnan(table.cost_usd).any(axis=1)
    if not known.any():
        raise MethodError(f"No query of the table has a score and a cost for each of {', '.join(stages)}.")
    return table.take(known)


def _scores(table: OutcomeTable, scorer: Scorer) -> Matrix:
    """Scores of every judged stage's answers, shape (n_queries, n_stages − 1), NaN where one cannot be
    judged."""
    scores = np.full((len(table), len(table.models) - 1), np.nan)
    for i, query in enumerate(table.queries.texts):
        for j in range(len(table.models) - 1):
            score = scorer.score(Shown(query, table.response[i, j] or "", tuple(table.logprobs[i, j] or ())))
            scores[i, j] = math.nan if score is None else score
    for model, column in zip(table.models, scores.T, strict=False):
        if np.isnan(column).all():
            raise MethodError(
                f"No answer of {model!r} in the table can be judged: collect with log-probabilities."
            )
    return scores


def _candidates(scores: Matrix, count: int) -> list[float]:
    """Thresholds from accept-always to accept-never, the scores' quantiles between them."""
    judged = scores[~np.isnan(scores)]
    return [-math.inf, *np.unique(np.quantile(judged, np.linspace(0, 1, count))).tolist()[1:], math.inf]


def _deferring(scores: Matrix, share: float) -> Rule:
    """Thresholds at which each stage defers as near to `share` of what reaches it as its scores allow."""
    thresholds: list[float] = []
    reached = np.ones(len(scores), dtype=np.bool_)
    for column in scores.T:
        here = column[reached]
        steps = np.append(np.unique(here[~np.isnan(here)]), np.inf)
        deferred = [float((~(here >= step)).mean()) for step in steps]
        threshold = float(steps[int(np.argmin(np.abs(np.array(deferred) - share)))])
        thresholds.append(threshold)
        reached &= ~(column >= threshold)
    return Rule(tuple(thresholds))


def _json(threshold: float) -> float | str:
    return threshold if math.isfinite(threshold) else str(threshold)
