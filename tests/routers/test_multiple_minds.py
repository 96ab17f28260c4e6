"""multiple-minds: its limits, and the ordering that the paper reports."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.metrics import best_single, oracle
from outcomes.table import OutcomeTable
from protocol.routing import Queries
from routers.multiple_minds import MultipleMinds
from routers.policy import Utility
from tests.routers.recorded import random_table, realised

WORDS = (("river", "stone"), ("sum", "digits"))


def _worded(n: int = 200) -> OutcomeTable:
    """Two kinds of texts, each solved by one of two models."""
    rng = np.random.default_rng(0)
    kind = np.arange(n) % 2
    texts = [f"{' '.join(rng.permutation(WORDS[k]))} of case {i}" for i, k in enumerate(kind)]
    score = np.stack([kind == 0, kind == 1], axis=1).astype(float)
    return OutcomeTable.of_matrices(["rivers", "sums"], texts, score)


def test_limits() -> None:
    """One cluster is the best single model; TH = 0 keeps all, TH above 1 only the best."""
    table = random_table()
    one = MultipleMinds(clusters=1).fit(table)
    assert set(Utility().choose(one.estimate(table.queries))) == {best_single(table.score)}
    assert MultipleMinds(threshold=0.0).fit(table).members(table.queries).all()
    alone = MultipleMinds(clusters=1, threshold=1.1).fit(table).members(table.queries)
    assert (alone.sum(axis=1) == 1).all()


def test_words_tell_the_clusters() -> None:
    """Without any embedding, texts go to the model that solves texts of their words."""
    table = _worded()
    router = MultipleMinds(clusters=2).fit(table)
    assert realised(router, table) == pytest.approx(1.0)
    assert router.members(table.queries).sum() == len(table)


def test_unknown_words_are_no_error() -> None:
    """A text without any known word gets some cluster's estimate."""
    estimate = MultipleMinds().fit(_worded()).estimate(Queries(["zzz", ""]))
    assert np.isfinite(estimate.quality).all()


def test_the_papers_ordering(llmrouter: tuple[OutcomeTable, OutcomeTable]) -> None:
    """On held-out queries: oracle far above the best single model, the clusters above random."""
    train, test = llmrouter
    score = realised(MultipleMinds().fit(train), test)
    single = test.score.mean(axis=0).max()
    print(f"clusters {score:.3f}, best single {single:.3f}, random {test.score.mean():.3f}")
    assert oracle(test.score).mean() > single + 0.1
    assert score > test.score.mean() + 0.1
