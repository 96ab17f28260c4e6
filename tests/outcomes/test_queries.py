"""The committed query set: it is what its generator writes, and a program can grade it fairly."""

from __future__ import annotations

import importlib.util
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from outcomes.collect import Prompt, read_prompts
from outcomes.grading import grade

FOLDER = Path(__file__).parents[2] / "config" / "queries"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_queries", FOLDER / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return read_prompts(FOLDER / "everyday.jsonl")


def test_committed_file_is_what_the_generator_writes(generator: ModuleType) -> None:
    """Nobody edited the file by hand, and no question was dropped from it."""
    assert (FOLDER / "everyday.jsonl").read_text(encoding="utf-8") == generator.generate()


def test_size_and_categories(prompts: list[Prompt]) -> None:
    """At least 600 prompts, evenly in at least 8 categories, with short answers."""
    counts = Counter(prompt.category for prompt in prompts)
    assert len(prompts) >= 600
    assert len(counts) >= 8
    assert len(set(counts.values())) == 1
    assert all(16 <= prompt.max_tokens <= 48 for prompt in prompts)
    assert len({prompt.id for prompt in prompts}) == len(prompts)


def test_every_plain_answer_is_accepted(prompts: list[Prompt]) -> None:
    """The accepted answer itself passes its grader."""
    for prompt in prompts:
        if prompt.grader != "regex":
            assert grade(prompt.grader, prompt.answers[0], prompt.answers, choices=prompt.choices) == 1.0, (
                prompt
            )


def test_echoing_the_question_is_no_answer(prompts: list[Prompt]) -> None:
    """A model that only repeats the prompt scores nowhere, but where the last shown example happens to
    agree."""
    lucky = [p.id for p in prompts if grade(p.grader, p.prompt, p.answers, choices=p.choices)]
    assert not lucky, lucky


@pytest.mark.parametrize(
    ("category", "question", "right", "wrong"),
    [
        (
            "patterns",
            r"5, 12, 19, 26,",
            ["33", "The next is 33.", "5, 12, 19, 26, 33, 40"],
            ["26", "30, 33", "133"],
        ),
        ("counting", r"-> \d\n.*, .*, .*, .*, \w+ ->", ["5", "5 words", "five"], ["4, no: 5", "15"]),
        ("code", r"len\('garden'\)", ["6", "It prints 6.", "```\n6\n```"], ["5 or 6"[:1], "16", "print(6)"]),
    ],
)
def test_patterns_accept_answers_and_refuse_near_misses(
    prompts: list[Prompt], category: str, question: str, right: list[str], wrong: list[str]
) -> None:
    """The regular expressions of a category take the forms models answer in, and no others."""
    prompt = next(p for p in prompts if p.category == category and re.search(question, p.prompt))
    for answer in right:
        assert grade(prompt.grader, answer, prompt.answers) == 1.0, (prompt, answer)
    for answer in wrong:
        assert grade(prompt.grader, answer, prompt.answers) == 0.0, (prompt, answer)
