"""radialrouter: its satellites are a set, its limits, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.autograd import Value, gradients
from outcomes.networks import softmax
from protocol.errors import MethodError
from routers.radialrouter import RadialRouter, divergence, in_cluster, radiate, targets
from tests.routers.recorded import random_table, realised, topical_table


def test_satellites_are_a_set() -> None:
    """Permuting the models' vectors permutes scores and nothing else; a model left out leaves the hub's context and the
    softmax, as if it had never been there."""
    table = random_table(80, 4)
    router = RadialRouter(epochs=2).fit(table)
    vectors = np.asarray(table.queries.embeddings, dtype=float)
    hub = vectors @ router.weights_["hub.weight"] + router.weights_["hub.bias"]
    order = np.array([3, 1, 0, 2])
    turned = {**router.weights_, "satellites": router.weights_["satellites"][order]}
    assert np.allclose(radiate(turned, hub, 2, 4), router.scores(vectors)[:, order])
    smaller = router.without("m1")
    fewer = {**router.weights_, "satellites": router.weights_["satellites"][[0, 2, 3]]}
    assert smaller.models_ == ("m0", "m2", "m3")
    assert np.allclose(smaller.estimate(table.queries).quality, softmax(radiate(fewer, hub, 2, 4)))
    assert not np.allclose(smaller.scores(vectors), router.scores(vectors)[:, [0, 2, 3]]), "the hub hears it"
    with pytest.raises(MethodError, match="m9"):
        router.without("m9")


def test_limits() -> None:
    """T = 0 tells no query from another; the models' number shows in their vectors alone; with one-hot targets the
    loss is cross entropy."""
    table = topical_table(60)
    still = RadialRouter(layers=0, epochs=1).fit(table).estimate(table.queries).quality
    assert np.allclose(still, still[0])
    sizes = []
    for m in (2, 5):
        weights = RadialRouter(epochs=1).fit(random_table(40, m)).weights_
        sizes.append(sum(value.size for name, value in weights.items() if name != "satellites"))
        assert weights["satellites"].shape == (m, 32)
    assert sizes[0] == sizes[1]
    rng = np.random.default_rng(0)
    logits, right = rng.normal(size=(5, 3)), rng.integers(3, size=5)
    known = np.ones((5, 3), dtype=bool)
    assert divergence(np.eye(3)[right], logits, known) == pytest.approx(
        -np.log(softmax(logits)[np.arange(5), right]).mean(), rel=1e-6
    )


def test_targets_weigh_cost_and_leave_out_the_unknown() -> None:
    """Softmax of score − α·cost over τ, whose unknown cells get nothing and no slope."""
    score, cost = np.array([[1.0, 1.0, np.nan]]), np.array([[2.0, 1.0, np.nan]])
    assert np.allclose(targets(score, cost, 0.0, 0.2), [[0.5, 0.5, 0]])
    assert targets(score, cost, 0.1, 0.2)[0, 1] == pytest.approx(1 / (1 + np.exp(-0.5)))
    logits = Value(np.array([[0.1, 0.2, 0.3]]))
    loss = divergence(targets(score, cost, 0.0, 0.2), logits, ~np.isnan(score))
    assert gradients(loss, [logits])[0][0, 2] == 0


def test_a_cluster_pulls_its_hubs_together() -> None:
    """The contrastive term is low when hubs of a cluster agree and high when they are mixed; a batch of one cluster has
    none."""
    labels = np.arange(12) % 3
    together, rng = np.eye(3)[labels] * 4, np.random.default_rng(0)
    apart = np.eye(3)[np.arange(12) // 4] * 4
    low, high = (float(in_cluster(hub, labels, 3, rng)) for hub in (together, apart))
    assert low == pytest.approx(-np.log(np.e / (np.e + 3)), abs=1e-6)
    assert high > low + 0.5
    assert in_cluster(together, np.zeros(12, dtype=int), 3, rng) == 0


def test_it_learns_who_knows_what() -> None:
    """Held-out queries go to the model that knows their topic; with a high α they go to the cheapest."""
    train, test = topical_table(), topical_table(seed=1)
    assert realised(RadialRouter().fit(train), test) > test.score.mean(axis=0).max() + 0.2
    frugal = RadialRouter(price=1e7).fit(train).estimate(test.queries)
    assert (frugal.quality.argmax(axis=1) == 0).mean() > 0.95
