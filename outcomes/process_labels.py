"""Labels of steps by their outcome: how often an answer that begins so turns out right.

"Math-Shepherd: Verify and Reinforce LLMs Step-by-step without Human Annotations", Wang et al., 2023, arXiv 2312.08935.

    y(s_1 … s_i) = share of `rollouts` from there that a grader finds right      (soft estimation; hard: y > 0)

A step is a line. A whole answer needs no rollout: its grade is its label. Nobody writes a label by hand."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from outcomes.collect import Prompt
from outcomes.table import OutcomeTable
from protocol.errors import MethodError

__all__ = [
    "Begun",
    "LabelledStep",
    "Write",
    "beginnings",
    "digest",
    "graded",
    "label",
    "read_steps",
    "write_steps",
]


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer to be written on: `answer` stands there already, `tokens` may be added."""

    question: str
    answer: str
    tokens: int


Write = Callable[[str, Sequence[Begun]], Sequence[str]]
"""Has a model, by name, write on; returns what it added to each."""


@dataclass(frozen=True, slots=True)
class LabelledStep:
    """The beginning of an answer by `model`, or a whole one (`ended`), and its `label` in [0, 1], the share of
    `rollouts` that were right; of a whole one its grade, and no rollouts."""

    question: str
    category: str
    model: str
    answer: str
    ended: bool
    label: float
    rollouts: int = 0


def label(
    prompts: Sequence[Prompt],
    models: Sequence[str],
    write: Write,
    *,
    answers: int = 2,
    rollouts: int = 4,
    report: Callable[[str], None] = lambda line: None,
) -> list[LabelledStep]:
    """Have each model answer each prompt `answers` times, and label the whole answers and where they stood after
    every line before the last. The same answer twice is one."""
    found: list[LabelledStep] = []
    for model in models:
        asked = [prompt for prompt in prompts for _ in range(answers)]
        texts = write(model, [Begun(prompt.prompt, "", prompt.max_tokens) for prompt in asked])
        drawn = list(dict.fromkeys(zip(asked, texts, strict=True)))
        report(f"{model}: {len(drawn)} different answers to {len(prompts)} questions")
        found += [_step(prompt, model, text, True, prompt.grade(text)) for prompt, text in drawn]
        begun = list(dict.fromkeys((prompt, part) for prompt, text in drawn for part in beginnings(text)))
        tries = [(prompt, part) for prompt, part in begun for _ in range(rollouts)]
        ends = write(model, [Begun(prompt.prompt, part, prompt.max_tokens) for prompt, part in tries])
        right = [prompt.grade(part + end) for (prompt, part), end in zip(tries, ends, strict=True)]
        for i, (prompt, part) in enumerate(begun):
            share = sum(right[i * rollouts : (i + 1) * rollouts]) / rollouts
            found.append(_step(prompt, model, part, False, share, rollouts))
        report(f"{model}: {len(begun)} beginnings labelled by {len(tries)} rollouts")
    return found


def graded(table: OutcomeTable) -> list[LabelledStep]:
    """The answers of an outcome table that have a grade, as whole answers: they were collected anyway."""
    return [
        LabelledStep(row.query, row.category, row.model, row.response, True, row.score)
        for row in table.rows()
        if row.response is not None and 0 <= row.score <= 1
    ]


def beginnings(answer: str) -> list[str]:
    """Where an answer stood after each of its lines that has something in it, before the last one."""
    lines = answer.splitlines(keepends=True)
    return ["".join(lines[: i + 1]) for i, line in enumerate(lines[:-1]) if line.strip()]


def write_steps(path: Path, steps: Sequence[LabelledStep]) -> None:
    """As compressed JSON lines; the same steps give the same bytes."""
    lines = b"".join(orjson.dumps(asdict(step)) + b"\n" for step in steps)
    path.write_bytes(gzip.compress(lines, mtime=0))


def read_steps(path: Path) -> list[LabelledStep]:
    """What `write_steps` wrote. Raises `MethodError`."""
    try:
        lines = gzip.decompress(path.read_bytes()).splitlines()
        steps = [LabelledStep(**orjson.loads(line)) for line in lines]
    except (OSError, EOFError, TypeError, orjson.JSONDecodeError) as error:
        raise MethodError(f"{path} holds no labelled steps: {error}.") from None
    if not all(0 <= step.label <= 1 for step in steps):
        raise MethodError(f"{path} has labels outside [0, 1].")
    return steps


def digest(steps: Sequence[LabelledStep]) -> str:
    """Of the steps' content, hexadecimal."""
    return hashlib.sha256(orjson.dumps([asdict(step) for step in steps])).hexdigest()[:16]


def _step(
    prompt: Prompt, model: str, text: str, ended: bool, label: float, rollouts: int = 0
) -> LabelledStep:
    return LabelledStep(prompt.prompt, prompt.category, model, text, ended, label, rollouts)
