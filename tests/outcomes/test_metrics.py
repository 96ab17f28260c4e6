"""Metrics: the cards' numbers, and the laws any choice obeys."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest

from outcomes.metrics import (
    aiq_code,
    aiq_paper,
    best_single,
    cheapest_right,
    deferral_curve,
    hull,
    oracle,
    paired_bootstrap,
)
from outcomes.table import read_table

POINTS = [(1, 0.4), (2, 0.7), (3, 0.6), (5, 0.8), (4, 0.5), (6, 0.75)]


def test_hull_and_aiq_of_the_card() -> None:
    """RouterBench's example: the hull's heights at each cost, area 3.6, AIQ .600 by the code and .720 by
    the range."""
    curve = hull(POINTS)
    assert np.allclose(np.interp([1, 2, 3, 4, 5], *curve.T), [0.4, 0.7, 0.7 + 0.1 / 3, 0.7 + 0.2 / 3, 0.8])
    assert curve[-1].tolist() == [5, 0.8]
    assert aiq_code(POINTS, 6) == pytest.approx(0.600)
    assert aiq_paper(POINTS, 1, 6) == pytest.approx(0.720)


def test_a_falling_curve_is_its_first_point() -> None:
    """Paying more for less is never on the hull."""
    assert hull([(1, 0.9), (2, 0.7), (3, 0.5)]).tolist() == [[1, 0.9]]


def test_hull_keeps_the_best_of_equal_costs() -> None:
    """Of several points of one cost the best counts; two points and one point are curves too."""
    assert hull([(1, 0.2), (1, 0.5), (1, 0.3)]).tolist() == [[1, 0.5]]
    assert hull([(2, 0.5), (1, 0.2)]).tolist() == [[1, 0.2], [2, 0.5]]


def test_hull_is_concave_and_bounds_every_point() -> None:
    """On random points the hull rises, bends down, and nothing lies above it; dominated points never change
    AIQ."""
    rng = np.random.default_rng(0)
    for _ in range(100):
        points = rng.random((7, 2)) + np.array([0.1, 0])
        curve = hull(points)
        slopes = np.diff(curve[:, 1]) / np.diff(curve[:, 0])
        assert (slopes > 0).all()
        assert (np.diff(slopes) < 1e-12).all()
        assert (np.interp(points[:, 0], *curve.T) >= points[:, 1] - 1e-12).all()
        worse = points[:1] + np.array([0.05, -0.05])
        assert aiq_paper(np.concatenate([points, worse]), 0.1, 2) == pytest.approx(aiq_paper(points, 0.1, 2))


def test_left_of_its_first_point_the_papers_curve_joins_the_null_router() -> None:
    """Half of the money of a single point buys half of its quality: mix it with answering nothing."""
    assert aiq_paper([(2, 0.8)], 0, 2) == pytest.approx(0.4)
    assert aiq_paper([(2, 0.8)], 1, 2) == pytest.approx(0.6)


def test_oracles_bound_every_choice() -> None:
    """No choice beats the oracle; the cheapest-right oracle scores the same and asks nobody where all
    fail."""
    score = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0], [0.5, 0.2, 0.5]])
    cost = np.array([[3.0, 2, 1]] * 4)
    assert oracle(score).tolist() == [1, 1, 0, 0.5]
    best, spent = cheapest_right(score, cost)
    assert best.tolist() == [1, 1, 0, 0.5]
    assert spent.tolist() == [2, 2, 0, 1]
    assert best_single(score) == 1


def test_random_routers_recover_the_share_they_call() -> None:
    """A router that knows nothing has APGR ≈ 0.5 and CPT(x) ≈ x."""
    rng = np.random.default_rng(0)
    weak, strong = (rng.random(20_000) < 0.5).astype(float), (rng.random(20_000) < 0.9).astype(float)
    curve = deferral_curve(rng.random(20_000), weak, strong)
    assert curve.apgr() == pytest.approx(0.5, abs=0.02)
    for share in (0.2, 0.5, 0.8):
        assert curve.cpt(share) == pytest.approx(share, abs=0.03)


def test_oracle_router_follows_the_closed_form() -> None:
    """Calling the strong model first where only it is right: APGR = (b − b²/2)/gap in the limit, above 1
    (RouteLLM's MMLU
    shares: 1.297)."""
    n = 40_000
    both, strong_only, weak_only = 0.62759, 0.17782, 0.05286
    kind = np.random.default_rng(0).choice(
        4, n, p=[both, strong_only, weak_only, 1 - both - strong_only - weak_only]
    )
    weak, strong = np.isin(kind, [0, 2]).astype(float), np.isin(kind, [0, 1]).astype(float)
    # Ties broken at random, so that the curve has a point for every call.
    curve = deferral_curve(
        (kind == 1) * 2.0 - (kind == 2) * 2 + np.random.default_rng(1).random(n), weak, strong
    )
    b, w = (kind == 1).mean(), (kind == 2).mean()
    # The closed form counts b gained early and none lost; calling the weak-only ones last loses w over the
    # last w calls.
    expected = (b - b**2 / 2 - w**2 / 2) / (b - w)
    assert curve.apgr() == pytest.approx(expected, abs=0.002)
    assert curve.apgr() > 1.2


def test_decile_thresholds_are_the_authors() -> None:
    """With `thresholds=10` the curve has 11 points, the last threshold exclusive, so that no call and all
    calls are there."""
    rng = np.random.default_rng(0)
    curve = deferral_curve(rng.random(1000), np.zeros(1000), np.ones(1000), thresholds=10)
    assert curve.fraction == pytest.approx(np.linspace(0, 1, 11))
    assert curve.apgr() == pytest.approx(0.5)


def test_first_crossing_differs_from_interpolation_on_a_curve_that_dips() -> None:
    """CPT is the first crossing; the code's interpolation needs a rising curve and is kept beside it."""
    win = np.array([3.0, 2, 1, 0])
    curve = deferral_curve(win, np.array([0.0, 1, 0, 0]), np.array([1.0, 0, 0, 1]))
    assert curve.fraction.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.cpt(0.5) == pytest.approx(0.125)
    assert math.isnan(curve.cpt(2.0))
    rising = deferral_curve(win, np.zeros(4), np.ones(4))
    assert rising.cpt(0.3) == pytest.approx(rising.cpt_code(0.3)) == pytest.approx(0.3)


