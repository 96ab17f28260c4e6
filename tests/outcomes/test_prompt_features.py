"""Features of prompts that have names."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.prompt_features import NAMES, prompt_features

MARKS = {
    "task: code": "Complete this.\n```python\ndef add(a, b):\n```",
    "task: mathematics": r"Evaluate $\frac{1}{2} + 3$.",
    "task: word problem": "How many apples does Tom have if he buys 3 each day?",
    "task: multiple choice": "Which is a gas?\nA) iron\nB) helium",
    "task: translation": "Translate this into French: good morning",
    "task: summary": "Summarise the article below.",
    "task: reading": "Passage: the river rose.",
    "task: writing": "Write a poem about rain.",
    "reasoning: proof": "Prove that the sum is even.",
    "reasoning: step by step": "Think step by step.",
    "blanks": "The capital of France is ____.",
    "ideographs": "你好吗",
    "ends with a question": "Is it so?",
    "begins with a wh-word": "Who wrote it",
}  # fmt: skip


@pytest.mark.parametrize(("name", "text"), MARKS.items(), ids=MARKS)
def test_a_mark_is_seen(name: str, text: str) -> None:
    """A prompt that bears a feature's mark has it; an empty prompt has none."""
    column = NAMES.index(name)
    found = prompt_features([text, ""])
    assert found[0, column] > 0
    assert found[1, column] == 0


def test_strange_texts_have_finite_features() -> None:
    """Nothing overflows or divides by zero, whatever the text."""
    texts = [
        "",
        " ",
        "9" * 5000,
        "\n" * 3000,
        "a" * 20_000,
        "1,2,3.4.5 ,,, ...",
        "\x00\ud7ff\U0010ffff",
        "((((" * 999,
    ]
    found = prompt_features(texts)
    assert found.shape == (len(texts), len(NAMES))
    assert np.isfinite(found).all()
    assert prompt_features([]).shape == (0, len(NAMES))
