"""Stored prompts and answers: kept as long as their key says now, in both places of a ledger."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.keys.book import SqliteBook
from gateway.keys.key import Key
from gateway.ledger.entry import Entry
from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.streams import put_together
from gateway.ledger.text_keeping import TextKeeping
from gateway.ledger.texts import sweep, text_of
from gateway.ledger.writer import LedgerWriter
from gateway.state.sqlite_file import SqliteFile
from gateway.state.sqlite_store import MIGRATIONS as STATE
from gateway.transcript import Transcript
from gateway.wire import AsgiWire
from protocol import sse
from tests.gateway.ledger.conftest import Open

DAY_S = 86_400.0
NOW = 1_700_000_000.0
CANARY = "canary-words"


def transcript(prompt: bytes, answer: bytes, most: int = 1024) -> Transcript:
    """As if overheard."""

    async def nobody(*message: Any) -> Any:
        raise AssertionError

    made = Transcript(AsgiWire(nobody, nobody), most)
    made._said(prompt)
    made.start(200, b"content-type: application/json\r\n")
    made.write(answer)
    return made


def entry(id: str, key: str, at: float = NOW, words: bytes | None = CANARY.encode()) -> Entry:
    said = None if words is None else transcript(words, words)
    told = ("/chat/completions", "one", "direct", "ok", 0.1, None, said)
    return Entry(id, "req", at, Key(key), None, None, *told)


def write(store: Any, *entries: Entry, **fields: Any) -> LedgerWriter:
    writer = LedgerWriter(store, retention_days=100_000, text_bytes=1024, **fields)
    for one in entries:
        writer.add(one)
    writer.start()
    writer.close()
    return writer


def kept(store: Any) -> list[str]:
    return sorted(id for (id,) in store.read("SELECT request FROM texts"))


def test_each_key_has_its_own_time(open_ledger: Open) -> None:
    """Of each key what is older than its days goes, and all of keys that store nothing; the rows stay."""
    old = [entry(f"old{i}", "a", NOW - 3 * DAY_S) for i in range(450)]
    write(open_ledger(), *old, entry("b", "b", NOW - 3 * DAY_S), entry("new", "a"), entry("off", "off"))
    store = open_ledger()
    assert text_of(store.read, "new") == {
        "request": "new", "key": "a", "at": NOW, "prompt": CANARY, "answer": CANARY, "cut": False,
    }  # fmt: skip
    assert sweep(store, {"a": 2, "b": 5}, NOW) == 451
    assert kept(store) == ["b", "new"]
    assert sweep(store, {"a": 2, "b": 5}, NOW) == 0
    assert store.read("SELECT count(*) FROM requests") == [(453,)]
    assert text_of(store.read, "off") is None


def test_what_is_removed_is_gone(tmp_path: Path) -> None:
    """Not a byte of it is left in SQLite's files, though the ledger stays open."""
    path = tmp_path / "ledger.db"
    write(
        SqliteLedger(path),
        *(entry(str(i), "a", words=CANARY.encode() * 30) for i in range(50)),
        entry("b", "b"),
    )
    with closing(SqliteLedger(path)) as store:
        assert any(CANARY.encode() in file.read_bytes() for file in tmp_path.iterdir())
        sweep(store, {}, NOW)
        assert not [file for file in tmp_path.iterdir() if CANARY.encode() in file.read_bytes()]


def test_a_backup_without_texts(tmp_path: Path) -> None:
    """The copy has every request, and not a word of what was said."""
    write(SqliteLedger(tmp_path / "ledger.db"), *(entry(str(i), "a") for i in range(50)))
    with closing(SqliteLedger(tmp_path / "ledger.db")) as store:
        store.backup(tmp_path / "with.db")
        store.backup(tmp_path / "without.db", texts=False)
    assert CANARY.encode() in (tmp_path / "with.db").read_bytes()
    assert CANARY.encode() not in (tmp_path / "without.db").read_bytes()
    with closing(SqliteLedger(tmp_path / "without.db")) as copy:
        assert copy.read("SELECT count(*) FROM requests") == [(50,)]


async def test_the_settings_bound_what_keys_say(tmp_path: Path) -> None:
    """A bound that was lowered since holds for keys that were given more, and for keys that the book does not know."""
    book = SqliteBook(SqliteFile(tmp_path / "state.db", STATE))
    await book.put(Key("a", text_days=1e6), "digest")
    path = tmp_path / "ledger.db"
    texts = TextKeeping(lambda: SqliteLedger(path), book, 10.0, 1024)
    assert await texts.sweep() == 0
    assert not path.exists()
    now = time.time()
    write(
        SqliteLedger(path),
        entry("a1", "a", now - 11 * DAY_S),
        entry("a2", "a", now),
        entry("lost", "lost", now),
    )
    assert await texts.sweep() == 2
    with closing(SqliteLedger(path)) as store:
        assert kept(store) == ["a2"]
    await book._file.close()


def test_a_full_queue_leaves_texts_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits to be written is bounded in bytes: beyond, requests are written without what was said, counted."""
    monkeypatch.setattr("gateway.ledger.writer.TEXT_BYTES", 250)
    lost: list[int] = []
    writer = write(
        SqliteLedger(tmp_path / "ledger.db"), *(entry(str(i), "a", words=b"x" * 50) for i in range(5)),
        text_dropped=lost.append,
    )  # fmt: skip
    assert lost == [1, 1, 1]
    assert writer._text_taken == writer._text_written == 200
    with closing(SqliteLedger(tmp_path / "ledger.db")) as store:
        assert kept(store) == ["0", "1"]
        assert store.read("SELECT count(*) FROM requests") == [(5,)]


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
def test_ledgers_of_every_release_open(tmp_path: Path, version: int) -> None:
    """An older file keeps its rows and takes texts."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as old:
        old.executescript(f"{';'.join(MIGRATIONS[:version])}; PRAGMA user_version = {version}")
        old.execute(
            "INSERT INTO requests VALUES ('old', 'r', 1, 'k', NULL, NULL, NULL, NULL, NULL, NULL, '/x', 'o', 'd', "
            "'ok', 1, 1, 5, 0.1, NULL)"
        )
        old.commit()
    write(SqliteLedger(path), entry("new", "a"))
    with closing(SqliteLedger(path)) as store:
        assert store.read("SELECT id FROM requests ORDER BY id") == [("new",), ("old",)]
        assert kept(store) == ["new"]


def test_a_tool_call_is_put_together() -> None:
    """Of Messages, whose tools' inputs come as JSON in pieces, with what was spent."""
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "type": "message", "usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]  # fmt: skip
    whole = put_together(b": keep-alive\n\n" + b"".join(map(sse.event, events)))
    assert whole is not None
    assert orjson.loads(whole) == {
        "id": "m", "type": "message", "stop_reason": "tool_use", "usage": {"input_tokens": 3, "output_tokens": 9},
        "content": [{"type": "thinking", "thinking": "hm"}, {"type": "tool_use", "name": "f", "input": {"a": 1}}],
    }  # fmt: skip
    assert put_together(b"".join(map(sse.event, events[:-1]))) is None
    assert put_together(b"data: {\n\n") is None
    assert put_together(b"") is None
