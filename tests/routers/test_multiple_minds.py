"""multiple-minds: its limits, and the ordering that the paper reports."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from outcomes.metrics import best_single, oracle
from outcomes.table import OutcomeTable
from protocol.routing import Queries
from routers.multiple_minds import MultipleMinds, cautious_choice
from routers.policy import Utility
from tests.contracts import router_checks
from tests.encoders import QUICK, tiny_encoder
from tests.routers.recorded import random_table, realised, worded_table

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


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> partial[MultipleMinds]:
    """The classifier from a tiny start."""
    start = tiny_encoder(tmp_path_factory.mktemp("tiny"))
    return partial(MultipleMinds, router="classifier", start=str(start))


@pytest.mark.requires("torch")
@pytest.mark.parametrize("check", router_checks.CHECKS, ids=lambda check: check.__name__)
def test_the_classifier_keeps_the_contract(check, classifier: partial[MultipleMinds], tmp_path: Path) -> None:
    """The contract suite runs the default, the clusters; this is the same for the classifier."""
    check(partial(classifier, epochs=1, batch=24), tmp_path)


@pytest.mark.requires("torch")
def test_the_classifier_learns_who_can(classifier: partial[MultipleMinds]) -> None:
    """Where one word tells which model can answer, ArgMax nearly always asks that model; the Random policy agrees
    where it is sure; the members are the labelled ones."""
    router, test = classifier(**QUICK).fit(worded_table(300)), worded_table(200, seed=1)
    assert realised(router, test) > test.score.mean(axis=0).max() + 0.2
    confidence = router.estimate(test.queries).quality
    sure = confidence.max(axis=1) > 0.6
    assert sure.mean() > 0.5
    assert (cautious_choice(confidence) == confidence.argmax(axis=1))[sure].all()
    assert (router.members(test.queries) == (confidence >= 0.5))[sure].all()


def test_the_random_policy_stays_among_three() -> None:
    """Where no confidence is above 0.6 each of the three surest is drawn, and nobody else."""
    drawn = cautious_choice(np.tile([0.1, 0.5, 0.4, 0.2, 0.3], (300, 1)))
    assert set(drawn) == {1, 2, 4}
