"""SQLite and Redis keep accounts by the same rules as plain Python."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.state.accounts import Account, Ask, Bucket, Want, sync, take
from gateway.state.redis_client import READY, RedisClient
from gateway.state.redis_store import RedisStore
from gateway.state.sqlite_file import SqliteFile, connect
from gateway.state.sqlite_store import MIGRATIONS, SqliteStore
from gateway.state.store import Store, StoreAway
from protocol.errors import SettingsError


class Clock:
    """Told, not read."""

    now = 1_700_000_000.0


@pytest.fixture
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, start_redis: Any
) -> AsyncIterator[tuple[Store, Clock]]:
    """A store of the parametrized kind, on a clock of the test's."""
    clock = Clock()
    if request.param == "sqlite":
        made: Any = SqliteStore(SqliteFile(tmp_path / "state.db", MIGRATIONS), lambda: clock.now)
    else:
        made = RedisStore((await start_redis()).client(), "t")
    yield made, clock
    await made.close()


BOTH = pytest.mark.parametrize(
    "store", ["sqlite", pytest.param("redis", marks=pytest.mark.requires("redis-server"))], indirect=True
)


@BOTH
async def test_accounts_as_in_python(store: tuple[Any, Clock]) -> None:
    """A long random history of asks gets the grants that the plain rules give; with Redis, whose clock may be set,
    also when it goes back."""
    made, clock = store
    back = [-5000.0] if isinstance(made, RedisStore) else []
    draw = random.Random(7)
    accounts: dict[str, Account] = {}
    spent: dict[tuple[str, str], int] = {}
    for _ in range(400):
        clock.now += draw.choice([0.0, 0.5, 3.0, 11.0, 4000.0, *back])
        made.now = clock.now
        account, holder = draw.choice("ab"), draw.choice("xyz")
        used = spent[account, holder] = spent.get((account, holder), 0) + draw.randrange(4)
        need = used + draw.randrange(-2, 200)
        close = draw.random() < 0.1
        ask = Ask(account, 1_000, holder, used, need, need + draw.randrange(300), 10.0, 1e6, close)
        (told,) = await made.sync([ask])
        assert told == sync(accounts.setdefault(account, Account()), ask, clock.now)
        if close:
            del spent[account, holder]


@BOTH
async def test_buckets_as_in_python(store: tuple[Any, Clock]) -> None:
    """The same for rates."""
    made, clock = store
    back = [-60.0] if isinstance(made, RedisStore) else []
    draw = random.Random(7)
    bucket = Bucket(500, clock.now)
    for _ in range(200):
        clock.now += draw.choice([0.0, 0.1, 1.0, *back])
        made.now = clock.now
        need = draw.randrange(100)
        want = Want("b", 500, 60.0, need, need + draw.randrange(100), draw.randrange(-20, 40))
        told, due = await made.take(want), take(bucket, want, clock.now)
        assert told.granted == due.granted
        assert (told.level, told.wait_s) == pytest.approx((due.level, due.wait_s), abs=1e-3)


