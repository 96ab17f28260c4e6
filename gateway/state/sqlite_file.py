"""One SQLite file, used from one thread of its own, so that the event loop never waits for a disk.

WAL lets readers and one writer of several processes go on side by side; `synchronous=NORMAL` survives every
death of a process (a power cut may lose the last commits, never the file).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from gateway.state.store import StoreAway
from protocol.errors import SettingsError

__all__ = ["SqliteFile", "connect"]

T = TypeVar("T")
BUSY_S = 2.0
"""How long a write waits for another process's."""


def connect(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """Open or make the database at `path` and bring its tables up to date: `migrations[i]` leads from version i
    to i + 1. Raises `SettingsError` for a file of a newer version, or one that cannot be opened."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        _migrate(connection, migrations, path)
        path.chmod(0o600)
    except (OSError, sqlite3.Error) as error:
        raise SettingsError(f"Cannot keep state in {path}: {error}. Set state.folder.") from error
    return connection


def _migrate(connection: sqlite3.Connection, migrations: Sequence[str], path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(migrations):
        raise SettingsError(
            f"{path} was written by a newer Chorus (version {version}; this one knows {len(migrations)})."
        )
    if version == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    # Asked again: another process may have migrated while this one waited for the lock.
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    for script in migrations[version:]:
        for statement in filter(str.strip, script.split(";")):
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {len(migrations)}")
    connection.execute("COMMIT")


class SqliteFile:
    """The database at `path`, opened on first use."""

    def __init__(self, path: Path, migrations: Sequence[str]) -> None:
        self.path, self._migrations = path, migrations
        self._thread: ThreadPoolExecutor | None = None
        self._connection: sqlite3.Connection | None = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in one transaction that no other writer enters. Raises `StoreAway`."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=self.path.stem)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work)

    def open(self) -> sqlite3.Connection:
        """The connection, for the thread that owns it. Raises `SettingsError`."""
        if self._connection is None:
            self._connection = connect(self.path, self._migrations)
        return self._connection

    async def close(self) -> None:
        """Finish what is under way and close the file."""
        if self._thread is not None:
            await asyncio.to_thread(self._thread.shutdown)
            self._thread = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self.open()
            connection.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, SettingsError) as error:
            raise StoreAway(f"{self.path.name}: {error}") from error
        try:
            told = work(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise StoreAway(f"{self.path.name}: {error}") from error
            raise
        return told
