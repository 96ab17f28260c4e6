"""`chorus ledger` and `chorus usage --against`."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gateway.cli.application import application
from gateway.keys.key import ANYONE
from gateway.ledger.entry import Entry
from gateway.ledger.postgres_ledger import PostgresLedger
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore
from gateway.ledger.writer import LedgerWriter
from protocol.errors import SettingsError
from protocol.run import Call, Trace
from protocol.usage import Usage
from tests.postgres_server import PostgresServer

CONFIG = """
models:
  one: {openai: {base_url: 'http://x/v1', model: x}, price: {input_usd_per_token: 1.0e-6, output_usd_per_token: 1.0e-6}}
  two: {openai: {base_url: 'http://x/v1', model: x}}
state: {folder: state}
"""


class Chorus:
    """Runs commands on a config in a folder."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG + more)
        self.file = folder / "state" / "ledger.db"

    def __call__(self, *arguments: str) -> Any:
        result = CliRunner().invoke(application, [*arguments, "--config", str(self.config)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result


def written(store: LedgerStore, *ids: str) -> None:
    writer = LedgerWriter(store)
    for id in ids:
        trace = Trace(calls=[Call("one", Usage(7, 8), 15e-6, 0.1)])
        writer.add(Entry(id, "r", time.time(), ANYONE, None, None, "/x", "one", "direct", "ok", 0.1, trace))
    writer.start()
    writer.close()


def ids(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return [id for (id,) in connection.execute("SELECT id FROM requests ORDER BY id")]


def test_backup_and_restore(tmp_path: Path) -> None:
    """A copy made between two writes of an open ledger is put back; the writer goes on behind it; nothing is
    overwritten unasked."""
    chorus = Chorus(tmp_path)
    copy = tmp_path / "copy.db"
    with pytest.raises(SettingsError, match="no ledger"):
        chorus("ledger", "backup", str(copy))
    open_all_along = SqliteLedger(chorus.file)
    open_all_along.read("SELECT 1")
    written(SqliteLedger(chorus.file), "a", "b")
    chorus("ledger", "backup", str(copy))
    assert ids(copy) == ["a", "b"]
    assert copy.stat().st_mode & 0o777 == 0o600
    with pytest.raises(SettingsError, match="overwrites nothing"):
        chorus("ledger", "backup", str(copy))
    written(SqliteLedger(chorus.file), "c")
    with pytest.raises(SettingsError, match="--replace"):
        chorus("ledger", "restore", str(copy))
    chorus("ledger", "restore", str(copy), "--replace")
    trace = Trace()
    entry = Entry("d", "r", time.time(), ANYONE, None, None, "/x", "one", "direct", "ok", 0.1, trace)
    open_all_along.write([entry.rows()[0]], [])
    open_all_along.close()
    assert ids(chorus.file) == ["a", "b", "d"]


def test_what_is_no_backup(tmp_path: Path) -> None:
    """A file that is none, is damaged or is of a newer Chorus is refused, and the ledger stays as it is."""
    chorus = Chorus(tmp_path)
    written(SqliteLedger(chorus.file), "a")
    empty, newer, words = (tmp_path / name for name in ("empty.db", "newer.db", "words.db"))
    sqlite3.connect(empty).close()
    words.write_text("no database at all, but long enough to be looked at as one" * 50)
    chorus("ledger", "backup", str(newer))
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    empty.touch()
    for file, why in ((tmp_path / "none.db", "no backup"), (empty, "no whole"), (newer, "newer Chorus")):
        with pytest.raises(SettingsError, match=why):
            chorus("ledger", "restore", str(file), "--replace")
    with pytest.raises(Exception, match="not a database"):
        chorus("ledger", "restore", str(words), "--replace")
    assert ids(chorus.file) == ["a"]


def test_check(tmp_path: Path) -> None:
    """Good books are counted; a call gone astray, a sum that is off and rows past their retention are told."""
    chorus = Chorus(tmp_path, "ledger: {retention_days: 10}\n")
    assert "nothing" in chorus("ledger", "check").stdout
    written(SqliteLedger(chorus.file), "a", "b", "c")
    told = chorus("ledger", "check")
    assert told.exit_code == 0
    assert "3 requests, 3 calls" in told.stdout
    with closing(sqlite3.connect(chorus.file)) as connection, connection:
        connection.execute("UPDATE requests SET cost_nano = 1 WHERE id = 'a'")
        connection.execute("DELETE FROM requests WHERE id = 'b'")
        connection.execute("UPDATE requests SET at = 1 WHERE id = 'c'")
    told = chorus("ledger", "check")
    assert told.exit_code == 1
    assert "1 requests do not cost" in told.stdout
    assert "1 calls have no request" in told.stdout
    assert "1 requests are past" in told.stdout


@pytest.mark.requires("postgres")
def test_postgres(tmp_path: Path, postgres: PostgresServer) -> None:
    """`usage` and `check` read the database that the config names; what pg_dump copied by the commands that are told
    comes back by them."""
    url = postgres.database("cli")
    chorus = Chorus(tmp_path, f"ledger: {{url: '{url}'}}\n")
    written(PostgresLedger(url), "a", "b")
    assert "0.000030000" in chorus("usage").stdout
    assert "2 requests, 2 calls" in chorus("ledger", "check").stdout
    with pytest.raises(SettingsError, match="pg_dump") as told:
        chorus("ledger", "backup", str(tmp_path / "x"))
    dump, restore = told.value.message.splitlines()[1:]
    environ = {**os.environ, "LEDGER_URL": url, "PATH": f"{postgres.bin}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-ec", dump], env=environ, cwd=tmp_path, check=True)
    written(PostgresLedger(url), "c")
    subprocess.run(["bash", "-ec", restore], env=environ, cwd=tmp_path, check=True)
    with closing(PostgresLedger(url)) as ledger:
        assert ledger.read("SELECT id FROM requests ORDER BY id") == [("a",), ("b",)]


def test_against(tmp_path: Path) -> None:
    """The estimate stands below the table, beside a file; a model without a price has none."""
    chorus = Chorus(tmp_path)
    written(SqliteLedger(chorus.file), *map(str, range(120)))
    told = chorus("usage", "--against", "one")
    assert "120 measured answers" in told.stdout
    assert "about 0.000000 USD" in told.stdout
    assert told.stdout.splitlines()[-2].split() == [
        "anonymous",
        "120",
        "120",
        "0.0018",
        "0.0018",
        "0",
        "0",
        "0",
    ]
    assert "measured answers" not in chorus("usage", "--against", "one", "--format", "csv").stdout
    assert "about 0.000000 USD" in chorus("usage", "--by", "outcome", "--against", "one").stdout
    with pytest.raises(SettingsError, match=r"models\.two\.price"):
        chorus("usage", "--against", "two")
    with pytest.raises(SettingsError, match="no such model"):
        chorus("usage", "--against", "three")
