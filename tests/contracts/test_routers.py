"""Every registered router passes the router contract, and every check catches the fault it is meant for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from outcomes import artefact
from protocol.methods import load_method, methods
from protocol.routing import Estimate, Outcomes, Queries
from routers.knn_router import KnnRouter
from tests.conftest import requires
from tests.contracts import router_checks
from tests.encoders import tiny_encoder
from tests.language_models import tiny_lm

LM_QUICK = {"epochs": 1, "batch": 24, "layers": 1, "rank": 2}
ROUNDS = {"router-r1": {"rounds": 2, "group": 4}}

CASES = [
    pytest.param(method, check, id=f"{method.id}-{check.__name__}")
    for method in methods("router")
    for check in router_checks.CHECKS
]

QUICK = {"graphrouter": {"epochs": 4}, "radialrouter": {"epochs": 1}, "llm-bandit": {"epochs": 2, "steps": 4}}
"""Laws hold however little is learnt: settings for routers that would take seconds a fit."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A tiny encoder to start from."""
    return tiny_encoder(tmp_path_factory.mktemp("tiny-encoder"))


@pytest.fixture
def tiny_home(tmp_path_factory, monkeypatch) -> None:
    """A home whose weights are a tiny language model, named `tiny`."""
    home = tmp_path_factory.getbasetemp() / "tiny-home"
    if not home.exists():
        tiny_lm(home / "weights" / "tiny", dimensions=16, layers=1, heads=2, kv_heads=1)
    monkeypatch.setenv("CHORUS_HOME", str(home))


@pytest.mark.parametrize(("method", "check"), CASES)
def test_router_contract(method, check, tmp_path: Path, tiny: Path, tiny_home: None) -> None:
    """A registered router keeps the law; one that fine-tunes an encoder or a language model starts from a tiny one."""
    make = partial(load_method(method), **QUICK.get(method.id, {}))
    if "language-model" in method.needs:
        requires("torch")
        make = partial(make, start="tiny", **LM_QUICK, **ROUNDS.get(method.id, {}))
    if "encoder" in method.needs:
        requires("torch")
        make = partial(make, start=str(tiny), epochs=1, batch=24)
    check(make, tmp_path)


class _Broken(KnnRouter):
    """A sound router to break: what a subclass overrides is its one fault."""

    def __init__(self) -> None:
        super().__init__(10)


class _GuessesUnfitted(_Broken):
    def estimate(self, queries: Queries) -> Estimate:
        if not hasattr(self, "k_"):
            unknown = np.zeros((len(queries), 3))
            return Estimate(router_checks.MODELS, unknown, unknown)
        return super().estimate(queries)


class _FitReturnsNothing(_Broken):
    def fit(self, outcomes: Outcomes) -> None:
        super().fit(outcomes)


class _FitFillsGaps(_Broken):
    def fit(self, outcomes: Outcomes) -> _Broken:
        np.nan_to_num(outcomes.score, copy=False)
        return super().fit(outcomes)


class _RemembersEarlierFits(_Broken):
    def fit(self, outcomes: Outcomes) -> _Broken:
        super().fit(outcomes)
        self.fits = getattr(self, "fits", 0) + 1
        self._known.sums[:, 0] /= self.fits
        return self


class _QualityAboveOne(_Broken):
    def estimate(self, queries: Queries) -> Estimate:
        estimate = super().estimate(queries)
        return Estimate(estimate.models, estimate.quality + 0.5, estimate.cost_usd)


class _NeedsAQuery(_Broken):
    def estimate(self, queries: Queries) -> Estimate:
        estimate = super().estimate(queries)
        return estimate if len(queries) else Estimate(estimate.models, np.zeros(0), np.zeros(0))


class _LearnsFromQuestions(_Broken):
    def estimate(self, queries: Queries) -> Estimate:
        estimate = super().estimate(queries)
        self._known.sums[:, :3] *= 0.99
        return estimate


class _RanksWithinBatch(_Broken):
    def estimate(self, queries: Queries) -> Estimate:
        estimate = super().estimate(queries)
        peak = estimate.quality.max() if len(queries) else 1.0
        return Estimate(estimate.models, estimate.quality / peak, estimate.cost_usd)


class _FavoursEarlyRows(_Broken):
    def fit(self, outcomes: Outcomes) -> _Broken:
        super().fit(outcomes)
        self._known.sums[:10] = 0
        return self


class _FavoursFirstModel(_Broken):
    def fit(self, outcomes: Outcomes) -> _Broken:
        super().fit(outcomes)
        self._known.sums[:, 0] *= 0.5
        return self


class _GlobalRandomness(_Broken):
    def fit(self, outcomes: Outcomes) -> _Broken:
        super().fit(outcomes)
        self._known.sums[:, :3] *= np.random.uniform(0.5, 1.0)
        return self


class _ForgetsItsNeighbours(_Broken):
    def save(self, folder: Path) -> None:
        self.k_ += 5
        super().save(folder)
        self.k_ -= 5


class _NamesNoModels(_Broken):
    """Saves an artefact that does not say for whom it was made."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        artefact.annotate(folder, models=("small", "large", "other"))


class _VersionByChance(_Broken):
    def save(self, folder: Path) -> None:
        super().save(folder)
        artefact.annotate(folder, parameters={"k": 10, "protocol": "utility", "salt": str(folder)})


class _LoadsAnything(_Broken):
    @classmethod
    def load(cls, folder: Path) -> _Broken:
        return cls().fit(router_checks.TRAIN)


BROKEN = {
    _GuessesUnfitted: "check_unfitted_raises",
    _FitReturnsNothing: "check_fit_returns_self",
    _FitFillsGaps: "check_fit_writes_nothing",
    _RemembersEarlierFits: "check_refit_same",
    _QualityAboveOne: "check_estimate_shape",
    _NeedsAQuery: "check_estimate_nothing",
    _LearnsFromQuestions: "check_estimate_writes_nothing",
    _RanksWithinBatch: "check_batch_equals_single",
    _FavoursEarlyRows: "check_order_invariant",
    _FavoursFirstModel: "check_pool_permutation_equivariant",
    _GlobalRandomness: "check_seeded",
    _ForgetsItsNeighbours: "check_round_trip",
    _VersionByChance: "check_manifest",
    _NamesNoModels: "check_refuses_other_pool",
    _LoadsAnything: "check_refuses_other_method",
}


@pytest.mark.parametrize(
    ("broken", "check"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", value)
)
def test_each_fault_is_caught_by_its_check(broken: type[_Broken], check: str, tmp_path: Path) -> None:
    """A router broken on purpose fails the check meant for it."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(router_checks, check)(broken, tmp_path)


def test_every_check_has_a_fault_that_it_catches() -> None:
    """No check is there that was never seen to bite."""
    assert set(BROKEN.values()) == {check.__name__ for check in router_checks.CHECKS}


def test_the_sound_base_of_the_broken_ones_is_sound(tmp_path: Path) -> None:
    """What the broken routers inherit passes every check, so that each fails for its own fault."""
    for check in router_checks.CHECKS:
        check(_Broken, tmp_path / check.__name__)
