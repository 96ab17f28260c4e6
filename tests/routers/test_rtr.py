"""rtr: pairs of model and strategy, what its networks read and learn, and its limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import load_router
from outcomes.assignment import utility_choice
from outcomes.table import OutcomeTable
from routers.forc import Forc
from routers.rtr import Rtr, _softplus_slope, pair_tags
from tests.routers.recorded import random_table, unit

PAIRS = ("small::cot", "small::direct", "large::cot", "large::direct")


def reasoning_table(n: int = 500, seed: int = 0) -> OutcomeTable:
    """Half of the queries need reasoning, which costs five times as much, and ten times for the large model."""
    rng = np.random.default_rng(seed)
    hard = np.arange(n) % 2
    centres = np.random.default_rng(5).normal(size=(2, 16))
    vectors = unit(centres[hard] + 0.4 * rng.normal(size=(n, 16)))
    right = np.array([[0.9, 0.9, 0.95, 0.95], [0.7, 0.1, 0.9, 0.3]])[hard]
    lengths = np.array([[2.0, 1.0, 2.0, 1.0], [10.0, 1.5, 20.0, 1.5]])[hard]
    cost = lengths * np.array([1e-6, 1e-6, 9e-6, 9e-6]) * rng.uniform(0.9, 1.1, (n, 4))
    score = (rng.random((n, 4)) < right).astype(float)
    return OutcomeTable.of_matrices(
        PAIRS, [f"question {i} of {seed}" for i in range(n)], score, cost, embeddings=vectors
    )


@pytest.mark.parametrize("faithful", [False, True])
def test_it_learns_when_reasoning_pays(faithful: bool) -> None:
    """At λ = 0 hard queries get a reasoning pair, and hard ones are seen to cost more; pricing money, easy ones are
    answered by the small model (for which raw lengths are not good enough)."""
    train, test = reasoning_table(), reasoning_table(300, seed=1)
    estimate = Rtr(faithful=faithful, epochs=30).fit(train).estimate(test.queries)
    hard = np.arange(300) % 2 == 1
    best = utility_choice(estimate, 0.0)
    assert np.isin(best[hard], [0, 2]).mean() > 0.95
    cot = estimate.cost_usd[:, 2]
    assert cot[hard].mean() > 4 * cot[~hard].mean()
    frugal = utility_choice(estimate, 1e4)
    assert faithful or np.isin(frugal[~hard], [0, 1]).mean() > 0.95
    assert np.array_equal(utility_choice(estimate, np.inf), estimate.cost_usd.argmin(axis=1))


def test_log_lengths_keep_every_mean() -> None:
    """Scaled back, a pair's mean estimated cost on the training queries is its mean recorded cost; squared errors of
    raw lengths care for the long ones alone and get the short ones wrong."""
    table = reasoning_table(200)
    ours, raw = (
        Rtr(faithful=faithful).fit(table).estimate(table.queries).cost_usd.mean(axis=0)
        / table.cost_usd.mean(axis=0)
        for faithful in (False, True)
    )
    assert np.allclose(ours, 1)
    assert np.abs(raw[:2] - 1).max() > 0.4


def test_one_strategy_is_a_network_a_model() -> None:
    """Without strategies and descriptions, a is the meta-model that reads a query and a model's id; λ = 0 is its
    argmax."""
    table = random_table()
    ours, theirs = Rtr().fit(table).estimate(table.queries), Forc().fit(table).estimate(table.queries)
    assert np.allclose(ours.quality, theirs.quality)
    assert np.array_equal(utility_choice(ours, 0.0), ours.quality.argmax(axis=1))


def test_the_input_is_the_papers() -> None:
    """Descriptions of model and strategy beside both ids: 2d + |models| + |strategies| columns with the query's d on
    top; pairs of one model share its part."""
    described = {name: np.full(5, i + 1.0) for i, name in enumerate(("small", "cot", "direct"))}
    tags = pair_tags(PAIRS, described)
    assert tags.shape == (4, 5 + 2 + 5 + 2)
    assert np.array_equal(tags[0, :7], [1, 1, 1, 1, 1, 0, 1])
    assert not tags[2, :5].any(), "a model without a description"
    assert np.array_equal(tags[[0, 1], :7][0], tags[1, :7])
    assert np.array_equal(tags[0, 7:], tags[2, 7:])
    table = reasoning_table(40)
    assert Rtr(described=described).fit(table).correct_.inputs == 16 + tags.shape[1]
    assert pair_tags(("a", "b"), {}).tolist() == [[1, 0], [0, 1]]


def test_descriptions_travel_in_the_artefact(tmp_path: Path) -> None:
    """Who serves the artefact needs no descriptions."""
    table = reasoning_table(40)
    router = Rtr(described={"cot": np.ones(3)}).fit(table)
    router.save(tmp_path)
    loaded = load_router(tmp_path)[1].estimate(table.queries)
    assert np.allclose(loaded.cost_usd, router.estimate(table.queries).cost_usd, rtol=1e-4)


def test_raw_lengths_have_the_gradient_of_softplus() -> None:
    """By central differences."""
    out, wanted = np.array([[-1.0], [0.3], [2.0]]), np.array([[0.5], [2.0], [1.0]])
    step = 1e-6
    squares = [(np.logaddexp(0, out + h) - wanted) ** 2 for h in (step, -step)]
    assert np.allclose(_softplus_slope(out, wanted), (squares[0] - squares[1]) / (2 * step), atol=1e-6)


def test_pairs_without_costs_cost_nobody_knows_what() -> None:
    """Unknown costs stay unknown, free models free; quality is estimated all the same."""
    table = random_table(60)
    table.cost_usd[:, 0], table.cost_usd[:, 1] = np.nan, 0.0
    estimate = Rtr().fit(table).estimate(table.queries)
    assert np.isnan(estimate.cost_usd[:, 0]).all()
    assert not estimate.cost_usd[:, 1].any()
    assert np.isfinite(estimate.quality).all()
