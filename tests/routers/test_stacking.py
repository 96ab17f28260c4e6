"""Stacking: the laws of its weights, its caution, and what it is worth on a published table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import nnls

from outcomes.compare import permuted
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from routers import stacking
from routers.policy import Utility
from routers.stacking import Stacking
from tests.routers.recorded import topical_table


def _found(n: int = 200, members: int = 5, m: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.random((n, m))
    found = truth + rng.normal(size=(members, n, m)) * np.linspace(0.2, 1, members)[:, None, None]
    return found, (rng.random((n, m)) < truth).astype(float)


def test_no_member_does_better_out_of_fold() -> None:
    """The stack's squared error is at most that of every member, and of their mean; weights are not negative."""
    found, score = _found()
    weights = stacking._weights(found, score)
    error = ((stacking._combined(found, weights) - score) ** 2).mean()
    assert (weights >= 0).all()
    assert all(error <= ((member - score) ** 2).mean() for member in (*found, found.mean(axis=0)))


def test_difficulty_and_deviation_are_weighed_apart() -> None:
    """`u` is the non-negative least squares of the means over models, v of the deviations from them."""
    found, score = _found()
    hard, better = stacking._weights(found, score)
    assert np.allclose(hard, nnls(found.mean(axis=2).T, score.mean(axis=1))[0])
    apart = found - found.mean(axis=2, keepdims=True)
    flat = (score - score.mean(axis=1, keepdims=True)).ravel()
    assert np.allclose(better, nnls(apart.reshape(len(found), -1).T, flat)[0])


def test_without_signal_the_incumbent() -> None:
    """On outcomes that belong to other queries nearly all go to the model with the best mean."""
    table = permuted(topical_table(400))
    table.score[:, 1] = np.maximum(table.score[:, 1], np.random.default_rng(0).random(400) < 0.3)
    router = Stacking(trees=30).fit(table)
    choice = Utility().choose(router.estimate(topical_table(200, seed=3).queries))
    assert (choice == int(table.score.mean(axis=0).argmax())).mean() > 0.9


def test_signal_is_used() -> None:
    """Where topics decide, it scores nearly what the best model of each topic does."""
    router = Stacking(trees=30).fit(topical_table(400))
    test = topical_table(300, seed=1)
    realised = test.score[np.arange(300), Utility().choose(router.estimate(test.queries))].mean()
    assert realised > test.score.mean(axis=0).max() + 0.2


def test_unknown_scores_count_as_expected_there() -> None:
    """A hole is filled with the mean of the model in that category; a model never scored is never preferred."""
    score = np.array([[1.0, np.nan], [1.0, 0.5], [0.0, 1.0], [0.0, 1.0]])
    category = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    filled = stacking._filled(score, category)
    assert np.array_equal(filled[~np.isnan(score)], score[~np.isnan(score)])
    assert 0.5 < filled[0, 1] < 1
    table = topical_table(120)
    table.score[:, 2] = np.nan
    estimate = Stacking(trees=10).fit(table).estimate(table.queries)
    assert (Utility().choose(estimate) != 2).all()


def test_reasons_add_up_to_the_estimate(tmp_path: Path) -> None:
    """What the members add, less the caution of all but the incumbent, is the estimate; categories go by their names,
    in an artefact of before by numbers."""
    table, asked = topical_table(200), topical_table(1, seed=5).queries
    router = Stacking(trees=10).fit(table)
    told, quality = router.reasons(asked), router.estimate(asked).quality[0]
    added = np.array([list(member["adds"].values()) for member in told["members"].values()]).sum(axis=0)
    caution = np.where(np.array(router.models_) == told["incumbent"], 0.0, told["caution"])
    assert np.allclose(np.clip(added - caution, 0, 1), quality, atol=1e-3)
    assert next(iter(told["categories"])) == "topic 0"
    router.save(tmp_path)
    assert Stacking.load(tmp_path).reasons(asked) == told
    manifest = tmp_path / "manifest.json"
    known = json.loads(manifest.read_text())
    del known["parameters"]["categories"]
    manifest.write_text(json.dumps(known))
    assert next(iter(Stacking.load(tmp_path).reasons(asked)["categories"])) == "0"


def test_no_text_of_a_training_query_is_kept(tmp_path: Path) -> None:
    """Neither the manifest nor the tensors hold a word of the training queries."""
    Stacking(trees=10).fit(topical_table(120)).save(tmp_path)
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    words = {word for text in topical_table(120).queries.texts for word in text.split() if len(word) > 5}
    assert not [word for word in words if word.encode() in content]


def test_artefacts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Parameters that contradict the tensors do not load."""
    Stacking(trees=10).fit(topical_table(120)).save(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"components": 25', '"components": 1'))
    with pytest.raises(MethodError):
        Stacking.load(tmp_path)


def test_it_leads_where_it_was_built_to(routerdc: tuple[OutcomeTable, dict[str, OutcomeTable]]) -> None:
    """On RouterDC's tables it scores above kNN's figure in the paper's protocol (58.5, macro average of five tests)."""
    train, tests = routerdc
    train = train.take(np.random.default_rng(0).permutation(len(train))[:1200])
    router = Stacking(trees=20).fit(train)
    choices = {name: Utility().choose(router.estimate(test.queries)) for name, test in tests.items()}
    found = np.mean([100 * tests[name].score[np.arange(len(c)), c].mean() for name, c in choices.items()])
    print(f"macro average: {found}")
    assert found > 58
