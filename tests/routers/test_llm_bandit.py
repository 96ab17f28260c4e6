"""llm-bandit: its policy over sets, its preference, its training, and new models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import load_router
from outcomes.autograd import Value, gradients
from outcomes.irt import response_logits
from outcomes.metrics import chosen
from outcomes.networks import sigmoid
from outcomes.preference_policy import Candidates, Rollout, Table, platt, policy_logits, shares
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from routers.llm_bandit import LlmBandit
from tests.routers.recorded import random_table, realised, topical_table, unit

GRID = (0.0, 0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def trained() -> tuple[LlmBandit, OutcomeTable]:
    """A router of three models, each the expert of a topic, and a held-out table."""
    return LlmBandit(epochs=30, steps=150).fit(topical_table(600)), topical_table(400, seed=1)


def test_candidates_are_a_set(trained: tuple[LlmBandit, OutcomeTable]) -> None:
    """Permuting candidates permutes π; leaving one out is the policy over the others alone, whose chances sum to 1."""
    router, table = trained
    vectors = np.asarray(table.queries.embeddings, dtype=float)
    identities, prices = router.responses_["mean"], router.costs_
    right = sigmoid(response_logits(router.responses_, vectors, identities))
    w = np.full(len(vectors), 0.7)

    def logits(columns: list[int]) -> np.ndarray:
        there = np.ones((len(vectors), len(columns)), dtype=bool)
        some = Candidates.of(identities[columns], prices[columns], right[:, columns], there)
        return policy_logits(router.learnt_, vectors, some, w)

    assert np.allclose(logits([2, 0, 1]), logits([0, 1, 2])[:, [2, 0, 1]])
    among = router.chances(table.queries, 0.7, ["m0", "m2"])
    alone = np.exp(logits([0, 2]))
    assert np.allclose(among[:, [0, 2]], alone / alone.sum(axis=1, keepdims=True))
    assert not among[:, 1].any()
    with pytest.raises(MethodError, match="m9"):
        router.decide(table.queries, 0.0, ["m9"])


def test_preference_buys_score_or_saves_money(trained: tuple[LlmBandit, OutcomeTable]) -> None:
    """On held-out queries choices cost less and less as w grows; at w = 0 they are mostly those of the highest p̂ and
    beat every single model, at w = 2 the cheapest answers more than at 0."""
    router, table = trained
    choices = [router.decide(table.queries, w) for w in GRID]
    spent = [chosen(table.cost_usd, choice).mean() for choice in choices]
    assert spent == sorted(spent, reverse=True)
    assert spent[-1] < 0.5 * spent[0]
    assert (choices[0] == router.predicted(table.queries).argmax(axis=1)).mean() > 0.9
    assert realised(router, table) > table.score.mean(axis=0).max() + 0.2
    assert (choices[-1] == 0).mean() > (choices[0] == 0).mean()
    mixed = router.decide(table.queries, np.where(np.arange(400) % 2, 2.0, 0.0))
    assert np.array_equal(mixed, np.where(np.arange(400) % 2, choices[-1], choices[0]))


def test_reward_beside_the_greedy_rule(trained: tuple[LlmBandit, OutcomeTable]) -> None:
    """The policy earns at least 95 % of what argmax p̂ − w·c̄ earns, for every preference: s̄ − w·c̄, held out."""
    router, table = trained
    right, c = router.predicted(table.queries), router.costs_ / router.costs_.max()
    everyone = np.ones(table.score.shape, dtype=bool)
    score, cost = shares(table.score, everyone), shares(table.cost_usd, everyone)
    for w in GRID:
        earned = [
            (chosen(score, choice) - w * chosen(cost, choice)).mean()
            for choice in (router.decide(table.queries, w), (right - w * c).argmax(axis=1))
        ]
        assert earned[0] > earned[1] - 0.05 * abs(earned[1])


def test_one_step_advantages_and_a_clip() -> None:
    """Played without blending, the advantage is the scaled ωᵀ(r − V); beyond the clip the policy's slope is 0."""
    table = topical_table(80)
    vectors, logits = np.asarray(table.queries.embeddings, dtype=float), np.zeros((80, 3))
    about = Table.of(vectors, table.score, table.cost_usd, np.eye(3, 16), logits)
    router = LlmBandit(epochs=1, steps=1).fit(table)
    played = Rollout.of(router.learnt_, about, np.random.default_rng(0), 64)
    assert played.reward.shape == (64, 2)
    assert (played.reward[:, 0] >= 0).all()
    assert (played.reward[:, 1] <= 0).all()
    assert played.advantage.std() == pytest.approx(1, abs=1e-3)
    assert played.candidates.present[np.arange(64), played.action].all()
    assert played.candidates.present.sum(axis=1).min() == 2

    def slope(chance: float) -> float:
        w = {name: Value(value) for name, value in router.learnt_.items()}
        far = Rollout(
            played.vectors, played.candidates, played.preference, played.action,
            np.full(64, chance), np.ones(64), played.reward,
        )  # fmt: skip
        near = gradients(far.loss(w), [w["policy.out.weight"]])[0]
        return float(np.abs(near).max())

    assert slope(1e-6) < 0.05 * slope(1.0), "only the entropy is left"


