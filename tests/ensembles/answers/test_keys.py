"""Which profile a question calls for, and the keys answers get."""

from __future__ import annotations

import pytest

from ensembles.answers.keys import answer_keys
from tests.scripted_run import ask

OPTIONS = "Which is a fruit?\nA) stone\nB) pear\nC) river"


@pytest.mark.parametrize(
    ("question", "answers", "profile", "keys"),
    [
        ("What is 2+3?", ["The answer is 5.", "2 + 3 = 5", "I think so"], "number", ["5", "5", None]),
        ("How much?", ["5", "$5.00", "about five"], "number", ["5", "5", None]),
        ("Solve.", [r"so \boxed{7}", r"thus \boxed{7.0}"], "number", ["7", "7"]),
        (
            "Is 7 prime? Answer yes or no.",
            ["Yes.", "No, it is not", "Maybe"],
            "boolean",
            ["true", "false", None],
        ),
        (OPTIONS, ["B", "The answer is (B).", "pear"], "choice", ["B", "B", "B"]),
        ("Tell me a story.", ["Once upon a time.", "In 1999 a man lived."], "free", [None, None]),
    ],
)
def test_auto_reads_question_and_answers(question: str, answers: list[str], profile: str, keys: list) -> None:
    """The profile comes from the question, or from how most answers end; what does not fit abstains."""
    assert answer_keys(ask(question), answers, "auto") == (profile, keys)


def test_json_is_compared_canonically() -> None:
    """A JSON response format makes answers equal up to key order and spacing."""
    request = ask(response_format={"type": "json_object"})
    profile, keys = answer_keys(request, ['{"a": 1, "b": 2}', '```json\n{"b":2,"a":1}\n```', "none"], "auto")
    assert profile == "json"
    assert keys[0] == keys[1] is not None
    assert keys[2] is None


def test_a_set_profile_is_used() -> None:
    """An operator's profile is not second-guessed."""
    assert answer_keys(ask("Tell me."), ["It was 1999.", "No idea"], "number") == ("number", ["1999", None])
    assert answer_keys(ask("2+2?"), ["4", "4"], "free") == ("free", [None, None])


def test_hidden_reasoning_does_not_vote() -> None:
    """Numbers inside think tags are not the answer."""
    assert answer_keys(ask("2+3?"), ["<think>is it 6?</think>The answer is 5."], "number")[1] == ["5"]


@pytest.mark.parametrize("text", ["1" + " " * 20_000 + "_", "=" + "1," * 20_000 + "x", "answer " * 5_000])
def test_hostile_answers_take_no_time(text: str) -> None:
    """Looking for numbers is linear in an answer's length."""
    answer_keys(ask("?"), [text], "auto")
