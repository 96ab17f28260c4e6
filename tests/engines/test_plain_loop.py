"""Every token method against the same method as a plain transformers loop, on the real pair in float32.

A few prompts; CHORUS_PLAIN_PROMPTS=50 takes so many of config/queries/everyday.jsonl."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.conftest import ARTEFACTS, DEEPEN, FOLDERS, PAIR, PROMPTS, expert_token

if TYPE_CHECKING:
    from tests.engines.conftest import Asker
    from tests.engines.plain_loop import PlainLoop, Rule

pytestmark = pytest.mark.models

TOKENS = 12


@pytest.fixture(scope="module")
def plain(weights: Callable[[str], Path]) -> PlainLoop:
    """The pair in transformers."""
    from tests.engines.plain_loop import PlainLoop, PlainModel

    return PlainLoop([PlainModel(weights(FOLDERS[name])) for name in PAIR])


def _questions() -> list[str]:
    wanted = int(os.environ.get("CHORUS_PLAIN_PROMPTS", "0"))
    lines = Path("config/queries/everyday.jsonl").read_text(encoding="utf-8").splitlines()[:wanted]
    return [*PROMPTS, *(_text(json.loads(line)) for line in lines)]


def _text(query: dict[str, object]) -> str:
    return str(query.get("query") or query.get("text") or query["prompt"])


@pytest.mark.parametrize("fusion", ["duet", "unite", "cp-delta", "pack-sim", "pack-opt", "deepen"])
def test_texts_equal_a_plain_loop(ask: Asker, plain: PlainLoop, fusion: str) -> None:
    """Greedy texts are the same, up to where the plain loop finds two symbols within a thousandth of each
    other; and over all prompts the fused text is neither member's."""
    questions = _questions()
    ours = ask.all(*((fusion, question) for question in questions), max_tokens=TOKENS)
    singles = [ask.all(*((name, question) for question in questions), max_tokens=TOKENS) for name in PAIR]
    compared = 0
    for question, reply in zip(questions, ours, strict=True):
        prompts = ask.prompt_ids(fusion, question)
        text, sure = plain.write(prompts, _rule(plain, fusion, prompts), TOKENS)
        assert reply.text.encode()[:sure] == text[:sure], question
        compared += sure
    assert compared > 20 * len(questions)
    assert any(reply.text not in (a.text, b.text) for reply, a, b in zip(ours, *singles, strict=True))


def _rule(plain: PlainLoop, fusion: str, prompts: tuple[tuple[int, ...], ...]) -> Rule:
    if fusion.startswith("pack"):
        return plain.packed(prompts, fusion.removeprefix("pack-"))
    if fusion == "deepen":
        return plain.deepened(**DEEPEN)
    rules: dict[str, Rule] = {"duet": plain.gac, "unite": plain.unite, "cp-delta": plain.cp_delta}
    return rules[fusion]


@pytest.mark.parametrize("fusion", ["citer", "etr-words", "copilot", "thoughtful"])
def test_texts_of_methods_that_look_inside_equal_a_plain_loop(
    ask: Asker, plain: PlainLoop, weights: Callable[[str], Path], fusion: str
) -> None:
    """The same for methods that look into the models' layers. CITER and ETR: of each text the same member wrote the
    same part, and of all texts both wrote some."""
    from tests.engines.plain_states import PlainCopilot, PlainThoughts, handed_over, learnt, routed

    questions = PROMPTS if fusion != "thoughtful" else PROMPTS[:1]
    ours = ask.all(*((fusion, question) for question in questions), max_tokens=TOKENS)
    compared, writers = 0, set[str]()
    for question, reply in zip(questions, ours, strict=True):
        prompts, said = ask.prompt_ids(fusion, question), list[int]()
        if fusion == "citer":
            router = learnt(ARTEFACTS / "citer")[1]
            (text, sure), said = routed(plain.models, prompts, router, 0.95, TOKENS)
        elif fusion == "etr-words":
            experts = expert_token(weights).double().numpy()
            (text, sure), said = handed_over(plain.models, prompts, experts, 0.0, TOKENS)
        elif fusion == "copilot":
            text, sure = PlainCopilot(plain, ARTEFACTS / "copilot", 1.0).write(prompts, TOKENS)
        else:
            text, sure = PlainThoughts(plain.models, ARTEFACTS / "mot").write(prompts, TOKENS)
        assert reply.text.encode()[:sure] == text[:sure], question
        compared += sure
        assert reply.end is not None
        if said and sure == len(text):
            told = [part.model for part in reply.end.spans]
            assert told == [PAIR[writer] for writer, _ in itertools.groupby(said)]
        writers |= {PAIR[writer] for writer in said}
    assert compared > 20 * len(questions)
    assert writers in (set(), set(PAIR))
