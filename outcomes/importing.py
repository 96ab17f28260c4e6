"""Outcome tables from what others keep: wide CSV (RouterBench, RouteLLM), request logs (LiteLLM, OpenAI), JSON lines;
and scores of single requests.

What a file does not say stays unknown: a log without grades gives rows without scores, which a later merge can fill.
"""

from __future__ import annotations

import csv
import math
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from outcomes.table import NUMBERS, UNKNOWN, OutcomeTable, Row, query_id
from protocol.errors import MethodError

__all__ = ["Format", "merged", "read_foreign", "read_scores"]

Format = Literal["wide", "log", "rows"]
QUERY, CATEGORY = ("prompt", "query", "question"), ("eval_name", "category", "benchmark", "task")
COST, RESPONSE = ("|total_cost", "|cost_usd", "_cost"), ("|model_response", "|response", "_response")
NOT_MODELS = {*QUERY, *CATEGORY, "sample_id", "query_id", "oracle_model_to_route_to", "gold", "answer", ""}
TRUTH = {"true": 1.0, "false": 0.0}
MOST_FIELD_BYTES = 64 * 1024 * 1024


def read_foreign(path: Path, form: Format | None = None) -> tuple[OutcomeTable, int]:
    """The outcomes in a file of another tool, and how many numbers contradicted an earlier one of the same question
    and model (the later counts; what a later row does not know leaves the earlier one).

    `wide`: CSV, a row a query with `prompt`, and a column a model that holds scores (0 to 1, or True and False);
    `MODEL|total_cost` and `MODEL|model_response` (RouterBench) or `MODEL_response` (RouteLLM) are used where they are.
    `log`: JSON lines of requests: LiteLLM's logging payload, or {"request": …, "response": …} in OpenAI's form; scores
    are read from `score`, or `metadata.score`. `rows`: JSON lines with the columns of an outcome table, `query` and
    `model` at least. None: told by the name and the first line. Raises `MethodError` naming the line.
    """
    form = form or _form(path)
    rows = _wide(path) if form == "wide" else _lines(path, _logged if form == "log" else _plain)
    return _joined(rows)


def merged(tables: Sequence[OutcomeTable]) -> tuple[OutcomeTable, int]:
    """All rows in one table, a question found by its text whatever its id, and how many numbers contradicted an
    earlier one (the later counts). A value unknown in a later row leaves the earlier one."""
    return _joined(replace(row, query_id=query_id(row.query)) for table in tables for row in table.rows())


def read_scores(path: Path) -> dict[str, float]:
    """Request → its score in [0, 1], from CSV with the columns `request` and `score`, or JSON lines of such objects; a
    later line counts. Raises `MethodError` naming the line."""
    found: dict[str, float] = {}
    for number, record in _cells(path) if path.suffix == ".csv" else _objects(path):
        request = record.get("request")
        score = _graded(_number(record.get("score"), path, number, "score"), path, number, f"{request}")
        if not isinstance(request, str) or math.isnan(score):
            raise MethodError(f"{path}, line {number}: a line needs `request`, an id, and `score`, a number.")
        found[request] = score
    return found


def _joined(rows: Iterable[Row]) -> tuple[OutcomeTable, int]:
    """One row for every question and model, and how many numbers contradicted an earlier one."""
    found: dict[tuple[str, str], Row] = {}
    contradictions = 0
    for row in rows:
        earlier = found.get((row.query_id, row.model))
        if earlier is not None:
            known = {name: getattr(row, name) for name in NUMBERS if not math.isnan(getattr(row, name))}
            contradictions += sum(
                not math.isnan(old := getattr(earlier, name)) and old != value
                for name, value in known.items()
            )
            texts = {
                name: getattr(row, name)
                for name in ("category", "response", "logprobs")
                if getattr(row, name)
            }
            row = replace(earlier, **known, **texts)
        found[row.query_id, row.model] = row
    return OutcomeTable.of(found.values()), contradictions


def _form(path: Path) -> Format:
    if path.suffix == ".csv":
        return "wide"
    _, first = next(_objects(path), (1, {}))
    return "rows" if "query" in first or "prompt" in first else "log"


def _wide(path: Path) -> Iterator[Row]:
    columns: tuple[str, str | None, list[str]] | None = None
    for number, record in _cells(path):
        query, category, models = columns = columns or _columns(path, record)
        for model in models:
            score = _number(record[model], path, number, f"{model}, read as a model's score,")
            cost = next((record[model + end] for end in COST if model + end in record), None)
            response = next((record[model + end] for end in RESPONSE if model + end in record), None)
            if math.isnan(score) and not response:
                continue
            text = record[query] or ""
            yield Row(
                query_id(text),
                text,
                (record[category] or "") if category else "",
                model,
                _graded(score, path, number, model),
                _number(cost, path, number, f"cost of {model}"),
                response=response or None,
            )


