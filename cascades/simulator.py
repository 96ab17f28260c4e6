"""A cascade run over recorded outcomes: the same `execute` as online, with a table answering for the models.

For n queries and K stages: `quality` and `cost_usd` have shape (n, K), `scores` (n, K − 1); a NaN score is
an answer that could not be judged (it defers), a NaN quality a stage that failed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascades.base import Rule
from cascades.executor import Outcome, drive, returned

__all__ = ["Simulation", "means", "simulate"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Simulation:
    """What a rule did to each query.

    `chains` are the stages run, `stage` (n,) the one returned (-1: all failed), `quality` (n,) of the
    answer returned, `cost_usd` (n,) summed over every stage run, `judge_usd` (n,) the part of it that
    scorers cost.
    """

    chains: tuple[tuple[int, ...], ...]
    stage: NDArray[np.intp]
    quality: Matrix
    cost_usd: Matrix
    judge_usd: Matrix

    def deferred(self, stage: int) -> float:
        """Share of all queries that went past `stage`, in [0, 1]."""
        return float(np.mean([any(ran > stage for ran in chain) for chain in self.chains]))


def simulate(
    rule: Rule, scores: Matrix, quality: Matrix, cost_usd: Matrix, judge_usd: Matrix | None = None
) -> Simulation:
    """Run `rule` on every query. `judge_usd` (n, K − 1): US dollars a stage's scorer costs, zero when
    omitted.

    Raises ValueError when the shapes do not agree.
    """
    n, n_stages = quality.shape
    judge = np.zeros_like(scores) if judge_usd is None else judge_usd
    if (rule.n_stages, cost_usd.shape, scores.shape, judge.shape) != (
        n_stages, quality.shape, (n, n_stages - 1), (n, n_stages - 1),
    ):  # fmt: skip
        raise ValueError(
            f"{rule.n_stages} stages, quality {quality.shape}, cost {cost_usd.shape}, scores {scores.shape}, "
            f"judges {judge.shape} do not agree"
        )
    stage = np.full(n, -1, dtype=np.intp)
    answer_quality, paid, judged = np.zeros(n), np.zeros(n), np.zeros(n)
    chains = []
    for row in range(n):
        steps = drive(rule, lambda at, row=row: _recorded(quality[row], scores[row], at))  # type: ignore[misc]
        ran = tuple(step.stage for step in steps)
        chains.append(ran)
        final = returned(steps)
        if final is not None:
            stage[row], answer_quality[row] = final, quality[row, final]
        judged[row] = sum(judge[row, at] for at in ran if at < n_stages - 1 and steps[at].verdict != "failed")
        paid[row] = judged[row] + np.nansum(cost_usd[row, list(ran)])
    return Simulation(tuple(chains), stage, answer_quality, paid, judged)


def means(rule: Rule, scores: Matrix, quality: Matrix, cost_usd: Matrix) -> tuple[float, float]:
    """Mean quality and mean cost of `simulate` without judges, where every stage answered: its fast twin, for
    trying many rules, tested equal to it."""
    n, n_stages = quality.shape
    here = np.ones(n, dtype=np.bool_)
    gained = paid = 0.0
    for stage in range(n_stages):
        paid += float(cost_usd[here, stage].sum())
        accepted = here & (scores[:, stage] >= rule.thresholds[stage]) if stage < n_stages - 1 else here
        gained += float(quality[accepted, stage].sum())
        here = here & ~accepted
    return gained / n, paid / n


def _recorded(quality: Matrix, scores: Matrix, stage: int) -> Outcome:
    """The outcome of asking `stage`, read off one query's row."""
    if np.isnan(quality[stage]):
        return Outcome(answered=False)
    score = float(scores[stage]) if stage < len(scores) else np.nan
    return Outcome(answered=True, score=None if np.isnan(score) else score)
