"""The laws of `cascades.base`, one `check_*` a law; every registered scorer passes all of them.

A check takes `make`, which builds a scorer, and `run`, the simulator that a cascade with it is run by; it
raises AssertionError naming what broke.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cascades.base import Rule, Scorer, Shown
from cascades.simulator import Simulation

Make = Callable[..., Scorer]
Run = Callable[..., Simulation]

N, STAGES = 60, 3


def answers(seed: int = 0) -> list[list[Shown]]:
    """`N` queries' answers by each stage: texts and token log-probabilities of many lengths."""
    rng = np.random.default_rng(seed)
    return [
        [
            Shown(
                f"query {i}",
                f"answer {i} of {stage}",
                tuple(-rng.exponential(rng.uniform(0.1, 2), rng.integers(1, 40))),
            )
            for stage in range(STAGES)
        ]
        for i in range(N)
    ]


def table(scorer: Scorer) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Scores (N, STAGES − 1), quality and cost (N, STAGES) of a pool in which dearer is mostly better."""
    rng = np.random.default_rng(1)
    scores = np.array([[scorer.score(shown) for shown in row[:-1]] for row in answers()], dtype=np.float64)
    quality = (rng.random((N, STAGES)) < np.array([0.5, 0.6, 0.8])).astype(np.float64)
    return scores, quality, rng.uniform(0.5, 1.5, (N, STAGES)) * np.array([1e-6, 3e-6, 1e-5])


def thresholds(scores: NDArray[np.float64]) -> list[float]:
    """Thresholds from accept-always to accept-never."""
    return [-math.inf, *np.quantile(scores, np.linspace(0, 1, 9)).tolist(), math.inf]


def check_same_answer_same_score(make: Make, run: Run) -> None:
    """Scoring is pure: again, by the same scorer or a fresh one, an answer scores the same."""
    scorer = make()
    first = [[scorer.score(shown) for shown in row] for row in answers()]
    assert first == [[scorer.score(shown) for shown in row] for row in answers()], (
        "scores changed on the second look"
    )
    fresh = make()
    backwards = [[fresh.score(shown) for shown in reversed(row)][::-1] for row in reversed(answers())][::-1]
    assert first == backwards, "scores depend on the order of the answers"


def check_parameters_rebuild(make: Make, run: Run) -> None:
    """`type(scorer)(**parameters)` scores as the scorer does, and parameters survive JSON."""
    import orjson

    scorer = make()
    twin = make(**orjson.loads(orjson.dumps(dict(scorer.parameters))))
    assert [twin.score(row[0]) for row in answers()] == [scorer.score(row[0]) for row in answers()]


def check_nothing_shown_is_unjudged(make: Make, run: Run) -> None:
    """An answer that shows nothing has no score; it is not a low or a high one."""
    assert make().score(Shown("", "")) is None, "an empty answer was given a score"


def check_scores_are_numbers(make: Make, run: Run) -> None:
    """A score is a float that can be compared: never NaN."""
    scores = [make().score(shown) for row in answers() for shown in row]
    assert all(isinstance(score, float) and not math.isnan(score) for score in scores)


def check_surer_is_higher(make: Make, run: Run) -> None:
    """Where every token is surer, the score is no lower."""
    for row in answers():
        surer = Shown(row[0].query, row[0].text, tuple(value / 2 for value in row[0].logprobs))
        before, after = make().score(row[0]), make().score(surer)
        assert before is not None
        assert after is not None
        assert after >= before, "a surer answer scored lower"


def check_accept_always_is_stage_one(make: Make, run: Run) -> None:
    """Accept-always equals the first stage in answer and cost."""
    scores, quality, cost = table(make())
    done = run(Rule((-math.inf,) * (STAGES - 1)), scores, quality, cost)
    assert (done.stage == 0).all()
    assert (done.quality == quality[:, 0]).all(), "accept-always is not stage 1's answer"
    assert np.allclose(done.cost_usd, cost[:, 0], rtol=1e-12), "accept-always does not cost stage 1"


def check_accept_never_is_the_last_at_summed_cost(make: Make, run: Run) -> None:
    """Accept-never equals the last stage's answer at the cost of all stages."""
    scores, quality, cost = table(make())
    done = run(Rule((math.inf,) * (STAGES - 1)), scores, quality, cost)
    assert (done.quality == quality[:, -1]).all(), "accept-never is not the last stage's answer"
    assert np.allclose(done.cost_usd, cost.sum(axis=1), rtol=1e-12), "accept-never does not cost all stages"


def check_every_call_is_paid(make: Make, run: Run) -> None:
    """A query costs the stages of its chain, and their judges; no more, no less."""
    scores, quality, cost = table(make())
    judges = np.full(scores.shape, 1e-7)
    for threshold in thresholds(scores):
        done = run(Rule((threshold,) * (STAGES - 1)), scores, quality, cost, judges)
        for i, chain in enumerate(done.chains):
            judged = 1e-7 * sum(stage < STAGES - 1 for stage in chain)
            paid = sum(cost[i, stage] for stage in chain) + judged
            assert math.isclose(done.cost_usd[i], paid, rel_tol=1e-9), (
                f"paid {done.cost_usd[i]} for a chain of {paid}"
            )
            assert math.isclose(done.judge_usd[i], judged, rel_tol=1e-9), "judges are not accounted"


def check_higher_threshold_defers_more(make: Make, run: Run) -> None:
    """Raising a threshold never lowers the share deferred."""
    scores, quality, cost = table(make())
    for stage in range(STAGES - 1):
        shares = []
        for threshold in thresholds(scores):
            raised = [0.0] * (STAGES - 1)
            raised[stage] = threshold
            shares.append(run(Rule(tuple(raised)), scores, quality, cost).deferred(stage))
        assert shares == sorted(shares), f"raising threshold {stage} lowered the share deferred: {shares}"


def check_oracle_bounds(make: Make, run: Run) -> None:
    """At equal deferral, no two-stage curve lies above deferring the queries that gain most."""
    scores, quality, cost = table(make())
    gain = np.sort(quality[:, 2] - quality[:, 0])[::-1]
    for threshold in thresholds(scores[:, :1]):
        done = run(Rule((threshold,)), scores[:, :1], quality[:, [0, 2]], cost[:, [0, 2]])
        count = round(done.deferred(0) * N)
        assert done.quality.sum() <= quality[:, 0].sum() + gain[:count].sum() + 1e-9, "better than the oracle"


def check_monotone_change_changes_nothing(make: Make, run: Run) -> None:
    """Shifting and scaling scores and thresholds together leaves every decision as it was."""
    scores, quality, cost = table(make())
    for threshold in thresholds(scores):
        plain = run(Rule((threshold,) * (STAGES - 1)), scores, quality, cost)
        moved = run(Rule((threshold * 4 - 8,) * (STAGES - 1)), scores * 4 - 8, quality, cost)
        assert plain.chains == moved.chains


CHECKS = [
    check_same_answer_same_score,
    check_parameters_rebuild,
    check_nothing_shown_is_unjudged,
    check_scores_are_numbers,
    check_surer_is_higher,
    check_accept_always_is_stage_one,
    check_accept_never_is_the_last_at_summed_cost,
    check_every_call_is_paid,
    check_higher_threshold_defers_more,
    check_oracle_bounds,
    check_monotone_change_changes_nothing,
]

NEEDS = {check_surer_is_higher: "logprobs"}
"""Checks that ask only of methods with that need."""
