"""Reading in numpy: after a past, along a tree and under several adapters, it is reading each text by itself."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.causal_lm import CausalLm, together
from tests.language_models import tiny_lm

PROMPT = "river stone bridge"
BRANCHES = ("poem", "poem code", "poem code sum", "poem river", "code", "poem code")


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> CausalLm:
    return CausalLm.load(str(tiny_lm(tmp_path_factory.mktemp("reading") / "tiny", layers=3)))


def test_a_tree_is_read_as_its_branches(lm: CausalLm) -> None:
    """Two branches after the same tokens, and one beside those: states of every token as in a text of its own."""
    start = lm.tokens("warm river")
    _, past = lm.read(start)
    tokens = lm.tokens("stone poem code")[::2]
    tree, parents = [*tokens, 5, 6, 7], [-1, 0, 1, 1, -1, 4]
    states, _ = lm.read(tree, past, parents)
    for path in ([0, 1, 2], [0, 1, 3], [4, 5]):
        alone, _ = lm.read([*start, *(tree[i] for i in path)])
        assert np.abs(states[path] - alone[len(start) :]).max() < 1e-5


def test_continuations_have_the_probability_of_plain_reading(lm: CausalLm) -> None:
    """Of continuations that begin alike, repeat, or are each other's beginnings, with a past and without."""
    asked, said = lm.tokens(PROMPT), [lm.tokens(text) for text in BRANCHES]
    wanted = [_plainly(lm, asked, ids) for ids in said]
    assert lm.log_probabilities(asked, said) == pytest.approx(wanted, abs=1e-5)
    after = lm.log_probabilities(asked[1:], said, lm.opening(asked[:1]))
    assert after == pytest.approx(wanted, abs=1e-5)


def test_more_continuations_than_are_held_at_once(lm: CausalLm) -> None:
    """A hundred of them, in several blocks, are each as alone."""
    asked = lm.tokens(PROMPT)
    said = [[i, j] for i in range(5, 15) for j in range(5, 15)]
    alone = [lm.log_probabilities(asked, [ids])[0] for ids in said]
    assert lm.log_probabilities(asked, said) == pytest.approx(alone, abs=1e-5)


def test_adapters_together_are_each_as_alone(lm: CausalLm) -> None:
    """One reading under three adapters of the upper layers gives each one's states and probabilities; layers below
    them are read once."""
    adapted = [lm.adapted(_adapter(lm, seed)) for seed in range(3)]
    several = together(adapted)
    asked, said = lm.tokens(PROMPT), [lm.tokens(text) for text in BRANCHES]
    states, past = several.read(asked)
    found = several.log_probabilities(asked[1:], said, several.opening(asked[:1]))
    assert (states.shape, found.shape) == ((3, len(asked), lm.dimensions), (3, len(said)))
    for i, one in enumerate(adapted):
        assert np.abs(states[i] - one.read(asked)[0]).max() < 1e-5
        assert found[i] == pytest.approx(one.log_probabilities(asked, said), abs=1e-4)
    assert np.abs(states[0] - states[1]).max() > 0.01
    assert [k.ndim for k, _ in past] == [3, 3, 4], (
        "keys of layer 1 are those of all: what is adapted comes after"
    )


def test_an_opening_is_read_once(lm: CausalLm, monkeypatch) -> None:
    """And nothing is no opening."""
    ids = lm.tokens("warm stone")
    first = lm.opening(ids)
    monkeypatch.setattr(CausalLm, "read", lambda *_: pytest.fail("it was read again"))
    assert lm.opening(ids) is first
    assert lm.opening([]) == []


def _plainly(lm: CausalLm, asked: list[int], said: list[int]) -> float:
    """From whole texts, without any memory."""
    logits = (lm.read([*asked, *said])[0] @ lm.head.T).astype(np.float64)
    likely = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return sum(likely[len(asked) - 1 + i, token] for i, token in enumerate(said))


def _adapter(lm: CausalLm, seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of the last two of three layers."""
    rng = np.random.default_rng(seed)
    names = [f"layers.{i}.self_attn.{part}_proj" for i in (1, 2) for part in "qv"]
    wide = {name: len(lm.weights[f"{name}.weight"]) for name in names}
    return {
        name: tuple(
            rng.normal(size=shape).astype(np.float32) for shape in ((2, lm.dimensions), (wide[name], 2))
        )
        for name in names
    }