def test_bootstrap_covers_and_pairs() -> None:
    """Intervals hold the mean, are reproducible, and a difference that is the same for every query has no
    width."""
    rng = np.random.default_rng(0)
    hard = rng.random(300)
    values = np.stack([hard, hard + 0.1, (hard + 0.1) - hard], axis=1)
    first, second, gap = paired_bootstrap(values)
    assert first.low < first.mean < first.high
    assert first.high - first.low == pytest.approx(4 * hard.std() / np.sqrt(300), rel=0.1)
    assert gap.high - gap.low < 1e-9
    assert second.mean - first.mean == pytest.approx(gap.mean)
    assert paired_bootstrap(values) == [first, second, gap]


def test_bootstrap_leaves_missing_values_out() -> None:
    """NaN do not count, and a column without any value has no interval."""
    known, empty = paired_bootstrap(np.array([[1.0, np.nan], [np.nan, np.nan], [1.0, np.nan]]))
    assert (known.mean, known.low, known.high) == (1, 1, 1)
    assert math.isnan(empty.mean)
    assert math.isnan(empty.low)


@pytest.mark.requires("data")
@pytest.mark.parametrize(
    ("benchmark", "apgr", "limit", "cpt"),
    [("gsm8k", 1.1146, 1.133, (0.0441, 0.1102, 0.1763)), ("mmlu", 1.2684, 1.297, (0.025, 0.0625, 0.1))],
)
def test_routellm_anchors(benchmark: str, apgr: float, limit: float, cpt: tuple[float, ...]) -> None:
    """On RouteLLM's own tables an oracle router has the cards' APGR, by deciles and in the limit, and CPT
    20/50/80 % (tolerances: about a quarter of the published prompts is not in the tables at hand)."""
    table = read_table(Path(os.environ["CHORUS_DATA"]) / "routellm")
    table = table.take([name == benchmark for name in table.categories])
    strong, weak = table.only(("gpt-4-1106-preview", "mistralai/Mixtral-8x7B-Instruct-v0.1")).score.T
    win = strong - weak + 0.5 * np.random.default_rng(0).random(len(table))  # ties at random
    coarse = deferral_curve(win, weak, strong, thresholds=10)
    assert coarse.apgr() == pytest.approx(apgr, abs=0.02)
    assert deferral_curve(win, weak, strong).apgr() == pytest.approx(limit, abs=0.02)
    assert [coarse.cpt(share) for share in (0.2, 0.5, 0.8)] == pytest.approx(cpt, rel=0.05)


@pytest.mark.requires("data")
@pytest.mark.parametrize(
    ("benchmark", "weak", "strong", "either"),
    [("gsm8k", 0.63734, 0.85769, 0.92961), ("mmlu", 0.68091, 0.80587, 0.85873)],
)
def test_routellm_baseline_anchors(benchmark: str, weak: float, strong: float, either: float) -> None:
    """The two models' scores and their oracle are the card's, and a random router has APGR 0.5 and CPT 50/80 % of
    about 49 and 80 % of the calls (tolerances: about a quarter of the published prompts is not at hand)."""
    table = read_table(Path(os.environ["CHORUS_DATA"]) / "routellm")
    table = table.take([name == benchmark for name in table.categories])
    table = table.only(("mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"))
    found = (*table.score.mean(axis=0), oracle(table.score).mean())
    assert found == pytest.approx((weak, strong, either), abs=0.012)
    rng = np.random.default_rng(0)
    curves = [deferral_curve(rng.random(len(table)), *table.score.T, thresholds=10) for _ in range(10)]
    assert np.mean([curve.apgr() for curve in curves]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([curve.cpt(0.5) for curve in curves]) == pytest.approx(0.49, abs=0.03)
    assert np.mean([curve.cpt(0.8) for curve in curves]) == pytest.approx(0.8, abs=0.03)
