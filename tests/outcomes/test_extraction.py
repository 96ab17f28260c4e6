"""Answer extraction: the same answer gives the same key, and nothing readable gives none."""

from __future__ import annotations

import pytest

from outcomes.extraction import extract, last_number, normalise, strip_reasoning


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("The answer is 42.", "42"),
        ("$1,200.50", "1200.5"),
        ("First 3, then 4.0", "4"),
        ("-7", "-7"),
        ("minus sign −7", "-7"),
        ("on 2024-05", "05".lstrip("0")),
        ("so \\boxed{12} as in step 3", "12"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("-0", "0"),
        ("1,2,3", "3"),
        ("no digits", None),
        ("1e999999", None),
    ],
)
def test_numbers(text: str, key: str | None) -> None:
    """The last number, or the boxed one, as a plain decimal."""
    assert last_number(text) == key


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("(B)", "B"),
        ("I think (A) is wrong, so (C).", "C"),
        ("The answer is B.", "B"),
        ("Answer: **C**", "C"),
        ("B) because", "B"),
        ("A", "A"),
        ("A horse is large.", None),
        ("I cannot say", None),
        ("(F)", None),
        ("It is a whale.", "B"),
        ("A shark, not a whale or a cow", None),
    ],
)
def test_choices(text: str, key: str | None) -> None:
    """A letter in range, or the one option named; the article 'A' is no choice, and two options are none."""
    assert extract(text, "choice", choices=("cow", "whale", "shrimp")) == key


def test_the_option_an_answer_opens_with_counts() -> None:
    """An answer that names the option first and talks about others later has chosen the first."""
    assert extract("Whale. A cow is smaller.", "choice", choices=("cow", "whale", "shrimp")) == "B"


def test_a_label_inside_a_longer_one_does_not_count_beside_it() -> None:
    """'positive' inside 'very positive' is not a second answer."""
    assert extract("It is very positive", "labels", choices=("positive", "very positive")) == "very positive"


@pytest.mark.parametrize(
    ("profile", "text", "key"),
    [
        ("boolean", "Yes, it is.", "true"),
        ("boolean", "That's incorrect", "false"),
        ("boolean", "Perhaps", None),
        ("json", 'Sure:\n```json\n{"b": 1, "a": [2]}\n```', '{"a":[2],"b":1}'),
        ("json", 'It is {"b": 1, "a": [2]} indeed', '{"a":[2],"b":1}'),
        ("json", "nothing here", None),
        ("code", "```py\nx = 1  \n```\nor\n```py\nx = 2\n```", "x = 2"),
        ("code", "x = 2", None),
        ("boxed", "\\boxed{1} or \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("boxed", "\\boxed{1", None),
        ("free", "  “The  Answer!” ", "the answer"),
        ("free", "...", None),
    ],
)
def test_other_profiles(profile: str, text: str, key: str | None) -> None:
    """Each profile reads its form and abstains from the rest."""
    assert extract(text, profile) == key


def test_reasoning_is_cut_first() -> None:
    """What stands before the last closing think tag, and an unclosed thought, are not the answer."""
    assert strip_reasoning("<think>maybe 3</think> 4") == "4"
    assert strip_reasoning("maybe 3</think> 4") == "4"
    assert strip_reasoning("<think>maybe 3") == ""
    assert extract("<think>12</think>", "number") is None


def test_normalise_is_idempotent() -> None:
    """Normalising twice is normalising once."""
    for text in ("**Paris**.", "‘It’s’", "  a\tB\n", "ﬁne", "$5.00!"):
        assert normalise(normalise(text)) == normalise(text)
