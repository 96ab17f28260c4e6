"""relm: our reconstruction's two losses, and what each head becomes alone."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.learning_set import learning_set
from outcomes.networks import fit_network, sigmoid, softmax
from routers.relm import Relm, evaluator_slope, recommender_slope
from tests.routers.recorded import random_table, realised, topical_table


def test_the_evaluator_alone_is_plain_regression() -> None:
    """With φ = 0 and the recommender unpaid, V is the network that binary cross entropy alone would train."""
    table = random_table()
    router = Relm(focus=0.0, weight=0.0).fit(table)
    learn = learning_set(table, "relm")

    def gradient(rows: np.ndarray, out: np.ndarray) -> np.ndarray:
        return np.concatenate([sigmoid(out[:, :3]) - learn.score[rows], np.zeros((len(rows), 3))], axis=1)

    plain = fit_network(learn.vectors, 6, gradient, hidden=(64,), epochs=10, decay=5.0)
    expected = sigmoid(plain(np.asarray(table.queries.embeddings, dtype=float))[:, :3])
    assert np.allclose(router.estimate(table.queries).quality, expected)


def test_a_frozen_uniform_recommender_weighs_all_alike() -> None:
    """π = 1/M gives every model weight 1 whatever φ."""
    rng = np.random.default_rng(0)
    value, score, uniform = rng.random((5, 4)), rng.random((5, 4)), np.full((5, 4), 0.25)
    for focus in (0.0, 0.5, 1.0):
        assert np.allclose(evaluator_slope(value, score, uniform, focus), value - score)


def test_gradients_are_derivatives() -> None:
    """Of the weighted cross entropy at the evaluator's logits, and of −Σ π·V − η·H at the recommender's."""
    rng = np.random.default_rng(0)
    logits, value, score = rng.normal(size=(1, 4)), rng.random((1, 4)), rng.random((1, 4))
    policy = softmax(rng.normal(size=(1, 4)))
    score[0, 2] = np.nan

    def evaluated(z: np.ndarray) -> float:
        v, weight = sigmoid(z), 0.3 + 0.7 * 4 * policy
        return float(-np.nansum(weight * (score * np.log(v) + (1 - score) * np.log(1 - v))))

    def recommended(z: np.ndarray) -> float:
        pi = softmax(z)
        return float(-(pi * value).sum() + 0.2 * (pi * np.log(pi)).sum())

    steps = 1e-6 * np.eye(4)[:, None]
    for function, slope in (
        (evaluated, evaluator_slope(sigmoid(logits), score, policy, 0.7)),
        (recommended, recommender_slope(softmax(logits), value, 0.2)),
    ):
        by_hand = [(function(logits + h) - function(logits - h)) / 2e-6 for h in steps]
        assert slope[0] == pytest.approx(by_hand, abs=1e-6)


def test_a_recommender_paid_the_truth_finds_the_oracle() -> None:
    """On its training queries; and softmax(V/η) is where it comes to rest."""
    table = random_table(60)
    network = fit_network(
        np.asarray(table.queries.embeddings),
        3,
        lambda rows, out: recommender_slope(softmax(out), table.score[rows], 0.2),
        hidden=(128,),
        epochs=1000,
        rate=1e-2,
    )
    choice = network(np.asarray(table.queries.embeddings)).argmax(axis=1)
    assert table.score[np.arange(60), choice].mean() == pytest.approx(
        table.score.max(axis=1).mean(), abs=0.02
    )
    at_rest = softmax(table.score / 0.05)
    assert np.abs(recommender_slope(at_rest, table.score, 0.05)).max() < 1e-12


@pytest.mark.parametrize("recommend", [False, True])
def test_both_heads_learn_who_knows_what(recommend: bool) -> None:
    """The evaluator's and the recommender's choices beat every single model on held-out queries."""
    train, test = topical_table(), topical_table(seed=1)
    router = Relm(recommend=recommend, epochs=30).fit(train)
    assert realised(router, test) > test.score.mean(axis=0).max() + 0.2
