"""The ledger in a SQLite file: what one machine needs, without any server."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from gateway.ledger.rollups import day_of, late_days
from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.store import FORGET, RETIRE, TABLES, UNMARK, Rows, RowsRefused
from gateway.state.sqlite_file import connect
from protocol.errors import SettingsError, StateUnavailable

__all__ = ["SqliteLedger"]

T = TypeVar("T")
AT_ONCE = 128
"""Rows that one statement adds at most."""
DAY = "strftime('%Y-%m-%d', requests.at, 'unixepoch')"


class SqliteLedger:
    """A `LedgerStore` in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    @property
    def name(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.exists()

    def write(self, requests: Rows, calls: Rows, texts: Rows = ()) -> None:
        def work(connection: sqlite3.Connection) -> None:
            _insert(connection, "requests", requests)
            _insert(connection, "calls", calls)
            _insert(connection, "texts", texts)
            for day in late_days(requests, time.time()):
                connection.execute("DELETE FROM days WHERE day = ?", [day])

        self._transact(work)

    def retire(self, before: float, most: int) -> int:
        def work(connection: sqlite3.Connection) -> int:
            connection.execute(UNMARK, [day_of(before)])
            return max(connection.execute(statement, [before, most]).rowcount for statement in RETIRE)

        return self._transact(work)

    def forget(self, key: str, before: float, most: int) -> int:
        """In the file what is removed is overwritten, and of the WAL nothing is left once nobody reads there."""
        self._open().execute("PRAGMA secure_delete=ON")
        count = self._transact(lambda connection: connection.execute(FORGET, [key, before, most]).rowcount)
        if count < most:  # that was the last of them
            self.read("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def change(self, statements: Sequence[tuple[str, Sequence[Any]]], *, alone: bool = False) -> None:
        """Whoever changes a SQLite file is alone."""

        def work(connection: sqlite3.Connection) -> None:
            for statement, parameters in statements:
                connection.execute(statement, parameters)

        self._transact(work)

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._open().execute(statement.replace("{day}", DAY), parameters).fetchall()
        except sqlite3.Error as error:
            raise StateUnavailable(f"The ledger {self.path} cannot be read: {error}.") from error

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def backup(self, out: Path, *, texts: bool = True) -> None:
        """A copy at `out`, whole and consistent, while others write; without `texts`, no prompt and no answer is in it.
        Raises `SettingsError`, `StateUnavailable`."""
        if not self.exists():
            raise SettingsError(f"There is no ledger at {self.path} yet.")
        if out.exists():
            raise SettingsError(f"{out} exists; a backup overwrites nothing.")
        try:
            out.touch(mode=0o600)
            with closing(sqlite3.connect(out)) as copy:
                self._open().backup(copy)
                if not texts:
                    copy.execute("DELETE FROM texts")
                    copy.commit()
                    copy.execute("VACUUM")  # what was deleted leaves the file
                copy.execute("PRAGMA journal_mode=DELETE")  # one file, nothing beside it
        except (OSError, sqlite3.Error) as error:
            out.unlink(missing_ok=True)
            raise StateUnavailable(f"{self.path} could not be copied to {out}: {error}.") from error

    def restore(self, copy: Path) -> None:
        """Put the copy's rows in place of all rows here, in one step that others see whole. Raises `SettingsError`,
        `StateUnavailable`."""
        if not copy.is_file():
            raise SettingsError(f"There is no backup at {copy}.")
        try:
            with closing(sqlite3.connect(f"{copy.resolve().as_uri()}?mode=ro", uri=True)) as source:
                (whole,) = source.execute("PRAGMA integrity_check").fetchone()
                (version,) = source.execute("PRAGMA user_version").fetchone()
                tables = {name for (name,) in source.execute("SELECT name FROM sqlite_master")}
                if whole != "ok" or not set(TABLES) <= tables:
                    raise SettingsError(f"{copy} is no whole ledger: {whole}.")
                if version > len(MIGRATIONS):
                    raise SettingsError(f"{copy} was written by a newer Chorus.")
                source.backup(self._open())
        except sqlite3.Error as error:
            raise StateUnavailable(f"{copy} could not be restored to {self.path}: {error}.") from error
        self.close()  # opened again, an older ledger is brought up to date
        self._open()

    def damage(self) -> str | None:
        """What SQLite finds wrong with the file."""
        ((told, *_), *_) = self.read("PRAGMA integrity_check")
        return None if told == "ok" else str(told)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = connect(self.path, MIGRATIONS)
        return self._connection

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            told = work(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            # What SQLite cannot hold: a whole number beyond 64 bits, half a character.
            if isinstance(error, (OverflowError, UnicodeEncodeError, sqlite3.IntegrityError)):
                raise RowsRefused(str(error)) from error
            if isinstance(error, sqlite3.Error):
                raise StateUnavailable(f"{self.path}: {error}") from error
            raise
        return told


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add `rows`, with each statement as many as a power of two, so that few statements are ever prepared and no row
    goes by itself: between statements the event loop's thread takes its turn, and so often a turn costs more than the
    row."""
    if not rows:
        return
    columns = len(rows[0])
    most = min(AT_ONCE, connection.getlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER) // columns)
    start = 0
    while left := min(len(rows) - start, most):
        some = rows[start : start + (1 << left.bit_length() - 1)]
        connection.execute(_statement(table, columns, len(some)), [*chain.from_iterable(some)])
        start += len(some)


@cache
def _statement(table: str, columns: int, rows: int) -> str:
    row = f"({','.join('?' * columns)})"
    return f"INSERT OR IGNORE INTO {table} VALUES {','.join([row] * rows)}"  # noqa: S608 - names of our own
