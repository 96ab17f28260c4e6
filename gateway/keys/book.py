"""Where keys are kept. Looked up by digest only; every change counts up a number that workers watch."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from typing import Any, Protocol

import orjson

from gateway.keys.key import Key
from gateway.state.redis_client import RedisClient
from gateway.state.sqlite_file import SqliteFile

__all__ = ["Book", "RedisBook", "SqliteBook"]

AUDIT_ENTRIES = 100_000
"""How many entries of the audit log are kept; the oldest go first."""


class Book(Protocol):
    """All keys. Every method raises `StoreAway`."""

    async def find(self, digest: str) -> Key | None:
        """The key whose secret, or whose former secret in its time of grace, has this digest."""
        ...

    async def all(self) -> list[Key]: ...

    async def put(self, key: Key, digest: str | None = None, *, grace_s: float = 0.0) -> None:
        """Add or change a key. A new `digest` replaces the former one, which stays good for `grace_s` seconds."""
        ...

    async def generation(self) -> int:
        """A number that every change raises."""
        ...

    async def note(self, entry: dict[str, Any]) -> None:
        """Add to the audit log."""
        ...

    async def notes(self, count: int) -> list[dict[str, Any]]:
        """The latest `count` entries of the audit log, latest first."""
        ...


class SqliteBook:
    """Keys in the machine's state file."""

    def __init__(self, file: SqliteFile, now: Callable[[], float] = time.time) -> None:
        self._file, self._now = file, now

    async def find(self, digest: str) -> Key | None:
        def work(connection: sqlite3.Connection) -> Key | None:
            row = connection.execute("SELECT record FROM keys WHERE digest = ?", [digest]).fetchone()
            row = (
                row
                or connection.execute(
                    "SELECT record FROM keys JOIN retired USING (id) WHERE retired.digest = ? AND until > ?",
                    [digest, self._now()],
                ).fetchone()
            )
            return Key.parse(orjson.loads(row[0])) if row else None

        return await self._file.run(work)

    async def all(self) -> list[Key]:
        def work(connection: sqlite3.Connection) -> list[Key]:
            rows = connection.execute("SELECT record FROM keys").fetchall()
            return [Key.parse(orjson.loads(record)) for (record,) in rows]

        return await self._file.run(work)

    async def put(self, key: Key, digest: str | None = None, *, grace_s: float = 0.0) -> None:
        def work(connection: sqlite3.Connection) -> None:
            record = orjson.dumps(key.wire()).decode()
            former = connection.execute("SELECT digest FROM keys WHERE id = ?", [key.id]).fetchone()
            connection.execute("DELETE FROM retired WHERE until <= ?", [self._now()])
            if former and digest and grace_s > 0:
                connection.execute(
                    "REPLACE INTO retired VALUES (?, ?, ?)", [former[0], key.id, self._now() + grace_s]
                )
            if former:
                connection.execute(
                    "UPDATE keys SET digest = ?, record = ? WHERE id = ?",
                    [digest or former[0], record, key.id],
                )
            else:
                connection.execute("INSERT INTO keys VALUES (?, ?, ?)", [key.id, digest, record])
            connection.execute("UPDATE generation SET number = number + 1")

        await self._file.run(work)

    async def generation(self) -> int:
        if not self._file.path.exists():
            return 0  # nobody made a key here yet
        return await self._file.run(lambda c: int(c.execute("SELECT number FROM generation").fetchone()[0]))

    async def note(self, entry: dict[str, Any]) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO audit VALUES (?, ?)", [self._now(), orjson.dumps(entry).decode()])
            connection.execute(
                "DELETE FROM audit WHERE rowid <= (SELECT max(rowid) FROM audit) - ?", [AUDIT_ENTRIES]
            )

        await self._file.run(work)

    async def notes(self, count: int) -> list[dict[str, Any]]:
        def work(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            rows = connection.execute("SELECT at, entry FROM audit ORDER BY rowid DESC LIMIT ?", [count])
            return [{"at": at, **orjson.loads(entry)} for at, entry in rows.fetchall()]

        return await self._file.run(work)


class RedisBook:
    """Keys in Redis, which must then be persistent. Each command touches one name, so that it works on a cluster."""

    def __init__(self, client: RedisClient, prefix: str, now: Callable[[], float] = time.time) -> None:
        self._client, self._now = client, now
        self._records, self._digests = f"{prefix}:keys", f"{prefix}:digests"
        self._retired, self._generation = f"{prefix}:retired", f"{prefix}:generation"
        self._audit = f"{prefix}:audit"

    async def find(self, digest: str) -> Key | None:
        async def work(redis: Any) -> Key | None:
            id = await redis.hget(self._digests, digest) or await redis.get(f"{self._retired}:{digest}")
            record = await redis.hget(self._records, id) if id else None
            return Key.parse(orjson.loads(record)) if record else None

        return await self._client.run(work)

    async def all(self) -> list[Key]:
        async def work(redis: Any) -> list[Key]:
            return [Key.parse(orjson.loads(record)) for record in await redis.hvals(self._records)]

        return await self._client.run(work)

    async def put(self, key: Key, digest: str | None = None, *, grace_s: float = 0.0) -> None:
        async def work(redis: Any) -> None:
            await redis.hset(self._records, key.id, orjson.dumps(key.wire()))
            if digest:
                known = await redis.hgetall(self._digests)
                former = [name for name, id in known.items() if id.decode() == key.id]
                await redis.hset(self._digests, digest, key.id)
                for name in former:
                    if grace_s > 0:
                        await redis.set(f"{self._retired}:{name.decode()}", key.id, px=int(grace_s * 1000))
                    await redis.hdel(self._digests, name)
            await redis.incr(self._generation)

        await self._client.run(work)

    async def generation(self) -> int:
        async def work(redis: Any) -> int:
            return int(await redis.get(self._generation) or 0)

        return await self._client.run(work)

    async def note(self, entry: dict[str, Any]) -> None:
        async def work(redis: Any) -> None:
            told = orjson.dumps({"at": self._now(), **entry})
            await redis.xadd(self._audit, {"entry": told}, maxlen=AUDIT_ENTRIES, approximate=True)

        await self._client.run(work)

    async def notes(self, count: int) -> list[dict[str, Any]]:
        async def work(redis: Any) -> list[dict[str, Any]]:
            rows = await redis.xrevrange(self._audit, count=count)
            return [orjson.loads(fields[b"entry"]) for _, fields in rows]

        return await self._client.run(work)
