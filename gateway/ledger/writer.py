"""Writes the ledger in a thread of its own. The request path only appends to a bounded queue.

What does not fit into the queue is dropped and counted: a full disk must not stop answers.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from gateway.ledger.entry import Entry
from gateway.ledger.schema import MIGRATIONS
from gateway.state.sqlite_file import connect
from protocol.errors import SettingsError

__all__ = ["LedgerWriter"]

log = logging.getLogger("chorus.ledger")

WRITE_S = 0.2
BATCH = 1000
AT_ONCE = 50
"""Rows that one statement adds."""
RETRY_S = 1.0
RETIRE_S = 3600.0
RETIRED_AT_ONCE = 5000
DAY_S = 86_400.0


class LedgerWriter:
    """Writes to the SQLite file at `path`. `dropped` is told how many entries were lost, each time some are."""

    def __init__(
        self,
        path: Path,
        *,
        queue: int = 10_000,
        retention_days: int = 400,
        dropped: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._path, self._limit, self._retention_s = path, queue, retention_days * DAY_S
        self._dropped = dropped
        self._waiting: deque[Entry] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._retired_at = 0.0
        self.failing = False
        """Whether the last attempt to write failed."""

    def add(self, entry: Entry) -> None:
        """Have `entry` written soon. Never waits."""
        if len(self._waiting) >= self._limit:
            self._dropped(1)
        else:
            self._waiting.append(entry)

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end. What cannot be written now is dropped and counted."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._waiting:
            self._dropped(len(self._waiting))
            log.error("%d requests could not be written to the ledger", len(self._waiting))

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        while True:
            stopping = self._stop.wait(RETRY_S if self.failing else WRITE_S)
            try:
                if self._waiting or self._path.exists():
                    connection = connection or connect(self._path, MIGRATIONS)
                    while self._waiting:
                        self._write(connection)
                    self._retire(connection)
                self.failing = False
            except (sqlite3.Error, SettingsError) as error:
                if not self.failing:  # once, not every second
                    log.error("the ledger cannot be written: %s", error)
                self.failing = True
            if stopping:
                break
        if connection is not None:
            connection.close()

    def _write(self, connection: sqlite3.Connection) -> None:
        """Write some of what waits, all or none of it."""
        batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
        rows = [entry.rows() for entry in batch]
        connection.execute("BEGIN IMMEDIATE")
        try:
            _insert(connection, "requests", [row for row, _ in rows])
            _insert(connection, "calls", [call for _, calls in rows for call in calls])
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        for _ in batch:
            self._waiting.popleft()

    def _retire(self, connection: sqlite3.Connection) -> None:
        """Now and then, remove what is too old, a little at a time."""
        if time.monotonic() - self._retired_at < RETIRE_S and self._retired_at:
            return
        before = time.time() - self._retention_s
        removed = 0
        for table, name in (("requests", "id"), ("calls", "request, number")):
            removed = max(
                removed,
                connection.execute(
                    f"DELETE FROM {table} WHERE ({name}) IN "  # noqa: S608 - names of our own
                    f"(SELECT {name} FROM {table} WHERE at < ? ORDER BY at LIMIT {RETIRED_AT_ONCE})",
                    [before],
                ).rowcount,
            )
        if removed < RETIRED_AT_ONCE:
            self._retired_at = time.monotonic()


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Add `rows`, many with each statement: between statements the event loop's thread takes its turn, and so often a
    turn costs more than the row."""
    for start in range(0, len(rows), AT_ONCE):
        some = rows[start : start + AT_ONCE]
        if len(some) == AT_ONCE:
            connection.execute(_statement(table, len(some[0]), AT_ONCE), [*chain.from_iterable(some)])
        else:
            connection.executemany(_statement(table, len(some[0]), 1), some)


@cache
def _statement(table: str, columns: int, rows: int) -> str:
    row = f"({','.join('?' * columns)})"
    return f"INSERT OR IGNORE INTO {table} VALUES {','.join([row] * rows)}"  # noqa: S608 - names of our own
