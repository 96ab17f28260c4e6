"""Comparing methods: its figures, its refusals, and the controls that make it trusted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import pytest

from outcomes.compare import compare, complete, permuted
from outcomes.metrics import oracle
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from protocol.methods import load_method, methods
from protocol.routing import Estimate, Outcomes, Queries
from routers.blending import Blending
from routers.knn_router import KnnRouter
from tests.encoders import QUICK, tiny_encoder
from tests.routers.recorded import random_table, topical_table, worded_table

ALL = {
    method.id: load_method(method)
    for method in methods("router")
    if not method.needs & {"encoder", "language-model"}
}
ENCODERS = {method.id: load_method(method) for method in methods("router") if "encoder" in method.needs}


class Peeking(KnnRouter):
    """Looks up the answers of the very queries it is asked."""

    def __init__(self, answers: OutcomeTable) -> None:
        super().__init__(5)
        self.answers = dict(zip(answers.queries.texts, answers.score, strict=True))

    def estimate(self, queries: Queries) -> Estimate:
        estimate = super().estimate(queries)
        quality = np.array([self.answers[text] for text in queries.texts])
        return Estimate(estimate.models, quality, estimate.cost_usd)


class First(Blending):
    """Always the first model."""

    def fit(self, outcomes: Outcomes) -> Self:
        return super().fit(outcomes)

    def estimate(self, queries: Queries) -> Estimate:
        estimate = super().estimate(queries)
        quality = np.tile([1.0, *([0.0] * (len(estimate.models) - 1))], (len(queries), 1))
        return Estimate(estimate.models, quality, estimate.cost_usd)


def test_rows_are_what_they_say() -> None:
    """A router that always asks one model has that model's score; the oracle closes the gap."""
    train, test = topical_table(), topical_table(200, seed=1)
    found = compare(train, test, {"first": First, "knn": KnnRouter})
    rows = {row.name: row for row in (*found.baselines, *found.routers)}
    assert rows["first"].score.mean == pytest.approx(test.score[:, 0].mean())
    assert rows["first"].score == rows["only m0"].score
    assert rows["oracle"].gap == pytest.approx(1)
    assert rows["oracle"].score.mean == pytest.approx(oracle(test.score).mean())
    assert rows["random"].score.mean == pytest.approx(test.score.mean())
    assert rows["knn"].gain.low > 0.2, "topics are easy"
    assert rows["best of each task, chosen on train"].gain.low > 0.2
    assert rows["knn"].aiq > found.aiq_singles
    assert rows["knn"].artefact_bytes > 0
    assert rows["knn"].calibration < 0.15
    assert found.agreement[0][0] == 1
    assert found.agreement[0][1] == found.agreement[1][0] < 0.6


def test_two_models_have_strong_weak_figures() -> None:
    """APGR and CPT are there for a pair and absent for more."""
    train, test = (topical_table(300, seed=s, m=2) for s in (0, 1))
    row = compare(train, test, {"knn": KnnRouter}).routers[0]
    assert row.apgr > 0.8
    assert 0 < row.cpt50 < row.cpt80 <= 1
    assert compare(topical_table(), topical_table(100, 1), {"first": First}).routers[0].apgr is None


def test_twins_are_named() -> None:
    """Two routers that choose the same model everywhere are a pair to explain."""
    found = compare(topical_table(), topical_table(100, seed=1), {"a": First, "b": First, "c": KnnRouter})
    assert found.alike() == [("a", "b", 1.0)]


def test_tables_that_do_not_fit_are_refused() -> None:
    """Copies of training queries, other models, unknown cells, nothing to test on."""
    table = random_table()
    with pytest.raises(MethodError, match="too good"):
        compare(table, table.take(slice(0, 5)), {"first": First})
    with pytest.raises(MethodError, match="test has"):
        compare(table, random_table(20, 2, seed=1), {"first": First})
    with pytest.raises(MethodError, match="too few"):
        compare(table, table.take([]), {"first": First})
    holed = random_table(20, seed=1)
    holed.score[3, 1] = np.nan
    with pytest.raises(MethodError, match="unknown"):
        compare(table, holed, {"first": First})
    assert len(complete(holed)) == 19
    holed.score[:10, 1] = np.nan
    assert complete(holed).models == ("m0", "m2")
    with pytest.raises(MethodError, match="two models"):
        complete(holed.only(("m0", "m1")))


def test_nothing_is_learnt_from_permuted_outcomes() -> None:
    """Trained and tested on queries with each other's outcomes, no method beats the best single model (one-sided
    97.5 %); on the true ones those that look at the query do."""
    train, test = topical_table(600), topical_table(600, seed=1)
    shuffled = compare(permuted(train), permuted(test, 1), ALL)
    assert all(row.gain.low <= 0 for row in shuffled.routers), [
        row.name for row in shuffled.routers if row.gain.low > 0
    ]
    true = {row.name: row for row in compare(train, test, ALL).routers}
    blind = {"blending", "pickllm", "multiple-minds", "llmrank"}  # these texts' words tell nothing
    assert {name for name, row in true.items() if row.gain.low > 0} == set(ALL) - blind


@pytest.mark.requires("torch")
def test_encoders_learn_nothing_from_permuted_outcomes(tmp_path: Path) -> None:
    """The same control for methods that read words, from a tiny start; on true outcomes they all beat the best single
    model, but for hybrid-llm, whose large model is never worse than good enough."""
    start = str(tiny_encoder(tmp_path))
    makers = {name: partial(kind, start=start, **QUICK) for name, kind in ENCODERS.items()}
    train, test = worded_table(400), worded_table(300, seed=1)
    shuffled = compare(permuted(train), permuted(test, 1), makers)
    assert all(row.gain.low <= 0 for row in shuffled.routers), shuffled.routers
    true = compare(train, test, makers).routers
    assert {row.name for row in true if row.gain.low > 0} == set(ENCODERS) - {"hybrid-llm"}


def test_a_method_that_peeks_is_caught() -> None:
    """On permuted outcomes it still beats the best single model, which no honest method can."""
    train, test = permuted(topical_table(600)), permuted(topical_table(600, seed=1), 1)
    found = compare(train, test, {"peeking": lambda: Peeking(test), "knn": KnnRouter})
    rows = {row.name: row for row in found.routers}
    assert rows["peeking"].gain.low > 0.1
    assert rows["knn"].gain.low <= 0
