"""The laws of `protocol.routing.Router`, one `check_*` a law; every registered router passes all of them.

A check takes `make`, which builds a fresh unfitted router, and a folder to write in. It raises
AssertionError, naming what broke, or lets an error of the router through.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import load_router, read_manifest
from outcomes.table import OutcomeTable
from protocol.errors import ArtefactMismatch, MethodError
from protocol.routing import Estimate, Queries, Router

Make = Callable[[], Router]

MODELS = ("medium", "small", "large")
TOPICS = ("river stone bridge", "sum of numbers", "french word for", "opposite of warm")


def outcomes(n: int = 96, *, seed: int = 0) -> OutcomeTable:
    """A table in which each model knows some of four topics, dearer models know more, and some cells are
    missing."""
    rng = np.random.default_rng(seed)
    topic = np.arange(n) % len(TOPICS)
    texts = [f"{TOPICS[t]} number {i}" for i, t in enumerate(topic)]
    centres = np.random.default_rng(1).normal(size=(len(TOPICS), 16))
    vectors = centres[topic] + 0.3 * rng.normal(size=(n, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ability = np.array([[0.9, 0.1, 0.6], [0.2, 0.8, 0.9], [0.5, 0.1, 0.7], [0.1, 0.6, 0.3]])
    score = (rng.random((n, 3)) < ability[topic]).astype(float)
    cost = rng.uniform(0.8, 1.2, (n, 3)) * np.array([2e-6, 1e-6, 9e-6])
    missing = rng.random((n, 3)) < 0.05
    score[missing], cost[missing] = np.nan, np.nan
    topics = [TOPICS[t] for t in topic]
    return OutcomeTable.of_matrices(
        MODELS, texts, score, cost, embeddings=vectors.astype(np.float32), categories=topics
    )


TRAIN = outcomes()
ASK = outcomes(24, seed=7).queries


def check_unfitted_raises(make: Make, folder: Path) -> None:
    """Estimating before fitting is a `MethodError`, not a guess."""
    with pytest.raises(MethodError):
        make().estimate(ASK)


def check_fit_returns_self(make: Make, folder: Path) -> None:
    """`fit` returns the router itself."""
    router = make()
    assert router.fit(TRAIN) is router, "fit returned something else"


def check_fit_writes_nothing(make: Make, folder: Path) -> None:
    """`fit` leaves the outcomes as they were."""
    table = outcomes()
    make().fit(table)
    same = all(
        np.array_equal(getattr(table, name), getattr(TRAIN, name), equal_nan=True)
        for name in ("score", "cost_usd")
    )
    assert same, "fit changed the outcomes"
    assert np.array_equal(_vectors(table), _vectors(TRAIN)), "fit changed the embeddings"


def check_refit_same(make: Make, folder: Path) -> None:
    """Fitting again on the same outcomes forgets what was between and estimates the same."""
    router = make().fit(TRAIN)
    first = router.estimate(ASK)
    router.fit(outcomes(64, seed=3))
    _same(router.fit(TRAIN).estimate(ASK), first, "fitting again")


def check_estimate_shape(make: Make, folder: Path) -> None:
    """An estimate has a row a query and a column a model, quality in [0, 1], cost known and never
    negative."""
    estimate = make().fit(TRAIN).estimate(ASK)
    assert estimate.models == MODELS, f"models {estimate.models}"
    shape = (len(ASK), len(MODELS))
    assert estimate.quality.shape == estimate.cost_usd.shape == shape, "wrong shape"
    assert ((estimate.quality >= 0) & (estimate.quality <= 1)).all(), "quality outside [0, 1]"
    assert (estimate.cost_usd >= 0).all(), "a negative or unknown cost"


def check_estimate_nothing(make: Make, folder: Path) -> None:
    """No queries give an estimate without rows."""
    nothing = make().fit(TRAIN).estimate(Queries([], _embeddings(ASK)[:0]))
    assert nothing.quality.shape == (0, len(MODELS)), f"shape {nothing.quality.shape}"


def check_estimate_writes_nothing(make: Make, folder: Path) -> None:
    """`estimate` changes neither the queries nor the router: asking again gives the same."""
    router = make().fit(TRAIN)
    queries = copy.deepcopy(ASK)
    first = router.estimate(queries)
    assert np.array_equal(_embeddings(queries), _embeddings(ASK)), "estimate changed the embeddings"
    router.estimate(outcomes(40, seed=9).queries)
    _same(router.estimate(ASK), first, "asking again")


def check_batch_equals_single(make: Make, folder: Path) -> None:
    """A query's estimate does not depend on which others are asked with it."""
    router = make().fit(TRAIN)
    batch = router.estimate(ASK)
    for i in range(len(ASK)):
        _same(router.estimate(_take(ASK, [i])), _rows(batch, [i]), f"query {i} alone")


