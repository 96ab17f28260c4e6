"""Outcome tables from other tools' files: what they say is kept, what they do not say stays unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from outcomes.importing import merged, read_foreign
from outcomes.table import OutcomeTable, Row, read_table, write_table
from protocol.errors import MethodError


def _written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_routerbench_csv(tmp_path: Path) -> None:
    """Scores, costs and responses of every model; its own oracle column is no model; an empty cell is unknown."""
    text = (
        "sample_id,prompt,eval_name,gpt-4,mixtral,gpt-4|model_response,mixtral|model_response,gpt-4|total_cost,"
        'mixtral|total_cost,oracle_model_to_route_to\na.1,"one, or\ntwo?",mbpp,1.0,0.25,yes,no,0.005,0.0002,gpt-4\n'
        "a.2,three?,mbpp,,0.0,,no,,0.0003,no_model_correct\n"
    )
    table, _ = read_foreign(_written(tmp_path, "bench.csv", text))
    assert table.models == ("gpt-4", "mixtral")
    assert table.queries.texts == ["one, or\ntwo?", "three?"]
    assert np.array_equal(table.score, [[1.0, 0.25], [np.nan, 0.0]], equal_nan=True)
    assert np.array_equal(table.cost_usd, [[0.005, 0.0002], [np.nan, 0.0003]], equal_nan=True)
    assert table.response[0].tolist() == ["yes", "no"]
    assert table.categories == ("mbpp", "mbpp")


def test_routellm_csv(tmp_path: Path) -> None:
    """True and False are scores; there are no costs."""
    text = "prompt,strong/one,weak,strong/one_response\nwhy?,True,False,because\nhow?,False,True,\n"
    table, _ = read_foreign(_written(tmp_path, "gsm8k_responses.csv", text))
    assert table.models == ("strong/one", "weak")
    assert table.score.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert np.isnan(table.cost_usd).all()
    assert table.response[0, 0] == "because"
    assert table.response[1, 0] is None


def test_litellm_log(tmp_path: Path) -> None:
    """The last message of a user is the query, the group is the model; no grade, no score."""
    record = {
        "model": "openai/gpt-4o-mini",
        "model_group": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "hello"}]},
        ],
        "response": {
            "model": "gpt-4o-mini-2024-07-18",
            "choices": [{"message": {"content": "hi"}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 1},
        },
        "response_cost": 1.5e-6,
        "startTime": 10.0,
        "endTime": 10.5,
    }
    graded = record | {"messages": [{"role": "user", "content": "bye"}], "metadata": {"score": 1}}
    lines = "\n".join(orjson.dumps(one).decode() for one in (record, graded))
    table, _ = read_foreign(_written(tmp_path, "log.jsonl", lines))
    assert table.models == ("gpt-4o-mini",)
    assert table.queries.texts == ["hello", "bye"]
    assert np.array_equal(table.score, [[np.nan], [1.0]], equal_nan=True)
    assert table.cost_usd[0, 0] == 1.5e-6
    assert table.latency_s[0, 0] == 0.5
    assert (table.prompt_tokens[0, 0], table.completion_tokens[0, 0]) == (5, 1)
    assert table.response[0, 0] == "hi"


def test_openai_log(tmp_path: Path) -> None:
    """A request beside its response, as in a batch's files joined: the answering model is the model."""
    record = {
        "request": {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]},
        "response": {"body": {"model": "gpt-4o-2024-08-06", "choices": [], "usage": {"prompt_tokens": 3}}},
    }
    table, _ = read_foreign(_written(tmp_path, "log.jsonl", orjson.dumps(record).decode()))
    assert table.models == ("gpt-4o-2024-08-06",)
    assert table.prompt_tokens[0, 0] == 3
    assert np.isnan(table.completion_tokens[0, 0])
    assert np.isnan(table.score[0, 0])


