"""Every token method against the same method as a plain transformers loop, on the real pair in float32.

A few prompts; CHORUS_PLAIN_PROMPTS=50 takes so many of config/queries/everyday.jsonl."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.engines.conftest import DEEPEN, FOLDERS, PAIR, PROMPTS

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