async def test_the_time_of_day_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases and rates in a file go by a clock that nobody sets; a restart of the machine makes time stand still."""
    clock = Clock()
    store = SqliteStore(SqliteFile(tmp_path / "state.db", MIGRATIONS), lambda: clock.now)
    ask = Ask("a", 9, "x", 0, 9, 9, 10.0)
    other = Ask("a", 9, "y", 0, 1, 1, 10.0)
    rpm = Want("rpm", 60, 60.0, 60, 60)
    assert (await store.sync([ask]))[0].held == 9
    assert (await store.take(rpm)).granted == 60
    for at in (time.time() + 5 * 3600.0, time.time() - 9 * 3600.0):
        monkeypatch.setattr("time.time", lambda at=at: at)
        assert (await store.sync([other]))[0].held == 0
        assert (await store.take(rpm)).wait_s == 60.0
    clock.now = 5.0  # the machine was started anew
    assert (await store.take(rpm)).wait_s == 60.0
    clock.now = 16.0
    assert (await store.take(rpm)).wait_s == pytest.approx(49.0)
    assert (await store.sync([other]))[0].held == 1
    await store.close()


@pytest.mark.requires("redis-server")
async def test_redis_keys_end(redis: Any) -> None:
    """Every key expires but that of a budget without end."""
    client = redis.client()
    store = RedisStore(client, "t")
    await store.sync([Ask("day", 9, "x", 0, 1, 1, 10.0, 50.0), Ask("total", 9, "x", 0, 1, 1, 10.0)])
    await store.take(Want("rpm", 9, 60.0, 1, 1))

    async def ends(raw: Any) -> list[int]:
        return [await raw.ttl(f"t:{name}") for name in ("day", "rpm", "total")]

    day, rpm, total = await client.run(ends)
    assert 0 < day <= 50
    assert 0 < rpm <= 61
    assert total == -1


@pytest.mark.requires("redis-server")
async def test_paused_redis_is_bounded(redis: Any) -> None:
    """A Redis that hangs costs a bounded wait, a few times; then nobody asks it, until it answers again."""
    client = redis.client(timeout_s=0.05)
    store = RedisStore(client, "t")
    ask = Ask("a", 9, "x", 0, 1, 1, 10.0)
    await store.sync([ask])
    redis.process.send_signal(signal.SIGSTOP)
    for _ in range(5):
        with pytest.raises(StoreAway):
            await store.sync([ask])
    assert store.degraded
    with pytest.raises(StoreAway) as refused:
        await store.sync([ask])
    assert refused.value.sure
    redis.process.send_signal(signal.SIGCONT)
    async with asyncio.timeout(10):
        while store.degraded:
            await asyncio.sleep(0.1)
            try:
                await store.sync([ask])
            except StoreAway:
                continue


@asynccontextmanager
async def slow_to_connect(socket: str, delay_s: float) -> AsyncIterator[str]:
    """The URL of a way to the Redis at a Unix `socket` on which every connection says nothing for `delay_s`."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            writer.write(data)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay_s)
        theirs, there = await asyncio.open_unix_connection(socket)
        back = asyncio.create_task(pass_on(theirs, writer))
        await pass_on(reader, there)  # until the client closes
        for end in (there, writer):
            end.close()
            await end.wait_closed()
        await back
        closed.release()

    closed = asyncio.Semaphore(0)
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for _ in range(READY):
            await closed.acquire()


@pytest.mark.requires("redis-server")
async def test_connecting_has_its_own_bound(redis: Any) -> None:
    """The first uses of a process, several at once, are answered though to connect takes longer than an operation may;
    later ones find connections that are made."""
    async with slow_to_connect(f"{redis.folder}/redis.sock", 0.7) as url:
        client = RedisClient(url, timeout_s=0.5)
        store = RedisStore(client, "t")
        for number in range(3):
            asks = [store.sync([Ask(f"{number} {i}", 9, "x", 0, 1, 1, 10.0)]) for i in range(3)]
            assert [grant.held for (grant,) in await asyncio.gather(*asks)] == [1, 1, 1]
        await client.close()


async def test_opening_is_bounded() -> None:
    """A server that is not there, or never says a word, holds up a start for a while, and no use after it."""
    for client in (RedisClient("redis://127.0.0.1:1"), RedisClient("redis+sentinel://127.0.0.1:1/main")):
        async with asyncio.timeout(10):
            await client.open()
            with pytest.raises(StoreAway):
                await RedisStore(client, "t").sync([Ask("a", 9, "x", 0, 1, 1, 10.0)])
        await client.close()


@pytest.mark.requires("redis-server")
async def test_restarted_redis_is_used_again(redis: Any) -> None:
    """A server that was restarted, and knows no script any more, is told them again."""
    store = RedisStore(redis.client(), "t")
    ask = Ask("a", 9, "x", 0, 1, 1, 10.0)
    await store.sync([ask])
    await redis.stop()
    await redis.start()
    assert (await store.sync([ask]))[0].held == 1


async def test_newer_files_are_refused(tmp_path: Path) -> None:
    """A file of a newer version is not touched; one of an older version is brought up to date."""
    path = tmp_path / "x.db"
    connect(path, ["CREATE TABLE a (x)"]).close()
    connect(path, ["CREATE TABLE a (x)", "CREATE TABLE b (x); CREATE TABLE c (x)"]).close()
    with pytest.raises(SettingsError, match="newer Chorus"):
        connect(path, ["CREATE TABLE a (x)"])


async def test_unusable_file_is_away(tmp_path: Path) -> None:
    """A store that cannot be opened is away, not a crash."""
    (tmp_path / "f").write_text("")
    store = SqliteStore(SqliteFile(tmp_path / "f" / "state.db", MIGRATIONS))
    with pytest.raises(StoreAway):
        await store.sync([Ask("a", 9, "x", 0, 1, 1, 10.0)])
    assert store.degraded
    await store.close()
