"""Both places of a ledger behave alike: a file, and a real PostgreSQL."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from gateway.keys.key import ANYONE, Key
from gateway.ledger.entry import Entry
from gateway.ledger.postgres_ledger import PostgresLedger, spelled
from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore
from gateway.ledger.usage import GROUPS, usage
from gateway.ledger.writer import LedgerWriter
from protocol.errors import SettingsError, StateUnavailable
from protocol.run import Call, Trace
from protocol.settings import parse_settings
from protocol.usage import Usage
from tests.gateway.ledger.conftest import Open
from tests.postgres_server import PostgresServer

DAY_S = 86_400.0
AT = 1_700_000_000.0


def entry(id: str, *, key: Key = ANYONE, at: float = AT, user: Any = "u", tokens: int = 7) -> Entry:
    trace = Trace(
        calls=[Call("one", Usage(tokens, 8), 3.0, 0.1), Call("two", Usage(1, 1), 1e-9, 0.1)],
        embeddings=[Call("mini", Usage(3, 0), 1e-9, 0.01)],
    )
    return Entry(id, "req", at, key, user, {"job": "j"}, "/x", "auto", "auto", "ok", 0.2, trace)


def write(store: LedgerStore, *entries: Entry, **fields: Any) -> LedgerWriter:
    writer = LedgerWriter(store, **{"retention_days": 100_000, **fields})
    for one in entries:
        writer.add(one)
    writer.start()
    writer.close()
    return writer


def test_written_and_added_up(open_ledger: Open) -> None:
    """Every group can be asked for; money is exact beyond what 32 bits hold; a batch written twice counts once."""
    key = Key("key_1", alias="a", owner="o", team="t", tags=("x",))
    entries = [*(entry(f"e{i}", key=key) for i in range(120)), entry("last", at=AT + DAY_S)]
    write(open_ledger(), *entries)
    assert not write(open_ledger(), *entries).failing
    ledger = open_ledger()
    (a, other) = usage(ledger, ("key",))
    assert (a.group, a.requests, a.calls, a.prompt_tokens) == (("a",), 120, 360, 120 * 11)
    assert a.cost_usd == pytest.approx(120 * 3.000000002, abs=1e-12)
    assert other.requests == 1
    assert [(line.group, line.requests) for line in usage(ledger, ("day",))] == [
        (("2023-11-14",), 120),
        (("2023-11-15",), 1),
    ]
    for name in GROUPS:
        assert sum(line.cost_usd for line in usage(ledger, (name,))) == pytest.approx(121 * 3.000000002)
    by_model = {line.group: line.requests for line in usage(ledger, ("team", "model"), AT, AT + 1)}
    assert by_model == {("t", "one"): 120, ("t", "two"): 120, ("t", "mini"): 120}


def test_retention(open_ledger: Open) -> None:
    """Rows older than the retention go, the calls with them; younger ones stay."""
    now = time.time()
    old = [entry(f"old{i}", at=now - 3 * DAY_S) for i in range(5)]
    write(open_ledger(), *old, entry("new", at=now), retention_days=2)
    ledger = open_ledger()
    assert ledger.read("SELECT id FROM requests") == [("new",)]
    assert {id for (id,) in ledger.read("SELECT request FROM calls")} == {"new"}


def test_a_row_that_is_refused(open_ledger: Open) -> None:
    """What no database holds costs its own request, counted, and no other; NUL, which PostgreSQL's text lacks, costs
    nothing."""
    dropped: list[int] = []
    entries = (entry("one"), entry("bad", tokens=2**70), entry("two", user="a\0b"))
    writer = write(open_ledger(), *entries, dropped=dropped.append)
    assert dropped == [1]
    assert not writer.failing
    assert sorted(open_ledger().read("SELECT id FROM requests")) == [("one",), ("two",)]


def test_a_ledger_of_a_newer_chorus(open_ledger: Open) -> None:
    """It is refused, not written into."""
    ledger = open_ledger()
    write(ledger, entry("one"))
    if isinstance(ledger, SqliteLedger):
        with closing(sqlite3.connect(ledger.path)) as connection:
            connection.execute("PRAGMA user_version = 99")
    else:
        import psycopg

        with psycopg.connect(ledger._url) as server:  # type: ignore[attr-defined]
            server.execute("UPDATE ledger_version SET version = 99")
    with pytest.raises(SettingsError, match="newer Chorus"):
        open_ledger().read("SELECT 1")


@pytest.mark.requires("postgres")
def test_migrating_postgres(postgres: PostgresServer) -> None:
    """A database of the release before is brought up to date with its rows, once, by whoever comes first."""
    url = postgres.database("migrated")
    old = PostgresLedger(url)
    write(old, entry("kept"))
    later = (*MIGRATIONS, "CREATE TABLE notes (request TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID")
    for _ in range(2):
        with closing(PostgresLedger(url, later)) as new:
            assert new.read("SELECT count(*) FROM notes") == [(0,)]
            assert new.read("SELECT id, cost_nano FROM requests") == [("kept", 3_000_000_002)]
    with (
        closing(PostgresLedger(url)) as past,
        pytest.raises(SettingsError, match=f"version {len(MIGRATIONS) + 1}"),
    ):
        past.read("SELECT 1")


@pytest.mark.requires("postgres")
def test_the_same_tables(postgres: PostgresServer) -> None:
    """PostgreSQL's tables have SQLite's columns, in their order."""
    with (
        closing(PostgresLedger(postgres.database("columns"))) as there,
        closing(sqlite3.connect(":memory:")) as here,
    ):
        here.executescript(";".join(MIGRATIONS))
        for table in ("requests", "calls"):
            columns = there.read(
                "SELECT column_name FROM information_schema.columns WHERE table_name = ? ORDER BY ordinal_position",
                [table],
            )
            assert [name for (name,) in columns] == [
                row[1] for row in here.execute(f"PRAGMA table_info({table})")
            ]


@pytest.mark.requires("postgres")
def test_postgres_goes_and_comes_back(postgres: PostgresServer) -> None:
    """While the server is away rows wait, and are written once it is there again."""
    writer = LedgerWriter(PostgresLedger(postgres.database("away")), retention_days=100_000)
    writer.start()
    try:
        writer.add(entry("before"))
        _until(lambda: not writer._waiting)
        postgres.stop()
        writer.add(entry("meanwhile"))
        _until(lambda: writer.failing)
    finally:
        postgres.start()
    _until(lambda: not writer._waiting)
    writer.close()
    with closing(PostgresLedger(postgres.url("away"))) as ledger:
        assert sorted(ledger.read("SELECT id FROM requests")) == [("before",), ("meanwhile",)]


@pytest.mark.requires("postgres")
def test_nothing_of_the_url_is_told() -> None:
    """A server that cannot be reached is named without user, password or options."""
    url = "postgresql://someone:s3cret-word@127.0.0.1:1/books?application_name=hidden"
    with pytest.raises(StateUnavailable) as told:
        PostgresLedger(url).read("SELECT 1")
    assert "127.0.0.1" in told.value.message
    assert not any(word in told.value.message for word in ("s3cret", "someone", "hidden"))


def test_the_setting() -> None:
    """`ledger.url` must be PostgreSQL's."""
    with pytest.raises(SettingsError, match="postgresql://"):
        parse_settings("models: {}\nledger: {url: 'mysql://x/y'}")
    assert spelled("at REAL, user TEXT, n INTEGER) WITHOUT ROWID") == (
        'at DOUBLE PRECISION, "user" TEXT, n BIGINT)'
    )


def _until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)
