"""A worker's slices of shared accounts."""

from __future__ import annotations

import asyncio

import pytest

from gateway.limits.slices import Exhausted, Slice, Slices
from gateway.state.store import StoreAway
from tests.memory_store import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


async def test_one_operation_for_many_requests(store: MemoryStore) -> None:
    """A refill takes some ahead, so that most reservations ask nobody."""
    slices = Slices(store, "w")
    money = slices.slice("usd", 100_000)
    for _ in range(16):
        await slices.reserve(money, 10, patience_s=1)
        slices.release(money, 10, 5)
    assert store.operations == 1
    await slices.close()
    assert store.accounts["usd"].settled == 80


async def test_a_crowd_asks_seldom(store: MemoryStore) -> None:
    """Where many come at once, each refill takes along more than the one before."""
    slices = Slices(store, "w")
    money = slices.slice("usd", 1_000_000)
    for _ in range(400):
        await slices.reserve(money, 10, patience_s=1)
    assert store.operations <= 5


async def test_two_workers_never_overspend(store: MemoryStore) -> None:
    """Many tasks of two workers spend a budget to within one request of its end, and not beyond."""
    workers = [Slices(store, name) for name in ("v", "w")]
    passes = [asyncio.create_task(worker.run()) for worker in workers]
    refused = 0

    async def caller(worker: Slices) -> None:
        nonlocal refused
        while True:
            money = worker.slice("usd", 10_000)
            try:
                await worker.reserve(money, 100, patience_s=20)
            except Exhausted as error:
                refused += error.final
                return
            await asyncio.sleep(0.001)
            worker.release(money, 100, 37)

    await asyncio.gather(*(caller(worker) for worker in workers for _ in range(20)))
    for task in passes:
        task.cancel()
    for worker in workers:
        await worker.close()
    assert refused == 40
    assert 9_900 < store.accounts["usd"].settled <= 10_000


async def test_idle_money_comes_back(store: MemoryStore) -> None:
    """What one worker holds and does not use, another one gets after a moment."""
    one, other = Slices(store, "one"), Slices(store, "other")
    passing = asyncio.create_task(one.run())
    held = one.slice("usd", 100)
    await one.reserve(held, 60, patience_s=1)
    one.release(held, 60, 0)
    await other.reserve(other.slice("usd", 100), 100, patience_s=5)
    passing.cancel()


async def test_held_is_not_spent(store: MemoryStore) -> None:
    """Money that calls under way hold may come back: that refusal is not final."""
    slices = Slices(store, "w")
    money = slices.slice("usd", 100)
    await slices.reserve(money, 80, patience_s=1)
    with pytest.raises(Exhausted) as refused:
        await slices.reserve(money, 80, patience_s=0.05)
    assert not refused.value.final
    slices.release(money, 80, 80)
    with pytest.raises(Exhausted) as refused:
        await slices.reserve(money, 80, patience_s=5)
    assert refused.value.final


async def test_a_dead_worker_leaks_nothing(store: MemoryStore) -> None:
    """A worker that vanishes with a reservation loses it when its lease ends."""
    dead, alive = Slices(store, "dead"), Slices(store, "alive")
    await dead.reserve(dead.slice("usd", 100), 100, patience_s=1)
    with pytest.raises(Exhausted):
        await alive.reserve(alive.slice("usd", 100), 100, patience_s=0.05)
    store.now += 11
    await alive.reserve(alive.slice("usd", 100), 100, patience_s=1)


async def test_without_the_store_money_ends_with_the_slice(store: MemoryStore) -> None:
    """With the store away a worker spends what it holds, and no more; and not beyond its lease."""
    slices = Slices(store, "w", lease_s=0.5)
    money = slices.slice("usd", 1_000)
    await slices.reserve(money, 10, patience_s=1)
    store.away = True
    await slices.reserve(money, 10, patience_s=1)
    with pytest.raises(StoreAway):
        await slices.reserve(money, 500, patience_s=1)
    await asyncio.sleep(0.45)
    with pytest.raises(StoreAway):
        await slices.reserve(money, 10, patience_s=1)


async def test_leaving_while_waiting(store: MemoryStore) -> None:
    """A request that is cancelled while it waits reserves nothing."""
    slices = Slices(store, "w")
    money = slices.slice("usd", 100)
    await slices.reserve(money, 80, patience_s=1)
    waiting = asyncio.create_task(slices.reserve(money, 80, patience_s=5))
    await asyncio.sleep(0.01)
    waiting.cancel()
    slices.release(money, 80, 0)
    await asyncio.sleep(0.1)
    assert money.reserved == 0
    assert isinstance(money, Slice)
