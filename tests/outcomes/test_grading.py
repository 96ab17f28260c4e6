"""Graders: right answers pass in the forms models give them, near misses do not."""

from __future__ import annotations

import pytest

from outcomes.grading import Judge, grade
from protocol.chat import ChatRequest
from protocol.errors import MethodError
from protocol.run import Reply
from protocol.usage import Usage
from protocol.wire import completion


@pytest.mark.parametrize(
    ("grader", "response", "answers", "score"),
    [
        ("exact", "Paris.", ["paris"], 1.0),
        ("exact", "It is Paris", ["paris"], 0.0),
        ("contains", "The capital of France is **Paris**.", ["Paris"], 1.0),
        ("contains", "Parisian", ["Paris"], 0.0),
        ("contains", "São Paulo", ["são paulo", "Sao Paulo"], 1.0),
        ("number", "5 + 3 = 8", ["8"], 1.0),
        ("number", "8\n\nUser: what is 2 + 2?", ["8"], 1.0),
        ("number", "Let us see.\nThat makes 1,000.", ["1000"], 1.0),
        ("number", "18", ["8"], 0.0),
        ("number", "eight", ["8"], 0.0),
        ("regex", "c-a-t", [r"(?i)\bc\W?a\W?t\b"], 1.0),
        ("regex", "dog\ncat", [r"^cat$"], 1.0),
        ("regex", "CAT", [r"cat"], 0.0),
        ("contains", "<think>Paris?</think>London", ["Paris"], 0.0),
    ],
)
def test_rules(grader: str, response: str, answers: list[str], score: float) -> None:
    """Each grader accepts what it says and no more."""
    assert grade(grader, response, answers) == score


@pytest.mark.parametrize(
    ("response", "score"),
    [("positive", 1.0), ("A", 1.0), ("It is negative.", 0.0), ("positive or negative", 1.0)],
)
def test_choice_by_letter_or_text(response: str, score: float) -> None:
    """The accepted option may be named by its letter or its text."""
    assert grade("choice", response, ["positive"], choices=("positive", "negative")) == score
    assert grade("choice", response, ["a"], choices=("positive", "negative")) == score


def _says(text: str):
    async def ask(model: str, request: ChatRequest) -> Reply:
        asked.append(request.messages[0]["content"])
        body = completion(id="x", created=0, model=model, text=text, finish_reason="stop", usage=Usage())
        return Reply(body, (model,))

    asked: list[str] = []
    return ask, asked


@pytest.mark.parametrize(("verdict", "score"), [("CORRECT", 1.0), ("Incorrect.", 0.0)])
async def test_judge_reads_the_verdict(verdict: str, score: float) -> None:
    """A judge is shown question, accepted answers and answer in this order, and its word is the score."""
    ask, asked = _says(verdict)
    assert await Judge(ask, "judge").grade("Why?", "<think>x</think>Because.", ["For that."]) == score
    (prompt,) = asked
    assert prompt.index("Why?") < prompt.index("For that.") < prompt.index("Because.")
    assert "<think>" not in prompt


async def test_a_judge_without_a_verdict_is_an_error() -> None:
    """Neither right nor wrong is guessed."""
    ask, _ = _says("Hard to say")
    with pytest.raises(MethodError, match="no verdict"):
        await Judge(ask, "judge").grade("Why?", "Because.", ["For that."])
