"""Losses of the encoder trainer: their formulas by hand, and the terms that RouterDC's loss drops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from outcomes.encoder_losses import in_cluster, multi_label, ranked_contrastive, soft_cross_entropy, squared

pytestmark = pytest.mark.requires("torch")


def _tensor(values: object, *, grad: bool = False):
    import torch

    return torch.tensor(values, dtype=torch.float32, requires_grad=grad)


def test_means_over_known_labels_only() -> None:
    """Unknown labels count for nothing in either mean; nothing known is 0."""
    target, out = np.array([[1.0, np.nan], [0.0, 0.5]]), _tensor([[2.0, 9.0], [-1.0, 0.0]])
    by_hand = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1)) + math.log(2)) / 3
    assert float(multi_label(target, out)) == pytest.approx(by_hand, rel=1e-5)
    assert float(squared(target, out)) == pytest.approx((1 + 1 + 0.25) / 3, rel=1e-5)
    assert float(multi_label(np.full((2, 2), np.nan), out)) == 0


def test_soft_cross_entropy_has_the_gradient_of_kl() -> None:
    """The derivative with respect to the logits is softmax − target, which is KL(target ‖ softmax)'s."""
    target, out = np.array([[0.2, 0.3, 0.5]]), _tensor([[0.1, -0.4, 0.9]], grad=True)
    soft_cross_entropy(target, out).backward()
    z = np.exp([0.1, -0.4, 0.9]) / np.exp([0.1, -0.4, 0.9]).sum()
    assert np.allclose(out.grad.numpy()[0], z - target[0], atol=1e-6)


def test_soft_cross_entropy_without_a_class() -> None:
    """A class of unknown target is not in the softmax, and a row without any is left out of the mean."""
    target = np.array([[0.5, 0.5, np.nan], [np.nan] * 3])
    assert float(soft_cross_entropy(target, _tensor([[1.0, 1.0, 50.0], [3.0, 2.0, 1.0]]))) == pytest.approx(
        math.log(2)
    )


def test_contrastive_by_hand() -> None:
    """With one positive and two usable negatives it is −log softmax of the positive among the three."""
    score, out = np.array([[0.9, 0.2, 0.1]]), _tensor([[1.0, 0.5, -0.5]])
    by_hand = -math.log(math.e / (math.e + math.exp(0.5) + math.exp(-0.5)))
    assert float(ranked_contrastive(score, out, positives=1, negatives=2)) == pytest.approx(by_hand, rel=1e-5)


def test_contrastive_drops_good_negatives_and_bad_positives() -> None:
    """All negatives above 0.5 → loss 0; a positive that scores 0 is no positive."""
    out = _tensor([[0.3, -0.2, 0.7]])
    assert float(ranked_contrastive(np.array([[0.9, 0.8, 0.7]]), out, positives=1, negatives=2)) == 0
    assert float(ranked_contrastive(np.zeros((1, 3)), out, positives=3, negatives=3)) == 0


def test_contrastive_as_released() -> None:
    """The released mask is one factor of the batch: a bad positive then still adds its part, and others less."""
    score, out = np.array([[0.9, 0.1], [0.0, 0.0]]), _tensor([[0.2, 0.1], [0.4, -0.3]])
    first, second = (
        float(ranked_contrastive(score, out, positives=1, negatives=1, per_sample=mode))
        for mode in (True, False)
    )
    terms = -np.log(np.exp([0.2, 0.4]) / np.exp([[0.2, 0.1], [0.4, -0.3]]).sum(axis=1))
    assert first == pytest.approx(terms[0] / 2, rel=1e-5)
    assert second == pytest.approx(terms.mean() * 0.5, rel=1e-5)


def test_in_cluster_prefers_queries_of_one_cluster_together() -> None:
    """Small when clusters are apart, large when they are mixed up, 0 where there is nothing to compare with."""
    pooled = _tensor([[1, 0], [1, 0.1], [-1, 0], [-1, 0.1]])
    apart, mixed = (
        float(in_cluster(np.array(labels), pooled, negatives=3, seed=0))
        for labels in ([0, 0, 1, 1], [0, 1, 0, 1])
    )
    assert apart < 0.5 < mixed
    assert float(in_cluster(np.zeros(4, dtype=int), pooled, negatives=3, seed=0)) == 0