def check_order_invariant(make: Make, folder: Path) -> None:
    """The order of the training queries does not matter."""
    shuffled = TRAIN.take(np.random.default_rng(5).permutation(len(TRAIN)))
    _same(make().fit(shuffled).estimate(ASK), make().fit(TRAIN).estimate(ASK), "training in another order")


def check_pool_permutation_equivariant(make: Make, folder: Path) -> None:
    """Listing the models in another order permutes the columns and changes nothing else."""
    listed = (MODELS[2], MODELS[0], MODELS[1])
    permuted = make().fit(TRAIN.only(listed)).estimate(ASK)
    assert permuted.models == listed, f"models {permuted.models}"
    columns = [permuted.models.index(name) for name in MODELS]
    back = Estimate(MODELS, permuted.quality[:, columns], permuted.cost_usd[:, columns])
    _same(back, make().fit(TRAIN).estimate(ASK), "listing the models in another order")


def check_seeded(make: Make, folder: Path) -> None:
    """Two routers built alike learn alike, whatever the global random state."""
    np.random.seed(1)
    first = make().fit(TRAIN).estimate(ASK)
    np.random.seed(2)
    _same(make().fit(TRAIN).estimate(ASK), first, "fitting another instance")


def check_round_trip(make: Make, folder: Path) -> None:
    """A router loaded from its artefact estimates as the one that was saved; no file of it is a pickle."""
    router = make().fit(TRAIN)
    router.save(folder)
    _same(load_router(folder)[1].estimate(ASK), router.estimate(ASK), "loading the artefact")
    strange = [path.name for path in folder.iterdir() if path.suffix not in (".json", ".safetensors")]
    assert not strange, f"files that are neither JSON nor safetensors: {strange}"


def check_manifest(make: Make, folder: Path) -> None:
    """The artefact names its models, and the same fit gives the same version."""
    make().fit(TRAIN).save(folder / "a")
    make().fit(TRAIN).save(folder / "b")
    first, second = read_manifest(folder / "a"), read_manifest(folder / "b")
    assert first.models == MODELS, f"models {first.models}"
    assert first.version == second.version, "two versions of the same content"


def check_refuses_other_pool(make: Make, folder: Path) -> None:
    """An artefact is refused where one of its models cannot be asked, and the error names both sides."""
    make().fit(TRAIN).save(folder)
    with pytest.raises(ArtefactMismatch) as refused:
        load_router(folder, models=("small", "large", "other"))
    assert {"medium", "other"} <= set(re.findall(r"\w+", refused.value.message)), refused.value.message


def check_refuses_other_method(make: Make, folder: Path) -> None:
    """A router's `load` refuses an artefact that another method wrote."""
    router = make().fit(TRAIN)
    router.save(folder)
    path = folder / "manifest.json"
    written = read_manifest(folder).method
    path.write_text(path.read_text().replace(f'"{written}"', '"another-method"'))
    with pytest.raises(ArtefactMismatch):
        type(router).load(folder)


CHECKS = tuple(check for name, check in sorted(globals().items()) if name.startswith("check_"))


def _same(found: Estimate, expected: Estimate, what: str) -> None:
    assert found.models == expected.models, f"{what} changed the models"
    for name in ("quality", "cost_usd"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.shape == b.shape, f"{what} changed the shape"
        assert np.allclose(a, b, rtol=1e-5, atol=1e-12, equal_nan=True), f"{what} changed {name}"


def _rows(estimate: Estimate, rows: Sequence[int]) -> Estimate:
    return Estimate(estimate.models, estimate.quality[rows], estimate.cost_usd[rows])


def _take(queries: Queries, rows: Sequence[int]) -> Queries:
    return Queries([queries.texts[i] for i in rows], _embeddings(queries)[rows])


def _embeddings(queries: Queries) -> np.ndarray:
    assert queries.embeddings is not None
    return queries.embeddings


def _vectors(table: OutcomeTable) -> np.ndarray:
    return _embeddings(table.queries)
