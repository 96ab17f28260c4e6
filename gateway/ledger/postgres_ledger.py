"""The ledger in PostgreSQL: one for all gateways of a fleet.

The tables are those of SQLite, made by the same migrations in another spelling. Every row has an id of its own, and a
row that is there already stays: a batch whose commit was not heard of is simply written again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from gateway.ledger.rollups import day_of, late_days
from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.store import FORGET, RETIRE, UNMARK, Rows, RowsRefused
from protocol.errors import SettingsError, StateUnavailable

if TYPE_CHECKING:
    import psycopg

__all__ = ["PostgresLedger", "spelled"]

T = TypeVar("T")
CONNECT_S = 5
STATEMENT_MS = 30_000
AT_ONCE = 500
"""Rows that one statement adds: its 9500 parameters are well below PostgreSQL's 65535."""
LOCK = 0x63_68_6F_72_75_73
"""Whoever migrates or retires holds this advisory lock ("chorus")."""
LATE_LOCK = LOCK + 1
"""Who writes late rows or removes old ones shares this lock; who marks a day has it alone, so that rows are either
committed before its sums are read or take its mark away."""
DAY = "to_char(to_timestamp(requests.at) AT TIME ZONE 'UTC', 'YYYY-MM-DD')"
SPELLING = (
    (" WITHOUT ROWID", ""),
    (" INTEGER", " BIGINT"),
    (" REAL", " DOUBLE PRECISION"),
    (" user TEXT", ' "user" TEXT'),
)
"""SQLite's words → PostgreSQL's."""


class PostgresLedger:
    """A `LedgerStore` in the database at `url`, as libpq reads it: `postgresql://user:password@host/name?sslmode=…`."""

    def __init__(self, url: str, migrations: Sequence[str] = MIGRATIONS) -> None:
        self._url, self._migrations = url, migrations
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    @property
    def name(self) -> str:
        told = urlsplit(self._url)
        return f"PostgreSQL at {told.hostname or 'a socket'}, {told.path.strip('/') or 'default database'}"

    def exists(self) -> bool:
        return True

    def write(self, requests: Rows, calls: Rows, texts: Rows = ()) -> None:
        def work(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
            for table, rows in (("requests", requests), ("calls", calls), ("texts", texts)):
                for start in range(0, len(rows), AT_ONCE):
                    some = rows[start : start + AT_ONCE]
                    row = f"({','.join(['%s'] * len(some[0]))})"
                    connection.execute(
                        f"INSERT INTO {table} VALUES {','.join([row] * len(some))} ON CONFLICT DO NOTHING",  # noqa: S608
                        [_cell(value) for value in chain.from_iterable(some)],
                    )
            if late := late_days(requests, time.time()):
                connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [LATE_LOCK])
                connection.execute("DELETE FROM days WHERE day = ANY(%s)", [late])

        self._transact(work)

    def retire(self, before: float, most: int) -> int:
        def work(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
            row = connection.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK]).fetchone()
            if row is None or not row[0]:
                return 0  # another gateway is at it
            connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [LATE_LOCK])
            connection.execute(_spoken(UNMARK), [day_of(before)])
            return max(connection.execute(_spoken(each), [before, most]).rowcount for each in RETIRE)

        return self._transact(work)

    def forget(self, key: str, before: float, most: int) -> int:
        """What is removed is PostgreSQL's to overwrite, when it vacuums."""
        return self._transact(
            lambda connection: connection.execute(_spoken(FORGET), [key, before, most]).rowcount
        )

    def change(self, statements: Sequence[tuple[str, Sequence[Any]]], *, alone: bool = False) -> None:
        def work(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
            if alone:
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [LATE_LOCK])
            for statement, parameters in statements:
                connection.execute(_spoken(statement), parameters)

        self._transact(work)

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self._transact(
            lambda connection: connection.execute(_spoken(statement), parameters).fetchall()
        )

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        if self._connection is None:
            import psycopg

            connection: psycopg.Connection[tuple[Any, ...]] = psycopg.connect(
                self._url,
                connect_timeout=CONNECT_S,
                application_name="chorus",
                # A server that has gone without a word is noticed.
                keepalives_idle=10,
                tcp_user_timeout=STATEMENT_MS,
                # A pooler between (PgBouncer) may give each transaction another connection.
                prepare_threshold=None,
            )
            try:
                with connection.transaction():
                    self._migrate(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _migrate(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        """Bring the tables up to date, one gateway at a time."""
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])
        connection.execute("CREATE TABLE IF NOT EXISTS ledger_version (version BIGINT NOT NULL)")
        row = connection.execute("SELECT version FROM ledger_version").fetchone()
        version = row[0] if row else 0
        if version > len(self._migrations):
            raise SettingsError(
                f"ledger.url: {self.name} was written by a newer Chorus "
                f"(version {version}; this one knows {len(self._migrations)})."
            )
        for script in self._migrations[version:]:
            for statement in filter(str.strip, script.split(";")):
                connection.execute(spelled(statement))
        if row is None:
            connection.execute("INSERT INTO ledger_version VALUES (%s)", [len(self._migrations)])
        elif version < len(self._migrations):
            connection.execute("UPDATE ledger_version SET version = %s", [len(self._migrations)])

    def _transact(self, work: Callable[[psycopg.Connection[tuple[Any, ...]]], T]) -> T:
        import psycopg

        try:
            connection = self._open()
            with connection.transaction():
                connection.execute(f"SET LOCAL statement_timeout = {STATEMENT_MS}")
                return work(connection)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise RowsRefused(type(error).__name__) from error
        except psycopg.Error as error:
            with suppress(psycopg.Error):
                self.close()  # the next attempt begins anew
            # Its type and state alone: the message may hold the address, and parts of rows.
            state = f" ({error.sqlstate})" if error.sqlstate else ""
            raise StateUnavailable(f"{self.name}: {type(error).__name__}{state}.") from error


def spelled(statement: str) -> str:
    """A statement of the migrations as PostgreSQL spells it."""
    for ours, theirs in SPELLING:
        statement = statement.replace(ours, theirs)
    return statement


def _spoken(statement: str) -> str:
    """A statement of the stores' own, in PostgreSQL's words."""
    return statement.replace("?", "%s").replace("{day}", DAY)


def _cell(value: Any) -> Any:
    """PostgreSQL's text holds every character but NUL."""
    return value.replace("\0", "\ufffd") if isinstance(value, str) else value