def test_json_lines_round_trip(tmp_path: Path) -> None:
    """Rows as JSON lines become the table they came from, through parquet too."""
    rows = [
        {"query": "a?", "model": "m", "score": 0.5, "cost_usd": 0.1, "category": "t"},
        {"query": "a?", "model": "n", "score": None, "response": "dunno"},
    ]
    path = _written(tmp_path, "rows.jsonl", "\n".join(orjson.dumps(row).decode() for row in rows) + "\n\n")
    table, _ = read_foreign(path)
    write_table(table, tmp_path / "t.parquet")
    again = read_table(tmp_path / "t.parquet")
    assert np.array_equal(table.score, again.score, equal_nan=True)
    assert np.array_equal(table.score, [[0.5, np.nan]], equal_nan=True)
    assert again.response.tolist() == [[None, "dunno"]]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "id,gpt\n1,1\n", "prompt"),
        ("a.csv", "prompt,gpt\nx,good\n", "line 2: gpt"),
        ("a.csv", "prompt,gpt\nx,7\n", "scores lie in"),
        ("a.csv", "prompt,gpt\nx,1,0\n", "line 2, has more fields"),
        ("a.csv", "prompt;gpt\nx;1\n", "commas between"),
        ("a.jsonl", '{"query": "x", "model": "m"}\n{', "line 2, is not JSON"),
        ("a.jsonl", "[]\n", "not an object"),
        ("a.jsonl", '{"query": "x"}\n', "line 1: a row needs"),
        ("a.jsonl", '{"model": "m", "messages": []}\n', "line 1: a log record"),
    ],
)
def test_what_cannot_be_read_names_its_line(tmp_path: Path, name: str, content: str, told: str) -> None:
    """A file of another form is a `MethodError` that says where."""
    with pytest.raises(MethodError, match=told):
        read_foreign(_written(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "prompt,gpt\ncafé,1\n"), ("a.jsonl", '{"query": "café", "model": "gpt", "score": 1}\n')],
)
def test_marks_of_the_encoding(tmp_path: Path, name: str, content: str) -> None:
    """Spreadsheets begin their files with one, which is no part of the first name; another encoding is refused."""
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8-sig"))
    table, _ = read_foreign(path)
    assert (table.queries.texts, table.models, table.score.tolist()) == (["café"], ("gpt",), [[1.0]])
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(MethodError, match=r"not UTF-8|not JSON"):
        read_foreign(path)


def test_a_question_logged_twice(tmp_path: Path) -> None:
    """Grades are kept where a later row has none; where both have one the later counts, and is counted."""
    rows = [
        {"query": "a?", "model": "m", "score": 1},
        {"query": "a?", "model": "m", "cost_usd": 0.5},
        {"query": "b?", "model": "m", "score": 1},
        {"query": "b?", "model": "m", "score": 0},
    ]
    path = _written(tmp_path, "rows.jsonl", "\n".join(orjson.dumps(row).decode() for row in rows))
    table, contradictions = read_foreign(path)
    assert (table.score.tolist(), table.cost_usd[0, 0], contradictions) == ([[1.0], [0.0]], 0.5, 1)


def test_merging_fills_holes_and_counts_contradictions() -> None:
    """A question is one whatever its id; unknown values leave earlier ones, others replace them and are counted."""
    first = OutcomeTable.of(
        [Row("1", "a?", "t", "m", score=1.0, cost_usd=0.2), Row("2", "b?", "t", "m", score=0.0)]
    )
    second = OutcomeTable.of([Row("x", "a?", "", "m", score=0.0), Row("x", "a?", "", "n", latency_s=1.0)])
    table, contradictions = merged([first, second])
    assert contradictions == 1
    assert len(table) == 2
    assert table.models == ("m", "n")
    assert table.score[0, 0] == 0.0
    assert table.cost_usd[0, 0] == 0.2
    assert table.categories[0] == "t"
    assert np.isnan(table.score[0, 1])
    assert merged([first, first])[1] == 0
