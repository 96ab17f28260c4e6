"""routellm-bert: its classes and win rate, pools of more than two, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.metrics import deferral_curve
from outcomes.networks import softmax
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from routers.routellm_bert import RouteLlmBert, battle_classes, ranked_pairs, win_rates
from tests.encoders import QUICK, tiny_encoder
from tests.routers.recorded import worded_table


def test_win_rate_laws() -> None:
    """W = softmax[0] of each pair; a constant on a pair's logits leaves it; a heavier tie lowers it."""
    logits = np.random.default_rng(0).normal(size=(5, 6))
    w = win_rates(logits)
    assert np.allclose(w[:, 0], softmax(logits[:, :3])[:, 0])
    assert np.allclose(w[:, 1], softmax(logits[:, 3:])[:, 0])
    assert np.allclose(win_rates(logits + np.repeat([7.0, -3.0], 3)), w)
    tied = logits + np.eye(6)[1]
    assert (win_rates(tied)[:, 0] < w[:, 0]).all()
    assert np.array_equal(win_rates(tied)[:, 1], w[:, 1])


def test_battle_classes() -> None:
    """Strong wins, tie, weak wins, in that order; the strong one has the higher mean; unknown scores are no battle."""
    score = np.array([[0.0, 1.0], [1, 1], [1, 0], [0, 1], [np.nan, 1]])
    pairs = ranked_pairs(score, "routellm-bert")
    assert pairs.tolist() == [[1, 0]]
    ends = battle_classes(score, pairs)[:, 0]
    assert ends[:4].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert np.isnan(ends[4]).all()
    with pytest.raises(MethodError, match="one"):
        ranked_pairs(score[:, :1], "routellm-bert")


@pytest.mark.requires("torch")
def test_it_learns_who_needs_the_strong_model(tmp_path: Path) -> None:
    """One word tells where the weak model fails: APGR far above 0.5, and the strong model's quality is w itself."""
    start = str(tiny_encoder(tmp_path))
    train, test = _pair(300, 0), _pair(200, 1)
    router = RouteLlmBert(start=start, **QUICK).fit(train)
    quality = router.estimate(test.queries).quality
    assert np.allclose(quality.sum(axis=1), 1)
    assert np.allclose(quality[:, 0], win_rates(router.encoder_(test.queries.texts))[:, 0])
    apgr = deferral_curve(quality[:, 0] - quality[:, 1], test.score[:, 1], test.score[:, 0]).apgr()
    assert apgr > 0.65, "the best that can be had here is about 0.75"


def _pair(n: int, seed: int) -> OutcomeTable:
    """A strong model that is right nearly always, and one that is right on poems only."""
    table = worded_table(n, seed)
    strong = (np.random.default_rng(seed).random(n) < 0.95).astype(float)
    score = np.stack([strong, table.score[:, 2]], axis=1)
    return OutcomeTable.of_matrices(["strong", "weak"], table.queries.texts, score, table.cost_usd[:, 1:])
