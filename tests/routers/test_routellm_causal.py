"""routellm-causal: its labels, the step that emits one, what happens without, and that it learns."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from outcomes.causal_lm import CausalLm
from outcomes.networks import softmax
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from routers.routellm_causal import SYSTEM, USER, RouteLlmCausal, balanced, label_shares, to_ratings
from tests.language_models import QUICK, tiny_lm

pytestmark = pytest.mark.requires("torch")

PROMPT = re.findall("[A-Za-z]+", f"{SYSTEM} {USER} User Assistant")


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    return str(tiny_lm(tmp_path_factory.mktemp("tiny"), words=PROMPT))


@pytest.fixture(scope="module")
def trained(start: str) -> RouteLlmCausal:
    """Where a keyword decides whether the weak model's answer is good."""
    return RouteLlmCausal(start=start, **QUICK).fit(_keyword(200, 0))


def test_it_learns_a_keyword(trained: RouteLlmCausal) -> None:
    """200 queries whose rating a keyword decides: on others, w separates the classes with AUC > 0.95."""
    test = _keyword(120, 1)
    w = trained.estimate(test.queries).quality[:, 0]
    bad = test.score[:, 1] < 0.75
    above = w[bad][:, None] > w[~bad][None]
    assert above.mean() + 0.5 * (w[bad][:, None] == w[~bad][None]).mean() > 0.95


def test_the_label_step(trained: RouteLlmCausal) -> None:
    """What is emitted at the label step is the argmax over the whole vocabulary and all labels, hence of the label
    logits; quality is softmax over the five alone."""
    lm, found = trained.trained_.lm, 0
    for text in _keyword(20, 2).queries.texts:
        logits, label = trained.label_step(text)
        if logits is None:
            assert trained.enough(text).tolist() == [0.0]
            continue
        found += 1
        before, after = lm.framed(SYSTEM, USER)
        states, _ = lm.read([*lm.tokens(before), *lm.tokens(text), *lm.tokens(after)])
        everything = np.concatenate([states[-1] @ lm.head.T, states[-1] @ trained.trained_.extra["labels"].T])
        if everything.argmax() >= len(lm.head):
            assert label == everything.argmax() - len(lm.head) == logits.argmax()
            assert np.allclose(logits[0], everything[len(lm.head) :], atol=1e-4)
        assert trained.enough(text)[0] == pytest.approx(softmax(logits)[0, 3:].sum())
    assert found > 15


def test_no_label_is_the_strong_model(start: str) -> None:
    """Untrained, the model says no label; the strong model's quality is then 1 and the weak one's 0."""
    untrained = RouteLlmCausal(start=start, **QUICK | {"epochs": 0}).fit(_keyword(40, 0))
    untrained.trained_.extra["labels"][:] = untrained.trained_.extra["labels"].mean(axis=0)
    for text in ("river stone", "noise one"):
        if untrained.label_step(text)[0] is None:
            break
    else:
        pytest.fail("the untrained model says labels")
    quality = untrained.estimate(_keyword(1, 3).queries).quality
    assert quality.tolist() == [[1.0, 0.0]]


def test_balance() -> None:
    """Scores become ratings 1 … 5; each weak model keeps as many of 4 and 5 as below; unknown stays unknown; a row's
    labels share one."""
    assert to_ratings(np.array([0, 0.3, 0.5, 0.75, 1])).tolist() == [1, 2, 3, 4, 5]
    rng = np.random.default_rng(0)
    ratings = to_ratings((rng.random((60, 2)) < [0.8, 0.3]).astype(float))
    ratings[0] = np.nan
    kept = balanced(ratings, tuple(f"text {i}" for i in range(60)))
    for column in range(2):
        good = (kept[:, column] >= 4).sum()
        assert (
            good
            == (kept[:, column] < 4).sum()
            == min((ratings[:, column] >= 4).sum(), (ratings[:, column] < 4).sum())
        )
    assert np.isnan(kept[0]).all()
    shares = label_shares(np.array([[5.0, np.nan], [1.0, 4.0]]))
    assert shares[0].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert shares[1].tolist() == [0.5, 0, 0, 0, 0, 0, 0, 0, 0.5, 0]


def test_a_pool_of_one_or_a_weak_model_never_wrong_is_refused(start: str) -> None:
    """There is nothing to route between, or nothing to tell apart."""
    table = _keyword(20, 0)
    with pytest.raises(MethodError, match="one"):
        RouteLlmCausal(start=start).fit(table.only(["weak"]))
    always = OutcomeTable.of_matrices(["strong", "weak"], table.queries.texts, np.ones((20, 2)))
    with pytest.raises(MethodError, match="good and bad"):
        RouteLlmCausal(start=start).fit(always)


def test_the_prefix_is_of_the_model_that_was_kept(
    trained: RouteLlmCausal, start: str, tmp_path: Path, monkeypatch
) -> None:
    """Loading over a base of that name gives the same answers; another base of that name is refused."""
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path))
    trained.save(tmp_path / "artefact")
    name = CausalLm.load(start).name
    tiny_lm(tmp_path / "weights" / name, words=PROMPT)
    queries = _keyword(5, 4).queries
    loaded = RouteLlmCausal.load(tmp_path / "artefact")
    assert np.allclose(loaded.estimate(queries).quality, trained.estimate(queries).quality, atol=1e-6)
    tiny_lm(tmp_path / "weights" / name, words=PROMPT, seed=1)
    with pytest.raises(MethodError, match="adapts"):
        RouteLlmCausal.load(tmp_path / "artefact")


def _keyword(n: int, seed: int) -> OutcomeTable:
    """A strong model that is always right, and a weak one that is right on poems."""
    rng = np.random.default_rng(seed)
    poem = rng.random(n) < 0.5
    texts = [
        f"{rng.choice(['one', 'two', 'three'])} {'poem' if is_poem else 'code'} {rng.choice(['river', 'stone'])} {i}"
        for i, is_poem in enumerate(poem)
    ]
    return OutcomeTable.of_matrices(
        ["strong", "weak"], texts, np.stack([np.ones(n), poem.astype(float)], axis=1)
    )
