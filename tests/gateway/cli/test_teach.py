"""`chorus teach`: which lessons it makes of a table, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from gateway.cli.teach import lessons
from outcomes.table import OutcomeTable, Row, query_id, write_table
from protocol.errors import SettingsError

ASKED = [
    {"id": "1", "category": "sums", "prompt": "2 + 2?", "grader": "number", "answers": ["4"], "max_tokens": 8},
    {"id": "2", "category": "towns", "prompt": "Capital of Peru?", "grader": "contains", "answers": ["Lima"],
     "max_tokens": 8},
    {"id": "3", "category": "towns", "prompt": "Not in the table?", "grader": "contains", "answers": ["x"],
     "max_tokens": 8},
    {"id": "4", "category": "talk", "prompt": "Is it kind?", "grader": "judge", "answers": ["yes"], "max_tokens": 8},
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A table of two models' answers, and the questions."""

    def row(prompt: str, model: str, score: float, response: str, tokens: float) -> Row:
        return Row(query_id(prompt), prompt, "", model, score, completion_tokens=tokens, response=response)

    rows = [
        row("2 + 2?", "a", 1, "It is 4.", 5), row("2 + 2?", "b", 1, "4 and then", 8),
        row("Capital of Peru?", "a", 0, "Rome", 2), row("Capital of Peru?", "b", 0, "Oslo", 2),
        row("Is it kind?", "a", 1, "yes", 2), row("Is it kind?", "b", 0, "no", 2),
    ]  # fmt: skip
    write_table(OutcomeTable.of(rows), tmp_path / "table.parquet")
    (tmp_path / "asked.jsonl").write_bytes(b"\n".join(orjson.dumps(one) for one in ASKED))
    return tmp_path / "table.parquet", tmp_path / "asked.jsonl"


def test_lessons_are_right_answers(files: tuple[Path, Path]) -> None:
    """Right answers of the members, ended where they ended; the reference where nobody was right; a grader for new
    texts; and no question without answers or that only a judge model grades."""
    table, asked = files
    found = {lesson.question: lesson for lesson in lessons(table, [asked], ("a", "b"))}
    assert found.keys() == {"2 + 2?", "Capital of Peru?"}
    sums, towns = found["2 + 2?"], found["Capital of Peru?"]
    assert {(answer.text, answer.ended) for answer in sums.right} == {
        ("It is 4.", True),
        ("4 and then", False),
    }
    assert [(answer.text, answer.ended) for answer in towns.right] == [("Lima", True)]
    assert sums.scores == {"a": 1, "b": 1}
    assert sums.judge("four? 4!")
    assert not sums.judge("5")
    assert lessons(table, [asked], ("a",))[0].scores == {"a": 1}


def test_nothing_to_learn_from_is_said(files: tuple[Path, Path], tmp_path: Path) -> None:
    """Questions that the table does not answer."""
    table, _ = files
    (tmp_path / "other.jsonl").write_bytes(orjson.dumps(ASKED[2]))
    with pytest.raises(SettingsError, match="no answers to auto-graded questions"):
        lessons(table, [tmp_path / "other.jsonl"], ("a", "b"))
