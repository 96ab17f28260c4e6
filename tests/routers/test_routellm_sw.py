"""routellm-sw: closed forms, the regression it stands for, its tiers, and its figure on the published tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from outcomes.metrics import deferral_curve
from outcomes.table import OutcomeTable
from protocol.routing import Queries
from routers.policy import Threshold
from routers.routellm_sw import RouteLlmSw, tiers
from tests.routers.recorded import random_table, unit


def test_equal_similarities_are_the_global_rate() -> None:
    """When every battle is as near, w is the same for all queries: (wins + ties/2) / games."""
    score = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [1, 1]])
    same = unit(np.ones((5, 4)))
    table = OutcomeTable.of_matrices(["strong", "weak"], list("abcde"), score, embeddings=same)
    estimate = RouteLlmSw().fit(table).estimate(Queries(["?"], same[:1]))
    assert estimate.quality[0] == pytest.approx([3.5 / 5, 1.5 / 5], abs=1e-3)
    assert Threshold("strong", "weak", 0.0).lead(estimate)[0] == pytest.approx(2 * 0.7 - 1, abs=1e-3)


def test_a_query_is_a_weighted_logistic_regression() -> None:
    """Doubled battles, ties once each way, weights 10·10^(s / max s), fitted by scikit-learn, give the same w."""
    from sklearn.linear_model import LogisticRegression

    table = random_table(80, 2)
    vectors = np.asarray(table.queries.embeddings, dtype=float)
    query = random_table(1, seed=5).queries
    cosine = vectors @ np.asarray(query.embeddings, dtype=float)[0]
    weights = 10 * 10 ** (cosine / cosine.max())
    labels = [[a > b if a != b else half for half in (0, 1)] for a, b in table.score]
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=5000).fit(
        np.full((160, 1), np.log(10)), np.array(labels).ravel(), sample_weight=np.repeat(weights, 2)
    )
    w = theirs.predict_proba(np.array([[np.log(10)]]))[0, 1]
    assert RouteLlmSw().fit(table).estimate(query).quality[0, 0] == pytest.approx(w, abs=1e-3)


def test_nearer_battles_weigh_more() -> None:
    """A query among battles that the weak model won is less likely to need the strong one."""
    vectors = np.repeat(np.eye(2, dtype=np.float32), 20, axis=0)
    score = np.repeat([[1.0, 0.0], [0.0, 1.0]], 20, axis=0)
    table = OutcomeTable.of_matrices(
        ["strong", "weak"], [str(i) for i in range(40)], score, embeddings=vectors
    )
    quality = RouteLlmSw().fit(table).estimate(Queries(["a", "b"], np.eye(2, dtype=np.float32))).quality[:, 0]
    assert quality[0] == pytest.approx(10 / 11, abs=1e-3), "γ = 10 against 1"
    assert quality[1] == pytest.approx(1 / 11, abs=1e-3)


def test_tiers_are_the_brute_force_optimum() -> None:
    """On up to eight models and every number of tiers, the sum of variances is the least of all contiguous cuts."""
    rng = np.random.default_rng(0)
    for n in range(1, 9):
        ratings = rng.normal(size=n)
        ranked = np.sort(ratings)[::-1]
        for groups in range(1, n + 1):
            costs = []
            for cuts in itertools.combinations(range(1, n), groups - 1):
                edges = [0, *cuts, n]
                costs.append(sum(ranked[a:b].var() for a, b in itertools.pairwise(edges)))
            found = tiers(ratings, groups)
            cost = sum(ratings[found == tier].var() for tier in range(groups))
            assert cost == pytest.approx(min(costs))
            assert len(set(found)) == groups
            assert (np.diff(found[np.argsort(-ratings)]) >= 0).all(), "a weaker model in a stronger tier"


def test_models_of_a_tier_share_a_rating() -> None:
    """With more models than tiers, those of a tier are as likely to win as each other."""
    table = random_table(100, 6)
    router = RouteLlmSw(tiers=2).fit(table)
    quality = router.estimate(table.queries).quality
    for tier in (0, 1):
        assert np.ptp(quality[:, router.tier_ == tier], axis=1).max() < 1e-12


def test_the_references_slip_shrinks() -> None:
    """`faithful` counts battles within a tier against a player at 1000, which pulls tiers together."""
    rng = np.random.default_rng(0)
    score = (rng.random((200, 4)) < [0.9, 0.85, 0.2, 0.15]).astype(float)
    vectors = unit(rng.normal(size=(200, 8)))
    table = OutcomeTable.of_matrices(list("abcd"), [str(i) for i in range(200)], score, embeddings=vectors)
    clean, slip = (
        RouteLlmSw(tiers=2, faithful=flag).fit(table).estimate(table.queries).quality
        for flag in (False, True)
    )
    assert np.ptp(slip, axis=1).mean() < np.ptp(clean, axis=1).mean()


def test_beats_random_on_the_published_tables(routellm: tuple[OutcomeTable, OutcomeTable]) -> None:
    """On held-out MMLU and GSM8K together, APGR is above a random router's 0.5."""
    train, test = routellm
    estimate = RouteLlmSw().fit(train).estimate(test.queries)
    curve = deferral_curve(estimate.quality[:, 0], test.score[:, 1], test.score[:, 0])
    print(f"APGR {curve.apgr():.3f}")
    assert curve.apgr() > 0.53
