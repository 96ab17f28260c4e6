"""Accounts and buckets in a SQLite file: what the workers of one machine share without any server."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from typing import TypeVar

import orjson

from gateway.state.accounts import Account, Ask, Bucket, Grant, Holder, Taken, Want, sync, take
from gateway.state.breaker import Breaker
from gateway.state.sqlite_file import SqliteFile
from gateway.state.store import StoreAway

__all__ = ["MIGRATIONS", "SqliteStore"]

T = TypeVar("T")

MIGRATIONS = (
    """
    CREATE TABLE accounts (id TEXT PRIMARY KEY, state TEXT NOT NULL, forget_at REAL) WITHOUT ROWID;
    CREATE INDEX accounts_forget ON accounts (forget_at);
    CREATE TABLE buckets (id TEXT PRIMARY KEY, level REAL NOT NULL, at REAL NOT NULL, full_at REAL NOT NULL)
        WITHOUT ROWID;
    CREATE INDEX buckets_full ON buckets (full_at);
    CREATE TABLE keys (id TEXT PRIMARY KEY, digest TEXT NOT NULL UNIQUE, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE retired (digest TEXT PRIMARY KEY, id TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE audit (at REAL NOT NULL, entry TEXT NOT NULL);
    CREATE TABLE generation (one INTEGER PRIMARY KEY CHECK (one = 1), number INTEGER NOT NULL);
    INSERT INTO generation VALUES (1, 0)
    """,
    # Read as 0 s passed since: the steady clock cannot be later.
    """
    CREATE TABLE clock (one INTEGER PRIMARY KEY CHECK (one = 1), passed REAL NOT NULL, steady REAL NOT NULL);
    INSERT INTO clock VALUES (1, strftime('%s', 'now'), 9e99)
    """,
)
"""The tables of `state.db`, step by step; a step that was released is never changed."""

FORGET_EVERY_S = 60.0


class SqliteStore:
    """A `Store` in `file`. `steady` tells seconds of a clock that nobody sets, one for all processes of the machine.

    The store's own clock, kept in the file, is moved on by what passes on that one: neither leases nor rates notice
    when the time of day jumps. It stands still while the machine is down.
    """

    def __init__(self, file: SqliteFile, steady: Callable[[], float] = time.monotonic) -> None:
        self._file, self._steady = file, steady
        self._breaker = Breaker(failures=1)
        self._forgotten_at = 0.0

    @property
    def degraded(self) -> bool:
        return self._breaker.open

    async def sync(self, asks: Sequence[Ask]) -> list[Grant]:
        def work(connection: sqlite3.Connection) -> list[Grant]:
            now = self._time(connection)
            self._forget(connection, now)
            return [_sync_one(connection, ask, now) for ask in asks]

        return await self._told(work)

    async def take(self, want: Want) -> Taken:
        def work(connection: sqlite3.Connection) -> Taken:
            now = self._time(connection)
            row = connection.execute("SELECT level, at FROM buckets WHERE id = ?", [want.bucket]).fetchone()
            bucket = Bucket(*row) if row else Bucket(want.capacity, now)
            taken = take(bucket, want, now)
            full_at = now + want.period_s * (1 - bucket.level / want.capacity)
            connection.execute(
                "REPLACE INTO buckets VALUES (?, ?, ?, ?)", [want.bucket, bucket.level, bucket.at, full_at]
            )
            return taken

        return await self._told(work)

    async def open(self) -> None:
        """A file is opened, and made, by whoever first needs it."""

    async def close(self) -> None:
        await self._file.close()

    async def _told(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            told = await self._file.run(work)
        except StoreAway:
            self._breaker.failed(0.0)
            raise
        self._breaker.succeeded()
        return told

    def _time(self, connection: sqlite3.Connection) -> float:
        """The store's clock, in seconds."""
        passed, last = connection.execute("SELECT passed, steady FROM clock").fetchone()
        steady = self._steady()
        passed += max(
            0.0, steady - last
        )  # less after a restart of the machine, with which its clock starts anew
        connection.execute("UPDATE clock SET passed = ?, steady = ?", [passed, steady])
        return float(passed)

    def _forget(self, connection: sqlite3.Connection, now: float) -> None:
        """Now and then, remove what has had its time: past windows, buckets that are full again."""
        if now - self._forgotten_at > FORGET_EVERY_S:
            self._forgotten_at = now
            connection.execute("DELETE FROM accounts WHERE forget_at < ?", [now])
            connection.execute("DELETE FROM buckets WHERE full_at < ?", [now])


def _sync_one(connection: sqlite3.Connection, ask: Ask, now: float) -> Grant:
    row = connection.execute("SELECT state FROM accounts WHERE id = ?", [ask.account]).fetchone()
    account = Account()
    if row:
        settled, holders = orjson.loads(row[0])
        account = Account(settled, {name: Holder(*values) for name, values in holders.items()})
    grant = sync(account, ask, now)
    holders = {name: astuple(holder) for name, holder in account.holders.items()}
    forget_at = None if ask.forget_s is None else now + ask.forget_s
    connection.execute(
        "REPLACE INTO accounts VALUES (?, ?, ?)",
        [ask.account, orjson.dumps([account.settled, holders]).decode(), forget_at],
    )
    return grant
