"""Where answers are kept: bounded in memory, expiring in Redis, and never in the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gateway.caching.memory import OVERHEAD, MemoryStore
from gateway.caching.semantic import SemanticIndex
from gateway.caching.shared import SharedStore
from gateway.state.redis_client import RedisClient
from tests.redis_server import RedisServer


async def test_memory_forgets_what_is_old() -> None:
    """An entry lives as long as it was given, and no longer."""
    now = [0.0]
    store = MemoryStore(1 << 20, lambda: now[0])
    await store.put("a", b"1", 10)
    now[0] = 9.9
    assert await store.get("a") == b"1"
    now[0] = 10.0
    assert await store.get("a") is None


async def test_memory_is_bounded() -> None:
    """What was asked for least recently goes first; one entry never takes more than an eighth."""
    store = MemoryStore(16 * (OVERHEAD + 100), lambda: 0.0)
    for i in range(16):
        await store.put(str(i), bytes(100), 10)
    assert await store.get("0") is not None
    await store.put("16", bytes(100), 10)
    assert await store.get("1") is None
    assert await store.get("0") is not None
    await store.put("0", bytes(100_000), 10)
    assert await store.get("0") is None
    for _ in range(100):
        await store.put("same", bytes(100), 10)
    assert await store.get("16") is not None


@pytest.mark.requires("redis-server")
async def test_redis_expires(redis: RedisServer) -> None:
    """Another worker sees what was put, under a name with the prefix that expires; a large answer is not put."""
    one, other = (RedisClient(redis.url, timeout_s=2.0) for _ in range(2))
    await SharedStore(one, "t").put("a", b"1", 60)
    assert await SharedStore(other, "t").get("a") == b"1"
    assert await SharedStore(other, "u").get("a") is None

    async def left_ms(client: Any) -> Any:
        return await client.pttl("t:answer:a")

    assert 0 < await one.run(left_ms) <= 60_000
    await SharedStore(one, "t").put("b", bytes(2 << 20), 60)
    assert await SharedStore(other, "t").get("b") is None
    await one.close()
    await other.close()


async def test_without_redis_nothing_is_kept() -> None:
    """A Redis that is away is a miss, not an error."""
    store = SharedStore(RedisClient("redis://127.0.0.1:1"), "t")
    await store.put("a", b"1", 60)
    assert await store.get("a") is None


def test_the_nearest_that_means_the_same() -> None:
    """The nearest ask past the guard is found, at or above the threshold, and only behind the same wall."""
    index = SemanticIndex(0.9, 10)
    near, nearer = (np.array(v, dtype=np.float32) for v in ([0.95, 0.3122499], [0.99, 0.1410674]))
    index.add("w", "close", "turn it on", near)
    index.add("w", "closest", "turn it off", nearer)
    ask = np.array([1, 0], dtype=np.float32)
    found = index.find("w", "please turn it on", ask)
    assert found is not None
    assert (found.name, round(found.similarity, 2)) == ("close", 0.95)
    assert index.find("other", "please turn it on", ask) is None
    assert index.find("w", "please turn it on", np.array([0, 1], dtype=np.float32)) is None
    index.forget("w", "close")
    assert index.find("w", "please turn it on", ask) is None


def test_the_index_is_bounded() -> None:
    """The oldest asks go first; each name stands once; what is left is found as before."""
    index = SemanticIndex(0.99, 20)
    rows = np.eye(30, dtype=np.float32)
    for i in range(30):
        index.add(f"wall {i % 3}", f"n{i}", "words", rows[i])
        index.add(f"wall {i % 3}", f"n{i}", "words", rows[i])
    found = [index.find(f"wall {i % 3}", "words", rows[i]) for i in range(30)]
    assert [near.name if near else None for near in found] == [None] * 10 + [f"n{i}" for i in range(10, 30)]
