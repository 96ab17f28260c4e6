"""llmrank: its hybrid loss, what its features are worth, and the oracle's utility."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import load_router
from outcomes.metrics import chosen
from outcomes.networks import softmax
from outcomes.prompt_features import NAMES
from outcomes.proxy_solver import SIGNALS
from outcomes.table import OutcomeTable
from protocol.errors import ArtefactMismatch
from protocol.routing import Queries
from routers.llmrank import LlmRank, slope, utilities
from routers.policy import Utility
from tests.language_models import tiny_lm
from tests.routers.recorded import random_table, realised


def marked_table(n: int = 400, seed: int = 0) -> OutcomeTable:
    """The coder is right where there is code, the other where there is none; words are noise."""
    rng = np.random.default_rng(seed)
    code = np.arange(n) % 2 == 0
    words = np.array(["apple", "table", "window", "garden", "letter"])
    texts = [
        f"{' '.join(rng.choice(words, 6))} {i} {'```x```' if is_code else 'please'}"
        for i, is_code in enumerate(code)
    ]
    right = np.stack([np.where(code, 0.95, 0.2), np.where(code, 0.2, 0.95)], axis=1)
    score = (rng.random((n, 2)) < right).astype(float)
    return OutcomeTable.of_matrices(["coder", "other"], texts, score, np.tile([2e-6, 1e-6], (n, 1)))


def test_gradient_is_the_derivative() -> None:
    """Of (ŝ − u)² averaged over models plus w·KL(softmax(u/τ) ‖ softmax(ŝ/τ)); 0 at ŝ = u and for unknown cells."""
    rng = np.random.default_rng(0)
    out, utility = rng.normal(size=(1, 4)), rng.random((1, 4))

    def loss(values: np.ndarray) -> float:
        wanted, log = softmax(utility / 0.3), np.log(softmax(values / 0.3))
        return float(((values - utility) ** 2).mean() + 0.7 * (wanted * (np.log(wanted) - log)).sum())

    by_hand = [(loss(out + h) - loss(out - h)) / 2e-6 for h in 1e-6 * np.eye(4)[:, None]]
    assert slope(out, utility, 0.3, 0.7)[0] == pytest.approx(by_hand, abs=1e-6)
    assert np.abs(slope(utility, utility, 0.3, 0.7)).max() < 1e-12
    utility[0, 1] = np.nan
    with_gap = slope(out, utility, 0.3, 0.7)[0]
    assert with_gap[1] == 0
    assert np.allclose(with_gap[[0, 2, 3]], slope(out[:, [0, 2, 3]], utility[:, [0, 2, 3]], 0.3, 0.7)[0])


def test_importance_names_what_matters(tmp_path: Path) -> None:
    """Where code decides who is right, shuffling the marks of code costs the most, and it routes well; a feature that
    never varied in training changes nothing."""
    train, test = marked_table(), marked_table(seed=1)
    router = LlmRank().fit(train)
    assert realised(router, test) > test.score.mean(axis=0).max() + 0.2
    named = list(router.importance(test))
    assert named[0] in ("task: code", "characters", "punctuation", "word length", "distinct words")
    assert "task: code" in named[:3]
    router.save(tmp_path)
    loaded = load_router(tmp_path)[1]
    assert isinstance(loaded, LlmRank)
    assert list(loaded.importance(test)) == named
    unvarying = NAMES.index("blanks")
    assert router.scaling_[1, unvarying] == 0
    asked = router.estimate(Queries(["apple ____", "apple"])).quality
    shapes = np.abs(asked[0] - asked[1]).max()
    router.scaling_[0, unvarying] += 1e6
    assert np.abs(np.diff(router.estimate(Queries(["apple ____", "apple"])).quality, axis=0)).max() == shapes


def test_price_makes_a_utility() -> None:
    """Utility is s − λ·cost over the dearest model's mean; unknown costs are means; λ = 0 is the score."""
    score, cost = np.array([[1.0, 0.0], [1.0, np.nan]]), np.array([[4.0, 1.0], [np.nan, 1.0]])
    assert utilities(score, cost, 0.0) is score
    assert np.allclose(utilities(score, cost, 0.5), [[0.5, -0.125], [0.5, np.nan]], equal_nan=True)
    table = marked_table()
    assert realised(LlmRank(price=0.5).fit(table), table) < realised(LlmRank().fit(table), table) + 1e-9
    costs = [
        chosen(
            table.cost_usd, Utility().choose(LlmRank(price=price).fit(table).estimate(table.queries))
        ).mean()
        for price in (0.0, 0.5, 3.0)
    ]
    assert costs == sorted(costs, reverse=True)
    assert np.array_equal(
        utilities(random_table(9).score, np.full((9, 3), np.nan), 1.0), random_table(9).score
    )


def test_a_proxy_solver_adds_its_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its signals stand behind the rules' features and have an importance; who serves the artefact needs the same
    weights of that name."""
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path))
    tiny_lm(tmp_path / "weights" / "tiny")
    table = marked_table(60)
    router = LlmRank(solver=str(tmp_path / "weights" / "tiny"), epochs=2).fit(table)
    assert router.features(table.queries.texts).shape == (60, len(NAMES) + len(SIGNALS))
    assert set(SIGNALS) < set(router.importance(table))
    router.save(tmp_path / "router")
    loaded = load_router(tmp_path / "router")[1]
    assert np.allclose(
        loaded.estimate(table.queries).quality, router.estimate(table.queries).quality, rtol=1e-5
    )
    tiny_lm(tmp_path / "weights" / "tiny", seed=1)
    with pytest.raises(ArtefactMismatch, match="another tiny"):
        load_router(tmp_path / "router")


@pytest.mark.requires("data")
def test_share_of_oracle_utility(llmrouter: tuple[OutcomeTable, OutcomeTable]) -> None:
    """With λ = 0 utilities are scores, not negative, and the share of the oracle's sum is defined: above that of the
    best single model chosen on the training queries."""
    train, test = llmrouter
    oracle = np.nanmax(test.score, axis=1).sum()
    best = int(np.nanmean(train.score, axis=0).argmax())
    share = realised(LlmRank().fit(train), test) * len(test) / oracle
    assert share > np.nanmean(test.score[:, best]) * len(test) / oracle
