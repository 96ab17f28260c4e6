"""Fitting thresholds and the card of a cascade."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import orjson
import pytest

from cascades.artefact import load_cascade, save_cascade
from cascades.base import Rule, Shown
from cascades.calibrate import Objective, calibrate, evaluate, fit
from cascades.simulator import simulate
from cascades.strategy import CascadeStrategy
from cascades.token_uncertainty import METHOD, TokenUncertainty
from outcomes.metrics import deferral_curve
from outcomes.table import OutcomeTable
from protocol.errors import ArtefactMismatch, MethodError
from protocol.settings import Cascade

STAGES = ("small", "large")


def outcomes(n: int = 400, *, seed: int = 0) -> OutcomeTable:
    """A pool in which the small model is right when sure, and the large one, ten times dearer, mostly."""
    rng = np.random.default_rng(seed)
    doubt = rng.uniform(0.05, 3.0, n)
    right = np.stack([rng.random(n) < np.exp(-doubt), rng.random(n) < 0.8], axis=1).astype(float)
    table = OutcomeTable.of_matrices(
        STAGES, [f"question {i}" for i in range(n)], right, np.tile([1e-6, 1e-5], (n, 1))
    )
    logprobs = np.full((n, 2), None)
    for i in range(n):
        logprobs[i, 0] = tuple(-doubt[i] * rng.uniform(0.5, 1.5, 12))
    return replace(table, logprobs=logprobs, response=np.full((n, 2), "text"))


TABLE = outcomes()
SCORES = np.array([[TokenUncertainty().score(Shown("", "", cell)) for cell in TABLE.logprobs[:, 0]]]).T


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_share_is_met(share: float) -> None:
    """A target share is met as nearly as the scores allow, stage by stage."""
    rule = fit(SCORES, TABLE.score, TABLE.cost_usd, Objective(share=share))
    assert simulate(rule, SCORES, TABLE.score, TABLE.cost_usd).deferred(0) == pytest.approx(
        share, abs=1 / len(TABLE)
    )


def test_share_counts_what_reaches_a_stage() -> None:
    """With three stages the share is of the queries that arrive at each."""
    rng = np.random.default_rng(0)
    scores, matrix = rng.random((300, 2)), np.ones((300, 3))
    done = simulate(fit(scores, matrix, matrix, Objective(share=0.5)), scores, matrix, matrix)
    assert done.deferred(0) == pytest.approx(0.5, abs=0.01)
    assert done.deferred(1) == pytest.approx(0.25, abs=0.01)


def test_budget_is_kept_and_used() -> None:
    """The mean cost stays within the budget; a larger budget never scores less."""
    best = -1.0
    for budget in (1e-6, 3e-6, 6e-6, 2e-5):
        rule = fit(SCORES, TABLE.score, TABLE.cost_usd, Objective(max_cost_usd=budget))
        done = simulate(rule, SCORES, TABLE.score, TABLE.cost_usd)
        assert done.cost_usd.mean() <= budget * (1 + 1e-9)
        assert done.quality.mean() >= best
        best = done.quality.mean()
    assert best > max(TABLE.score.mean(axis=0))


def test_a_budget_below_the_first_stage_is_refused() -> None:
    """When even the cheapest rule is too dear, that is said, with its cost."""
    with pytest.raises(MethodError, match="first stage alone"):
        fit(SCORES, TABLE.score, TABLE.cost_usd, Objective(max_cost_usd=1e-9))


def test_worth_trades_quality_for_cost() -> None:
    """A worthless answer is never deferred for; the dearer a right answer, the more is deferred."""
    shares = [
        simulate(
            fit(SCORES, TABLE.score, TABLE.cost_usd, Objective(worth_usd=worth)),
            SCORES,
            TABLE.score,
            TABLE.cost_usd,
        ).deferred(0)
        for worth in (0.0, 1.5e-5, 1.0)
    ]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[2] > 0.3


@pytest.mark.parametrize(
    "given", [{}, {"share": 0.2, "worth_usd": 1.0}, {"share": 1.2}, {"max_cost_usd": -1.0}]
)
def test_one_aim_at_a_time(given: dict[str, float]) -> None:
    """No aim, two aims, or one out of range are refused."""
    with pytest.raises(MethodError, match="exactly one"):
        Objective(**given)


def test_card_compares_with_what_matters() -> None:
    """The card, on held-out queries, has the cascade beside each stage, chance and oracle."""
    rule, card = calibrate(TABLE, STAGES, TokenUncertainty(), Objective(share=0.4))
    rows = {row["name"]: row for row in card["rows"]}
    assert list(rows) == ["cascade", "small", "large", "random", "oracle"]
    assert card["fitted_on"] + card["queries"] == len(TABLE)
    assert card["thresholds"] == list(rule.thresholds)
    assert rows["random"]["score"] < rows["cascade"]["score"] < rows["oracle"]["score"]
    for row in rows.values():
        assert row["score_low"] <= row["score"] <= row["score_high"]
    assert card["gain_over_random"][1] > 0
    assert rows["random"]["cost_usd"] == pytest.approx(rows["cascade"]["cost_usd"])
    assert card["auc_df_random"] < card["auc_df"] < card["auc_df_oracle"]
    orjson.dumps(card)


def test_auc_df_is_the_area_under_simulated_thresholds() -> None:
    """The deferral curve of the card is what sweeping the simulator over every threshold gives."""
    table = TABLE.take(slice(0, 60))
    card = evaluate(Rule((0.0,)), table, STAGES, TokenUncertainty())
    sweep = [-math.inf, *np.unique(SCORES[:60]), math.inf]
    runs = [simulate(Rule((float(t),)), SCORES[:60], table.score, table.cost_usd) for t in sweep]
    area = np.trapezoid([run.quality.mean() for run in runs], [run.deferred(0) for run in runs])
    assert card["auc_df"] == pytest.approx(float(area), rel=1e-9)


def test_monotone_changes_leave_the_curve() -> None:
    """Shifting and scaling a scorer leaves its deferral curve unchanged."""
    weak, strong = TABLE.score.T
    plain, moved = (deferral_curve(unsure, weak, strong) for unsure in (-SCORES[:, 0], -SCORES[:, 0] * 7 + 3))
    assert np.allclose(plain.quality, moved.quality)
    assert np.allclose(plain.fraction, moved.fraction)


def test_accept_never_is_reported_as_text() -> None:
    """Infinite thresholds, which JSON lacks, are words in the card."""
    card = evaluate(Rule((math.inf,)), TABLE, STAGES, TokenUncertainty())
    assert card["thresholds"] == ["inf"]
    assert card["deferred"] == [1.0]


def test_a_table_without_logprobs_is_refused() -> None:
    """Where no answer of a stage can be judged, the remedy is said."""
    blind = replace(TABLE, logprobs=np.full((len(TABLE), 2), None))
    with pytest.raises(MethodError, match="log-probabilities"):
        calibrate(blind, STAGES, TokenUncertainty(), Objective(share=0.5))


def test_a_stage_the_table_lacks_is_named() -> None:
    """A stage that was not collected is an error naming what there is."""
    with pytest.raises(MethodError, match="huge"):
        calibrate(TABLE, ("small", "huge"), TokenUncertainty(), Objective(share=0.5))


def test_artefact_round_trip(tmp_path) -> None:
    """A saved cascade loads with the same scorer, thresholds and stages, infinite thresholds included."""
    for rule in (Rule((-0.75,)), Rule((math.inf,))):
        scorer = TokenUncertainty("chow-quantile", 0.1)
        save_cascade(tmp_path, METHOD, STAGES, scorer, rule, {"metrics": {"queries": 1}})
        method, found, loaded, manifest = load_cascade(tmp_path, "token-uncertainty", STAGES)
        assert (method, loaded, found.parameters) == (METHOD, rule, scorer.parameters)
        assert manifest.metrics == {"queries": 1}


def test_artefact_of_other_stages_is_refused(tmp_path) -> None:
    """Thresholds fitted for other models, or the same in another order, do not load."""
    save_cascade(tmp_path, METHOD, STAGES, TokenUncertainty(), Rule((-1.0,)), {})
    with pytest.raises(ArtefactMismatch, match="small → large"):
        load_cascade(tmp_path, "token-uncertainty", STAGES[::-1])


def test_damaged_artefacts_are_refused(tmp_path) -> None:
    """NaN thresholds, or parameters the scorer does not take, are a `MethodError`."""
    save_cascade(tmp_path, METHOD, STAGES, TokenUncertainty(), Rule((-1.0,)), {})
    manifest = orjson.loads((tmp_path / "manifest.json").read_bytes())
    for parameters in ({}, {"scorer": {"variant": "chow-median"}}, {"scorer": {"colour": 1}}):
        (tmp_path / "manifest.json").write_bytes(orjson.dumps({**manifest, "parameters": parameters}))
        with pytest.raises(MethodError):
            load_cascade(tmp_path, "token-uncertainty", STAGES)


def test_the_strategy_loads_its_artefact(tmp_path) -> None:
    """A config section becomes a cascade with the calibrated thresholds."""
    save_cascade(tmp_path, METHOD, STAGES, TokenUncertainty("chow-sum"), Rule((-4.0,)), {})
    strategy = CascadeStrategy.from_settings(Cascade(stages=STAGES, artefact=tmp_path, method="chow-sum"))
    assert (strategy.stages, strategy.rule, strategy.method) == (STAGES, Rule((-4.0,)), "token-uncertainty")
    assert strategy.scorer.parameters["variant"] == "chow-sum"
