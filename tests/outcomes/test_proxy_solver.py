"""A small model's attempt at a prompt, as features."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.causal_lm import CausalLm
from outcomes.networks import softmax
from outcomes.proxy_solver import SIGNALS, SYSTEM, ProxySolver
from tests.language_models import tiny_lm


@pytest.fixture(scope="module")
def lm(tmp_path_factory) -> CausalLm:
    """A tiny language model of random weights."""
    return CausalLm.load(str(tiny_lm(tmp_path_factory.mktemp("solver") / "tiny")))


def test_signals_are_the_attempts(lm: CausalLm) -> None:
    """Entropy, highest chance and lead of the first token, and the mean log-chance of the greedy tokens, computed anew
    from whole texts without any memory."""
    found = dict(zip(SIGNALS, ProxySolver(lm, tokens=3)(["river stone"])[0], strict=True))
    before, after = lm.framed(SYSTEM, "{question}")
    ids = [*lm.tokens(before), *lm.tokens("river stone"), *lm.tokens(after)]
    likely, first = [], None
    for _ in range(3):
        chances = softmax((lm.read(ids)[0][-1] @ lm.head.T).astype(np.float64))
        first = chances if first is None else first
        token = int(chances.argmax())
        likely.append(np.log(chances[token]))
        if token in lm.shape.ends:
            break
        ids.append(token)
    assert first is not None
    top = np.sort(first)
    assert found["proxy: entropy"] == pytest.approx(-(first * np.log(first)).sum(), abs=1e-4)
    assert found["proxy: first choice"] == pytest.approx(top[-1], abs=1e-5)
    assert found["proxy: lead"] == pytest.approx(top[-1] - top[-2], abs=1e-5)
    assert found["proxy: confidence"] == pytest.approx(np.mean(likely), abs=1e-4)


def test_prompts_do_not_touch_each_other(lm: CausalLm) -> None:
    """A prompt's signals are the same alone and in company; long and empty ones have finite signals; only the last
    tokens of a long one are read."""
    texts = ["sum of numbers", "", "french word " * 300, "warm"]
    solver = ProxySolver(lm, limit=8)
    together = solver(texts)
    assert np.isfinite(together).all()
    assert np.array_equal(together, np.concatenate([solver([text]) for text in texts]))
    assert np.array_equal(together[2], solver(["french word " * 30])[0])
    assert solver([]).shape == (0, len(SIGNALS))


@pytest.mark.models
def test_smollm2_is_surer_of_what_is_easy(weights) -> None:
    """The packaged model is surer of a capital than of a riddle, and answers a sum with words or a number."""
    solver = ProxySolver(CausalLm.load(str(weights("smollm2-135m-instruct"))))
    easy, hard = solver(
        ["Name the capital of France.", "Name the colour of my third neighbour's second bicycle."]
    )
    assert easy[SIGNALS.index("proxy: confidence")] > hard[SIGNALS.index("proxy: confidence")]