def _columns(path: Path, names: Iterable[str]) -> tuple[str, str | None, list[str]]:
    """Which of the columns is the query, which its category, and which are models. Raises `MethodError`."""
    found = list(names)
    query = next((name for name in QUERY if name in found), None)
    category = next((name for name in CATEGORY if name in found), None)
    models = [name for name in found if name not in NOT_MODELS and not name.endswith((*COST, *RESPONSE))]
    if query is None or not models:
        raise MethodError(
            f"{path} needs a column {QUERY[0]!r} and one a model, with commas between; it has "
            f"{', '.join(found) or 'none'}."
        )
    return query, category, models


def _cells(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file with a header, and the line each ends on. Raises `MethodError`."""
    # Responses are longer than the library's default.
    csv.field_size_limit(min(MOST_FIELD_BYTES, sys.maxsize))
    try:
        # Excel begins its files with a mark of the encoding, which is no part of the first name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            for record in reader:
                if None in record:
                    raise MethodError(f"{path}, line {reader.line_num}, has more fields than the header.")
                yield reader.line_num, record
    except UnicodeDecodeError as error:
        raise MethodError(f"{path} is not UTF-8 ({error.reason}): save it as UTF-8.") from None
    except csv.Error as error:
        raise MethodError(f"{path}, line {reader.line_num}, is not CSV: {error}.") from None


def _lines(path: Path, of: Any) -> Iterator[Row]:
    for number, record in _objects(path):
        yield of(record, path, number)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file of JSON lines, and the line of each. Raises `MethodError`."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(BOM_UTF8) if number == 1 else line
            if text.strip():
                yield number, _record(text, path, number)


def _plain(record: Mapping[str, Any], path: Path, number: int) -> Row:
    text = record.get("query") or record.get("prompt")
    if not isinstance(text, str) or not isinstance(record.get("model"), str):
        raise MethodError(f"{path}, line {number}: a row needs a query and a model.")
    numbers: dict[str, Any] = {name: _number(record.get(name), path, number, name) for name in NUMBERS}
    numbers["score"] = _graded(numbers["score"], path, number, record["model"])
    category = next((str(record[name]) for name in CATEGORY if record.get(name)), "")
    response = record.get("response")
    return Row(
        query_id(text), text, category, record["model"],
        response=response if isinstance(response, str) else None, **numbers,
    )  # fmt: skip


def _logged(record: Mapping[str, Any], path: Path, number: int) -> Row:
    request = record.get("request")
    asked = request if isinstance(request, dict) else record
    answer = record.get("response")
    answer = answer.get("body", answer) if isinstance(answer, dict) else {}
    text = _ask(asked.get("messages") or asked.get("input"))
    model = answer.get("model") or asked.get("model")
    if not text or not isinstance(model, str):
        raise MethodError(f"{path}, line {number}: a log record needs messages of a user, and a model.")
    usage = answer.get("usage") or record.get("usage") or record
    metadata = record.get("metadata") or {}
    score = record.get("score", metadata.get("score") if isinstance(metadata, dict) else None)
    return Row(
        query_id(text),
        text,
        str(metadata.get("category") or "") if isinstance(metadata, dict) else "",
        str(record.get("model_group") or model),
        _graded(_number(score, path, number, "score"), path, number, model),
        _number(record.get("response_cost"), path, number, "response_cost"),
        _number(usage.get("prompt_tokens"), path, number, "prompt_tokens"),
        _number(usage.get("completion_tokens"), path, number, "completion_tokens"),
        _seconds(record),
        _said(answer),
    )


def _ask(messages: Any) -> str:
    """The text of the last message of a user."""
    if isinstance(messages, str):
        return messages
    for message in reversed(messages if isinstance(messages, list) else []):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            parts: Iterable[Any] = content if isinstance(content, list) else [{"text": content}]
            return "\n".join(
                str(part["text"]) for part in parts if isinstance(part, dict) and part.get("text")
            )
    return ""


def _said(answer: Mapping[str, Any]) -> str | None:
    choices = answer.get("choices")
    message = choices[0].get("message") if isinstance(choices, list) and choices else None
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else None


def _seconds(record: Mapping[str, Any]) -> float:
    """LiteLLM's start and end, seconds since the epoch or ISO 8601."""
    start, end = record.get("startTime"), record.get("endTime")
    if isinstance(start, int | float) and isinstance(end, int | float):
        return float(end - start)
    if isinstance(start, str) and isinstance(end, str):
        try:
            return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
        except ValueError:
            return UNKNOWN
    return UNKNOWN


def _record(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise MethodError(f"{path}, line {number}, is not JSON: {error}.") from None
    if not isinstance(record, dict):
        raise MethodError(f"{path}, line {number}, is not an object: JSON lines have one object a line.")
    return record


def _number(value: Any, path: Path, number: int, name: str) -> float:
    if value is None or value == "":
        return UNKNOWN
    try:
        return TRUTH[value.lower()] if isinstance(value, str) and value.lower() in TRUTH else float(value)
    except (TypeError, ValueError):
        raise MethodError(f"{path}, line {number}: {name} is {value!r}, not a number.") from None


def _graded(score: float, path: Path, number: int, name: str) -> float:
    if not math.isnan(score) and not 0 <= score <= 1:
        raise MethodError(f"{path}, line {number}: the score of {name} is {score:g}; scores lie in [0, 1].")
    return score
