"""The ledger: written beside the request path, added up afterwards."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.keys.key import ANYONE, Key
from gateway.ledger.entry import Entry, facts
from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.usage import Line
from gateway.ledger.usage import usage as added_up
from gateway.ledger.writer import LedgerWriter
from protocol.errors import SettingsError
from protocol.run import Call, Trace
from protocol.usage import Usage

CANARY = "canary-words-of-a-prompt"


def entry(number: int, *, key: Key = ANYONE, at: float | None = None, **fields: Any) -> Entry:
    trace = Trace(
        calls=[
            Call("one", Usage(7, 8, 2, 1, written_tokens=3), 23e-6, 0.1),
            Call("two", Usage(1, 1), 1e-6, 0.1, "upstream_broken", began_s=0.05, asker="inner"),
        ],
        embeddings=[Call("mini", Usage(3, 0), 1e-9, 0.01)],
        decision={"chosen": "one", "reason": "cheapest", "samples": [{"text": CANARY}], "votes": {CANARY: 2}},
    )
    told: dict[str, Any] = {
        "user": "u",
        "metadata": {"job": "j"},
        "path": "/chat/completions",
        "requested": "auto",
        "strategy": "auto",
        "outcome": "ok",
        "latency_s": 0.2,
        "trace": trace,
        **fields,
    }
    return Entry(f"id-{number}", "req", time.time() if at is None else at, key, **told)


def write(path: Path, *entries: Entry, **fields: Any) -> LedgerWriter:
    writer = LedgerWriter(SqliteLedger(path), **fields)
    for one in entries:
        writer.add(one)
    writer.start()
    writer.close()
    return writer


def usage(path: Path, *arguments: Any, **fields: Any) -> list[Line]:
    with closing(SqliteLedger(path)) as ledger:
        return added_up(ledger, *arguments, **fields)


def test_rows(tmp_path: Path) -> None:
    """One row for the request, one for each call; money in whole nanodollars; nothing of what was said."""
    path = tmp_path / "ledger.db"
    write(path, entry(1, key=Key("key_1", alias="a", team="t", tags=("x",))))
    connection = sqlite3.connect(path)
    request = connection.execute(
        "SELECT key, alias, team, tags, user, metadata, cost_nano FROM requests"
    ).fetchone()
    calls = connection.execute(
        "SELECT model, kind, outcome, cached_tokens, written_tokens, cost_nano, began_s, asker FROM calls"
    ).fetchall()
    dump = "\n".join(connection.iterdump())
    connection.close()
    assert request == ("key_1", "a", "t", '["x"]', "u", '{"job":"j"}', 24_001)
    assert calls == [
        ("one", "answer", "ok", 2, 3, 23_000, 0.0, ""),
        ("two", "answer", "upstream_broken", 0, 0, 1_000, 0.05, "inner"),
        ("mini", "embedding", "ok", 0, 0, 1, 0.0, ""),
    ]
    assert "cheapest" in dump
    assert CANARY not in dump


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    """What does not fit is counted, never waited for."""
    dropped: list[int] = []
    writer = write(tmp_path / "ledger.db", *(entry(i) for i in range(5)), queue=3, dropped=dropped.append)
    assert dropped == [1, 1]
    assert not writer.failing


def test_an_unwritable_ledger_stops_nothing(tmp_path: Path) -> None:
    """A disk that takes nothing costs rows, counted; the gateway goes on."""
    (tmp_path / "file").write_text("")
    dropped: list[int] = []
    writer = write(tmp_path / "file" / "ledger.db", entry(1), dropped=dropped.append)
    assert writer.failing
    assert dropped == [1]


def test_retention(tmp_path: Path) -> None:
    """Rows older than the retention go, their calls too."""
    path = tmp_path / "ledger.db"
    write(path, entry(1, at=time.time() - 3 * 86_400), entry(2), retention_days=2)
    (line,) = usage(path, ("key",))
    assert (line.requests, line.calls) == (1, 3)


def test_usage(tmp_path: Path) -> None:
    """Groups add up exactly; a request that asked nobody counts too."""
    path = tmp_path / "ledger.db"
    one, other = Key("key_1", alias="a", team="t"), Key("key_2")
    refused = entry(3, key=other, outcome="insufficient_quota", trace=None)
    write(path, entry(1, key=one), entry(2, key=one), refused)
    assert [(line.group, line.requests, line.calls, line.cost_usd) for line in usage(path, ("key",))] == [
        (("a",), 2, 6, 48_002e-9),
        (("key_2",), 1, 0, 0.0),
    ]
    by_model = {line.group: line.cost_usd for line in usage(path, ("team", "model"))}
    assert by_model == {("t", "one"): 46e-6, ("t", "two"): 2e-6, ("t", "mini"): 2e-9}
    assert usage(path, ("day",), since=time.time() + 60) == []
    assert usage(tmp_path / "none.db", ("key",)) == []
    with pytest.raises(SettingsError, match="key, team"):
        usage(path, ("prompt",))


def test_only_facts_of_known_meaning() -> None:
    """Of a decision names, reasons and numbers are kept, of nested ones too; words of answers are not."""
    told = facts(
        {
            "router": "knn@1",
            "estimates": {"one": {"quality": 0.5, "cost_usd": 1e-6, "text": CANARY}},
            "nested": [{"strategy": "vote", "samples": [CANARY]}],
            "winner": CANARY,
            "stages": [
                {"model": "one", "score": -0.5, "threshold": -0.8, "verdict": "accepted", "text": CANARY}
            ],
            "samples": [{"model": "one", "score": 0.5, "text": CANARY, "key": CANARY}],
        }
    )
    assert told == {
        "stages": [{"model": "one", "score": -0.5, "threshold": -0.8, "verdict": "accepted"}],
        "samples": [{"model": "one", "score": 0.5}],
        "router": "knn@1",
        "nested": [{"strategy": "vote"}],
        "estimates": {"one": {"quality": 0.5, "cost_usd": 1e-6}},
    }


def test_an_older_ledger_opens(tmp_path: Path) -> None:
    """A file of the first release gets the columns that came later, and keeps its rows."""
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1")
    connection.execute(
        "INSERT INTO calls VALUES ('old', 0, 1, 'one', 'answer', 'ok', 1, 0, 1, 1, 0, 0, 5, 0.1)"
    )
    connection.commit()
    connection.close()
    write(path, entry(1), retention_days=36_500)
    connection = sqlite3.connect(path)
    rows = connection.execute(
        "SELECT request, began_s, asker, written_tokens FROM calls ORDER BY at, number"
    ).fetchall()
    connection.close()
    assert rows[:2] == [("old", None, None, None), ("id-1", 0.0, "", 3)]
