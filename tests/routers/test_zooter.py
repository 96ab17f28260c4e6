"""zooter: the limits of its labels, what tags are for, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.networks import softmax
from routers.zooter import Zooter, reward_labels
from tests.encoders import QUICK, tiny_encoder
from tests.routers.recorded import realised, worded_table


def test_label_limits() -> None:
    """Labels sum to 1; β = 1 is each query's own softmax; one tag and β = 0 the mean softmax; no tag its own; an
    unknown reward stays unknown."""
    rng = np.random.default_rng(0)
    reward, tags = rng.normal(size=(12, 4)), ["a", "b", ""] * 4
    for beta in (0, 0.3, 1):
        assert np.allclose(reward_labels(reward, tags, beta).sum(axis=1), 1)
    assert np.allclose(reward_labels(reward, tags, 1.0), softmax(reward))
    assert np.allclose(reward_labels(reward, ["t"] * 12, 0.0), softmax(reward).mean(axis=0))
    assert np.allclose(reward_labels(reward, tags, 0.0)[2::3], softmax(reward)[2::3])
    reward[0, 1] = np.nan
    labels = reward_labels(reward, tags, 0.3)
    assert np.isnan(labels[0, 1])
    assert np.allclose(np.nansum(labels, axis=1), 1)


def test_tags_smooth_noise() -> None:
    """Rewards are a domain's quality under noise thrice as large: at β = 0.3 far more labels have the truly best model
    on top than at β = 1, the paper's claim."""
    rng = np.random.default_rng(0)
    domain = np.arange(600) % 6
    quality = rng.normal(size=(6, 5))
    reward = quality[domain] + 3 * rng.normal(size=(600, 5))
    tags = [f"d{d}" for d in domain]
    hit = {
        beta: (reward_labels(reward, tags, beta).argmax(axis=1) == quality[domain].argmax(axis=1)).mean()
        for beta in (0.3, 1.0)
    }
    assert hit[0.3] > hit[1.0] + 0.05


@pytest.mark.requires("torch")
def test_it_learns_who_can(tmp_path: Path) -> None:
    """Where one word tells which model can answer, held-out queries go to that model nearly always; Z sums to 1."""
    router = Zooter(start=str(tiny_encoder(tmp_path)), temperature=0.2, **QUICK).fit(worded_table(300))
    test = worded_table(200, seed=1)
    assert realised(router, test) > test.score.mean(axis=0).max() + 0.2
    assert np.allclose(router.estimate(test.queries).quality.sum(axis=1), 1)
