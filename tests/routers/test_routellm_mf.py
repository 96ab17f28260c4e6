"""routellm-mf: its identities, its gradients, and its figure on the published tables."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.metrics import deferral_curve
from outcomes.networks import sigmoid
from outcomes.table import OutcomeTable
from routers.routellm_mf import RouteLlmMf, _gradients
from tests.routers.recorded import random_table, realised, topical_table


def test_antisymmetry_scale_and_shapes() -> None:
    """w(a, b) = 1 − w(b, a); scaling a row of P changes nothing; tensors have the reference's shapes."""
    table = random_table(100, 2)
    router = RouteLlmMf().fit(table)
    quality = router.estimate(table.queries).quality
    assert np.allclose(quality.sum(axis=1), 1)
    assert (router.p_.shape, router.w1_.shape, router.w2_.shape) == ((2, 128), (128, 8), (128,))
    router._keep(router.models_, router.p_ * np.array([[3.0], [0.5]]), router.w1_, router.w2_, router.costs_)
    assert np.allclose(router.estimate(table.queries).quality, quality)


def test_a_pair_is_a_logistic_regression() -> None:
    """For a fixed pair, w is σ(e·W1ᵀ(w2 ⊙ (v_strong − v_weak))), without intercept."""
    table = random_table(100, 2)
    router = RouteLlmMf().fit(table)
    v = router.p_ / np.linalg.norm(router.p_, axis=1, keepdims=True)
    by_hand = router.w1_.T @ (router.w2_ * (v[1] - v[0]))
    assert np.allclose(router.coefficients("m1", "m0"), by_hand, atol=1e-6)
    w = sigmoid(np.asarray(table.queries.embeddings) @ by_hand)
    assert np.allclose(router.estimate(table.queries).quality[:, 1], w, atol=1e-6)


def test_gradients_are_the_derivative() -> None:
    """Of the mean loss over a batch, against central differences."""
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape) for shape in ((3, 4), (4, 5), (4,))]
    e, winner, loser = rng.normal(size=(6, 5)), np.array([0, 1, 2, 0, 1, 2]), np.array([1, 2, 0, 2, 0, 1])

    def loss() -> float:
        p, w1, w2 = values
        v = p / np.linalg.norm(p, axis=1, keepdims=True)
        return float(-np.log(sigmoid(((v[winner] - v[loser]) * (e @ w1.T)) @ w2)).mean())

    for value, gradient in zip(values, _gradients(*values, e, winner, loser), strict=True):
        for at in np.ndindex(value.shape):
            kept, losses = value[at], []
            for sign in (1, -1):
                value[at] = kept + sign * 1e-6
                losses.append(loss())
            value[at] = kept
            assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(gradient[at], rel=1e-3, abs=1e-6)


def test_learns_who_knows_what() -> None:
    """Where each model has its topic, choices on held-out queries score far above the best single model."""
    train, test = topical_table(), topical_table(seed=1)
    assert realised(RouteLlmMf(epochs=60).fit(train), test) > test.score.mean(axis=0).max() + 0.2


def test_a_table_of_ties_teaches_nothing() -> None:
    """Without decisive battles the start is what remains, and estimating still works."""
    table = random_table(10, 2)
    table.score[:] = 1.0
    assert np.isfinite(RouteLlmMf().fit(table).estimate(table.queries).quality).all()


def test_beats_random_on_the_published_tables(routellm: tuple[OutcomeTable, OutcomeTable]) -> None:
    """On held-out MMLU and GSM8K, APGR is above a random router's 0.5."""
    train, test = routellm
    estimate = RouteLlmMf().fit(train).estimate(test.queries)
    for name in ("mmlu", "gsm8k"):
        rows = np.array(test.categories) == name
        curve = deferral_curve(estimate.quality[rows, 0], test.score[rows, 1], test.score[rows, 0])
        print(f"{name}: APGR {curve.apgr():.3f}")
        assert curve.apgr() > 0.5
