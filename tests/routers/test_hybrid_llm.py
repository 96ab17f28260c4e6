"""hybrid-llm: its three labels against brute force, the laws of the relaxation, and what it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from routers.hybrid_llm import HybridLlm, best_relaxation, match_share, sampled, spread
from routers.policy import Threshold
from tests.encoders import QUICK, tiny_encoder
from tests.routers.recorded import worded_table


def test_labels_equal_brute_force() -> None:
    """Pairs of samples and t* equal the double loops; m = 1 makes prob det, t = 0 trans prob."""
    rng = np.random.default_rng(0)
    small, large = np.round(rng.normal(size=(2, 30, 4)), 1)
    for t in (0.0, 0.7):
        slow = [np.mean([[a >= b - t for b in large[i]] for a in small[i]]) for i in range(30)]
        assert np.allclose(match_share(small, large, t), slow)
    y = match_share(small, large)
    assert spread(y) == pytest.approx(np.abs(y[:, None] - y[None, :]).mean())
    assert np.array_equal(match_share(small[:, :1], large[:, :1]), small[:, 0] >= large[:, 0])
    found = best_relaxation(small, large)
    widest = max(
        spread(match_share(small, large, t))
        for t in np.unique(np.maximum(large[:, None] - small[..., None], 0))
    )
    assert spread(match_share(small, large, found)) == pytest.approx(widest, abs=0.01)


def test_relaxation_laws() -> None:
    """y(t) never falls and ends at 1, without spread; binary labels spread by 2p(1 − p); unknown stays unknown."""
    rng = np.random.default_rng(1)
    small, large = rng.normal(size=(2, 40, 3))
    ladder = np.array([match_share(small, large, t) for t in np.linspace(0, 8, 50)])
    assert (np.diff(ladder, axis=0) >= 0).all()
    assert (ladder[-1] == 1).all()
    assert spread(ladder[-1]) == 0
    for p in (0.1, 0.5, 0.8):
        assert spread((np.arange(40) < 40 * p).astype(float)) == pytest.approx(2 * p * (1 - p))
    small[0, 1] = np.nan
    assert np.isnan(match_share(small, large)[0])


def test_a_score_can_stand_for_samples() -> None:
    """A share of right answers is that many ones; over all pairs the label is 1 − (1 − a)·b, as independence has it."""
    score = np.array([[0.3, 0.8], [1.0, 0.0], [np.nan, 0.5]])
    samples = sampled(score, 10)
    assert np.allclose(samples.mean(axis=2), score, equal_nan=True)
    y = match_share(samples[:, 0], samples[:, 1])
    assert np.allclose(y, [1 - 0.7 * 0.8, 1.0, np.nan], equal_nan=True)
    assert sampled(score, 1).shape == (3, 2, 1)


@pytest.mark.requires("torch")
def test_relaxation_keeps_ranking(tmp_path: Path) -> None:
    """The small model is never as good, but on poems nearly: det labels are all 0 and rank nothing, trans ranks poems
    first. The paper's point."""
    start = str(tiny_encoder(tmp_path))
    train, test = _graded(300, 0), _graded(200, 1)
    poem = np.array(["poem" in text for text in test.queries.texts])
    auc = {}
    for labels in ("det", "trans"):
        router = HybridLlm(start=start, labels=labels, **QUICK).fit(train)
        p = router.estimate(test.queries).quality[:, 1]
        auc[labels] = (p[poem][:, None] > p[~poem][None, :]).mean()
        if labels == "det":
            assert p.max() < 0.2, "labels that are all 0 were not learnt"
        else:
            assert router.relaxation_[0] > 0
    print(auc)
    assert auc["trans"] > 0.95


@pytest.mark.requires("torch")
def test_thresholds_decide_as_in_the_paper(tmp_path: Path) -> None:
    """The large model is the yardstick at quality 1, so that its lead of 1 − τ is p = τ; it can be named."""
    start, table = str(tiny_encoder(tmp_path)), _graded(80, 0)
    router = HybridLlm(start=start, epochs=1).fit(table)
    estimate = router.estimate(table.queries)
    assert (estimate.quality[:, 0] == 1).all()
    tau = float(np.quantile(estimate.quality[:, 1], 0.3))
    choice = Threshold("large", "small", 1 - tau).choose(estimate)
    clear = np.abs(estimate.quality[:, 1] - tau) > 1e-9
    assert ((choice == 1) == (estimate.quality[:, 1] >= tau))[clear].all()
    assert (
        HybridLlm(start=start, epochs=1, large="small").fit(table).estimate(table.queries).quality[:, 1] == 1
    ).all()
    for wrong in (table.only(["small"]), table):
        with pytest.raises(MethodError, match="pool"):
            HybridLlm(start=start, large="other" if wrong is table else "").fit(wrong)


def _graded(n: int, seed: int) -> OutcomeTable:
    """Graded scores: the large model at about 0.9; the small one a little below on poems, far below elsewhere."""
    table, rng = worded_table(n, seed), np.random.default_rng(seed)
    poem = np.array(["poem" in text for text in table.queries.texts])
    large = rng.uniform(0.85, 0.95, n)
    score = np.stack([large, large - np.where(poem, 0.05, 0.6) - 0.02 * rng.random(n)], axis=1)
    return OutcomeTable.of_matrices(["large", "small"], table.queries.texts, score, table.cost_usd[:, :2])
