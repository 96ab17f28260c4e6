"""What is shared works on each kind of Redis: TLS, a cluster of three nodes, a primary watched by sentinels."""

from __future__ import annotations

import asyncio
import gc
import shutil
import signal
import time
import warnings
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from gateway.caching.shared import SharedStore
from gateway.keys.book import RedisBook
from gateway.keys.key import Key
from gateway.state.accounts import Ask, Want
from gateway.state.redis_client import OPERATION_S, RedisClient
from gateway.state.redis_store import RedisStore
from gateway.state.store import StoreAway
from tests.redis_server import RedisNodes, RedisWatched, SingleRedis, Topology

# redis-py's client of a cluster leaves the connections it first asked over to the garbage collector, which closes them.
pytestmark = [
    pytest.mark.requires("redis-server"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:loop is closed:ResourceWarning"),
]


@pytest.fixture
async def topology(request: pytest.FixtureRequest) -> AsyncIterator[Topology]:
    kind, _, tls = request.param.partition(" over ")
    folder = Path(mkdtemp(prefix="chorus-redis-"))
    made: Any = {"single": SingleRedis, "cluster": RedisNodes, "sentinel": RedisWatched}[kind]
    topology = made(folder, tls=bool(tls))
    try:
        await topology.start()
        yield topology
    finally:
        await topology.stop()
        shutil.rmtree(folder)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def on(*kinds: str) -> Any:
    return pytest.mark.parametrize("topology", kinds, indirect=True)


def ask(account: str, holder: str, need: int, spent: int = 0) -> Ask:
    return Ask(account, 100, holder, spent, need, need, 10.0, 60.0)


@on("single over TLS", "cluster over TLS", "sentinel over TLS")
async def test_everything_works(topology: Any) -> None:
    """Limits, budgets, keys and the answer cache, over names that lie on all nodes; a client that shows no certificate,
    or does not trust the authority, is told that the store is away."""
    client = topology.client()
    store, book, cache = RedisStore(client, "t"), RedisBook(client, "t"), SharedStore(client, "t")
    for number in range(20):
        name = f"usd/day/{number}"
        first, second = await store.sync([ask(name, "x", 60), ask(name, "y", 60)])
        assert (first.held, second.held) == (60, 0)
        assert (await store.take(Want(f"rpm/{number}", 3, 60.0, 3, 3))).granted == 3
        assert (await store.take(Want(f"rpm/{number}", 3, 60.0, 3, 3))).granted == 0
        await cache.put(f"answer {number}", b"said", 60.0)
        assert await cache.get(f"answer {number}") == b"said"
    before = await book.generation()
    await book.put(Key("key_1", alias="a"), "digest")
    await book.put(Key("key_1", alias="a"), "later", grace_s=60.0)
    assert [key.id for key in await book.all()] == ["key_1"]
    for digest in ("digest", "later"):
        found = await book.find(digest)
        assert found is not None
        assert found.alias == "a"
    assert await book.generation() == before + 2
    await book.note({"did": "something"})
    assert [note["did"] for note in await book.notes(5)] == ["something"]
    for query in ("", f"?ssl_ca_certs={topology.folder}/ca.pem"):
        stranger = RedisClient(topology.url.partition("?")[0] + query, timeout_s=2.0)
        with pytest.raises(StoreAway):
            await RedisStore(stranger, "t").sync([ask("a", "x", 1)])
        await stranger.close()


@on("cluster")
async def test_no_name_grows_without_bound(topology: RedisNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use for many days by many workers leaves: names that end by themselves, and five for keys that do not; a name
    holds no more than the workers of an hour, and the audit log its bound."""
    monkeypatch.setattr("gateway.keys.book.AUDIT_ENTRIES", 200)
    client = topology.client()
    clock = time.time()
    store, book, cache = RedisStore(client, "t", clock), RedisBook(client, "t"), SharedStore(client, "t")
    for hour in range(60):
        store.now = clock + 3700.0 * hour
        await store.sync([Ask("usd/total", 10**9, f"worker-{hour}", hour, hour + 1, hour + 1, 10.0)])
        await store.sync([Ask(f"usd/day/{hour}", 10**9, "x", 0, 1, 1, 10.0, 86_400.0)])
        await store.take(Want(f"rpm/{hour}", 3, 60.0, 3, 3))
        await cache.put(f"{hour}", b"said", 60.0)
        await book.put(Key(f"key_{hour % 3}"), f"digest {hour}", grace_s=60.0)
        for _ in range(20):
            await book.note({"did": "something", "hour": hour})
    names = await topology.names()
    assert {name for name, left in names.items() if left == -1} == {
        *("t:usd/total", "t:keys", "t:digests", "t:generation", "t:audit")
    }

    async def sizes(raw: Any) -> tuple[int, int, int, int]:
        return (
            *(await raw.hlen("t:usd/total"), await raw.hlen("t:keys"), await raw.hlen("t:digests")),
            await raw.xlen("t:audit"),
        )

    holders, keys, digests, audit = await client.run(sizes)
    assert (keys, digests) == (3, 3)
    assert holders <= 4  # what was settled, who asks now, and who was there within the hour before
    assert audit <= 400  # Redis trims a page at a time


@on("sentinel")
async def test_failover(topology: RedisWatched) -> None:
    """The primary is killed: requests wait 50 ms at most and then not at all, until sentinels made the replica primary;
    then what was held is still held, and keys are known."""
    client = topology.client(OPERATION_S)
    store, book = RedisStore(client, "t"), RedisBook(client, "t")
    await _until(lambda: store.sync([ask("usd/total", "x", 60)]))
    await _until(lambda: book.put(Key("key_1"), "digest"))
    waited = await topology.ask(topology.primary, "WAIT", "1", "5000")
    assert waited == 1
    topology.servers[topology.primary].send_signal(signal.SIGSTOP)  # hangs, which is worse than dead
    for _ in range(5):
        with pytest.raises(StoreAway):
            await store.sync([ask("usd/total", "y", 1)])
    assert store.degraded
    topology.servers[topology.primary].kill()
    (grant,) = await _until(lambda: store.sync([ask("usd/total", "y", 60)]))
    assert grant.held == 0
    assert not store.degraded
    assert await book.find("digest") is not None
    assert await topology.names()


@on("cluster")
async def test_a_node_that_is_lost(topology: RedisNodes) -> None:
    """With one of three nodes gone the client degrades within its bound, and recovers by itself when it is back."""
    client = topology.client(OPERATION_S)
    store = RedisStore(client, "t")
    names = [f"usd/{number}" for number in range(12)]
    for name in names:
        await _until(lambda name=name: store.sync([ask(name, "x", 1)]))  # type: ignore[misc]
    topology.servers[topology.ports[1]].send_signal(signal.SIGSTOP)
    failed = 0
    for _ in range(4):
        for name in names:
            try:
                await store.sync([ask(name, "x", 1)])
            except StoreAway:
                failed += 1
    assert failed >= 5
    topology.servers[topology.ports[1]].send_signal(signal.SIGCONT)
    for name in names:
        (grant,) = await _until(lambda name=name: store.sync([ask(name, "x", 1)]))  # type: ignore[misc]
        assert grant.held == 1
    assert not store.degraded


async def _until(deed: Any) -> Any:
    """What `deed` gives once the store answers."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await deed()
            except StoreAway:
                await asyncio.sleep(0.05)
