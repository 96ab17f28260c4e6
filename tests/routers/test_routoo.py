"""routoo: one reading a query, the universe, the selector's bound, what an interaction is for, and that it learns."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import linprog

from outcomes.batch_assignment import upgrade_choice
from outcomes.causal_lm import CausalLm
from protocol.routing import Estimate, Queries
from routers.routoo import Routoo, cover, scores
from tests.language_models import QUICK, tiny_lm
from tests.routers.recorded import realised, worded_table


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    return str(tiny_lm(tmp_path_factory.mktemp("tiny")))


@pytest.mark.requires("torch")
def test_it_learns_who_can(start: str) -> None:
    """Where one word tells which model can answer, it beats its own start, the per-model means, in log-loss, and routes
    far better than the best single model."""
    train, test = worded_table(300), worded_table(200, seed=1)
    trained = Routoo(start=start, **QUICK).fit(train)
    untrained = Routoo(start=start, **QUICK | {"epochs": 0}).fit(train)
    means = untrained.estimate(test.queries).quality
    assert np.allclose(means, np.nanmean(train.score, axis=0), atol=0.01)
    assert (
        _log_loss(trained.estimate(test.queries), test.score)
        < _log_loss(untrained.estimate(test.queries), test.score) - 0.1
    )
    assert realised(trained, test) > np.nanmean(test.score, axis=0).max() + 0.1


@pytest.mark.requires("torch")
def test_one_reading_a_query(start: str, monkeypatch) -> None:
    """However many models, the language model reads each query once."""
    table = worded_table(30)
    router = Routoo(start=start, **QUICK | {"epochs": 0}).fit(table)
    read, calls = CausalLm.read, []
    monkeypatch.setattr(
        CausalLm, "read", lambda self, ids, past=None: calls.append(ids) or read(self, ids, past)
    )
    router.estimate(Queries(table.queries.texts[:7]))
    assert len(calls) == 7


@pytest.mark.requires("torch")
def test_a_universe_is_estimated_alone(start: str) -> None:
    """With `universe` 2 the estimate has the two models that cover best, in the order listed."""
    table = worded_table(60)
    router = Routoo(start=start, universe=2, **QUICK | {"epochs": 0}).fit(table)
    wanted = sorted(cover(table.score, 2).tolist())
    assert router.estimate(table.queries).models == tuple(table.models[i] for i in wanted)


def test_universe_is_near_the_best() -> None:
    """Greedy coverage never falls as models are added and is at least 1 − 1/e of the best set's, by brute force."""
    for seed in range(20):
        score = np.random.default_rng(seed).random((30, 7)) ** 3
        order = cover(score, 7)
        covered = [score[:, order[: k + 1]].max(axis=1).sum() for k in range(7)]
        assert (np.diff(covered) >= 0).all()
        for k in (2, 3, 4):
            best = max(score[:, list(found)].max(axis=1).sum() for found in combinations(range(7), k))
            assert covered[k - 1] >= (1 - 1 / np.e) * best


def test_only_an_interaction_routes_by_query() -> None:
    """A linear layer on h(q) − v_m orders models alike for every query; with tanh before it the order varies."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(50, 16)).astype(np.float32)
    head = {
        "project": rng.normal(size=(64, 16)), "models": rng.normal(size=(4, 64)),
        "weight": 0.1 * rng.normal(size=64), "bias": 0.1 * rng.normal(size=4),
    }  # fmt: skip
    orders = {
        linear: {tuple(row) for row in np.argsort(scores(states, head, linear=linear), axis=1)}
        for linear in (True, False)
    }
    assert len(orders[True]) == 1
    assert len(orders[False]) > 3


def test_selector_and_its_bound() -> None:
    """The budget is never exceeded; an infinite one gives argmax ŝ; the value is within one upgrade of the LP's."""
    rng = np.random.default_rng(1)
    quality = rng.random((25, 4))
    cost = np.tile([1.0, 2.0, 4.0, 9.0], (25, 1)) * rng.uniform(0.9, 1.1, (25, 4))
    estimate, rows = Estimate(tuple("abcd"), quality, cost), np.arange(25)
    assert np.array_equal(upgrade_choice(estimate, np.inf), quality.argmax(axis=1))
    for budget in (30.0, 45.0, 80.0):
        choice = upgrade_choice(estimate, budget)
        assert cost[rows, choice].sum() <= budget + 1e-9
        bound = linprog(
            -quality.ravel(), A_ub=cost.reshape(1, -1), b_ub=[budget],
            A_eq=np.kron(np.eye(25), np.ones(4)), b_eq=np.ones(25), bounds=(0, 1),
        )  # fmt: skip
        assert -bound.fun - quality[rows, choice].sum() <= np.ptp(quality, axis=1).max() + 1e-9


def _log_loss(estimate: Estimate, score: np.ndarray) -> float:
    p = np.clip(estimate.quality, 1e-6, 1 - 1e-6)
    return float(-np.nanmean(score * np.log(p) + (1 - score) * np.log(1 - p)))
