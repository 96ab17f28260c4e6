"""What is learnt from: questions with answers that a grader found right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Answer", "Lesson"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A text; `ended` where its writer ended it, and not a bound of tokens."""

    text: str
    ended: bool


@dataclass(frozen=True, slots=True)
class Lesson:
    """One question. `right` are answers known to be right, each once, reference answers among them where no model
    was right; `scores` what each model's own answer got; `judge` says whether another text answers the question;
    `max_tokens` is what an answer may have. Lessons `held_out` serve the report alone."""

    question: str
    subject: str
    right: tuple[Answer, ...]
    scores: Mapping[str, float]
    judge: Callable[[str], bool]
    max_tokens: int
    held_out: bool