def test_shares_and_calibration() -> None:
    """Over the highest present, 0 where all are 0; Platt's scaling finds how far the logits are to be trusted."""
    present = np.array([[True, True, False], [True, True, True]])
    assert np.allclose(
        shares(np.array([[2.0, 1.0, 9.0], [0.0, 0.0, 0.0]]), present), [[1, 0.5, 0], [0, 0, 0]]
    )
    rng = np.random.default_rng(0)
    true = rng.normal(size=(4000, 2)) * 2
    win = (rng.random(4000) < sigmoid(true[:, 0] - true[:, 1])).astype(float)
    score = np.stack([win, 1 - win], axis=1)
    a, b = platt(true, score)
    assert 0.3 < a < 1, "a cell's chance to win depends on half of the difference"
    assert abs(b) < 0.1
    assert platt(10 * true, score)[0] == pytest.approx(a / 10, rel=0.05)


def many(n: int, seed: int, m: int = 14) -> OutcomeTable:
    """Models of all levels of skill, prompts of all levels of difficulty."""
    rng = np.random.default_rng(seed)
    skill, hard = np.linspace(-2, 2, m), rng.normal(size=n)
    vectors = unit(np.stack([hard, np.ones(n), rng.normal(size=n) * 0.1], axis=1))
    score = (rng.random((n, m)) < sigmoid(2 * (skill - hard[:, None]))).astype(float)
    return OutcomeTable.of_matrices(
        [f"m{j:02}" for j in range(m)], [f"question {i} of {seed}" for i in range(n)], score, np.ones((n, m)),
        embeddings=vectors,
    )  # fmt: skip


def test_fifty_prompts_place_a_new_model(tmp_path: Path) -> None:
    """Identities fitted to 50 chosen prompts predict held-out accuracies of new models better than the average
    model does, and are kept; the policy takes the newcomer without training."""
    train, test = many(500, 0), many(400, 1)
    new = ("m01", "m06", "m12")
    old = train.only([name for name in train.models if name not in new])
    router = LlmBandit(epochs=30, steps=3).fit(old)
    probes = router.probes(train.queries, 50)
    assert len(set(probes.tolist())) == 50
    errors, ours, truth = [], [], []
    for name in new:
        larger = router.onboard(name, train.take(probes).only([name]))
        right = larger.predicted(test.queries)
        truth.append(test.score[:, test.models.index(name)].mean())
        ours.append(right[:, -1].mean())
        errors.append(abs(right[:, :-1].mean() - truth[-1]))
    assert np.abs(np.array(ours) - truth).mean() < 0.5 * np.mean(errors)
    assert ours == sorted(ours)
    larger.save(tmp_path)
    loaded = load_router(tmp_path)[1]
    assert loaded.estimate(test.queries).models == (*old.models, "m12")
    with pytest.raises(MethodError, match="already"):
        larger.onboard("m12", train.take(probes))


def test_tables_without_costs_or_with_gaps_train() -> None:
    """Unknown costs and scores keep nobody from learning; chances stay finite."""
    table = random_table(60)
    table.cost_usd[:], table.score[:20, 1] = np.nan, np.nan
    found = LlmBandit(epochs=1, steps=3).fit(table).estimate(table.queries)
    assert np.isfinite(found.quality).all()
    assert np.isnan(found.cost_usd).all()
