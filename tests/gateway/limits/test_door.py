"""What a request sets aside at the door, scope by scope."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.keys.key import ANYONE, Key
from gateway.limits import rates, slices
from gateway.limits.bounds import Bound
from gateway.limits.door import TERMS_S, Door, Stay
from gateway.limits.rates import Rates
from gateway.limits.slices import Slices
from protocol.errors import QuotaSpent, RateLimited, StateUnavailable
from protocol.tenancy import LimitSettings, LimitsSettings
from tests.memory_store import MemoryStore

BOUND = Bound(100, 10)


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def door(store: MemoryStore, **limits: Any) -> Door:
    settings = LimitsSettings.model_validate({"patience_s": 0.05, **limits})
    return Door(
        settings,
        store,
        Slices(store, "w"),
        Rates(store, Clock(), alone=settings.without_store == "local"),
        Clock(),
    )


def key(**limits: Any) -> Key:
    return Key("key_1", team="t", limits=LimitSettings.model_validate(limits))


async def enter(through: Door, who: Key = ANYONE, bound: Bound = BOUND) -> Stay:
    return await through.enter(through.concerns(who, "m"), bound)


async def test_scopes_in_order() -> None:
    """Everyone, the model, the team, the key; those without limits are not asked."""
    one = {"rpm": 1}
    made = door(MemoryStore(), everyone=one, models={"m": one, "n": one}, teams={"t": one, "u": one})
    told = [gate.scope for gate in made.concerns(key(rpm=1), "m").gates]
    assert told == ["everyone", "model:m", "team:t", "key:key_1"]
    assert door(MemoryStore()).concerns(ANYONE, "m").gates == ()


async def test_terms_are_found_once() -> None:
    """What concerns a key is looked up once, until the key is another one; equal ones count together."""
    made, who = door(MemoryStore(), everyone={"rpm": 9}), key(concurrent=1)
    assert made.concerns(who, "m") is made.concerns(who, "m")
    assert made.concerns(key(concurrent=1), "m") is made.concerns(who, "m")
    await enter(made, who)
    await enter(made, key(concurrent=2))
    with pytest.raises(RateLimited, match="at once"):
        await enter(made, who)


def test_terms_do_not_outlive_what_they_hold() -> None:
    """Slices and rates that nobody uses are forgotten later than the terms that found them."""
    assert min(slices.KEPT_S, rates.KEPT_S) > 2 * TERMS_S


async def test_requests_per_minute() -> None:
    """The request beyond is told which limit it is, when to come back, and what is left."""
    made = door(MemoryStore(), everyone={"rpm": 3})
    for _ in range(3):
        await enter(made)
    with pytest.raises(RateLimited) as refused:
        await enter(made)
    headers = refused.value.headers()
    assert refused.value.type == "requests"
    assert headers["retry-after"] == "20"
    assert 19_000 <= int(headers["retry-after-ms"]) <= 20_000
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "1m0s"


async def test_tokens_are_corrected() -> None:
    """A request takes what it may use, and gives back what it did not."""
    made = door(MemoryStore(), everyone={"tpm": 20})
    stay = await enter(made)
    made.leave(stay, 0, 1)
    made.leave(await enter(made), 0, 1)
    with pytest.raises(RateLimited) as refused:
        await enter(made, bound=Bound(0, 20))
    assert refused.value.type == "tokens"


async def test_requests_at_once() -> None:
    """A place is taken until the request is over."""
    made = door(MemoryStore(), everyone={"concurrent": 1})
    stay = await enter(made)
    with pytest.raises(RateLimited, match="at once"):
        await enter(made)
    made.leave(stay, 0, 0)
    await enter(made)


async def test_money() -> None:
    """Held money is refused for now, spent money for good; what was not spent comes back."""
    made = door(MemoryStore())
    who = key(budgets_usd={"day": 150e-9})
    stay = await enter(made, who)
    assert stay.terms.metered
    with pytest.raises(RateLimited) as held:
        await enter(made, who)
    assert held.value.type == "insufficient_quota"
    assert "retry-after-ms" in held.value.headers()
    made.leave(stay, 40, 0)
    stay = await enter(made, who)
    made.leave(stay, 100, 0)
    with pytest.raises(QuotaSpent) as spent:
        await enter(made, who)
    assert spent.value.headers() == {"x-should-retry": "false"}
    assert "lower max_tokens" in spent.value.message


async def test_refusal_gives_all_back() -> None:
    """Where the last scope refuses, the earlier ones have lost nothing."""
    store = MemoryStore()
    made = door(store, everyone={"rpm": 10, "concurrent": 5, "budgets_usd": {"total": 1e-6}})
    with pytest.raises(QuotaSpent):
        await enter(made, key(budgets_usd={"day": 50e-9}))
    stays = [await enter(made) for _ in range(5)]
    assert sum(len(stay.pots) for stay in stays) == 10


async def test_windows_are_separate() -> None:
    """A new day is a new budget; what began the day before settles there."""
    store, clock = MemoryStore(), Clock()
    made = Door(LimitsSettings(patience_s=0.05), store, Slices(store, "w"), Rates(store, clock), clock)
    who = key(budgets_usd={"day": 100e-9})
    first = await enter(made, who)
    clock.now += 86_400
    second = await enter(made, who)
    made.leave(first, 100, 0)
    made.leave(second, 0, 0)
    await enter(made, who)


async def test_without_the_store() -> None:
    """Rates and places are kept by each worker for itself; money is refused."""
    store = MemoryStore()
    store.away = True
    made = door(store, everyone={"rpm": 3, "concurrent": 2})
    stays = [await enter(made) for _ in range(2)]
    with pytest.raises(RateLimited, match="at once"):
        await enter(made)
    made.leave(stays[0], 0, 0)
    await enter(made)
    with pytest.raises(StateUnavailable) as refused:
        await enter(door(store), key(budgets_usd={"day": 1}))
    assert "retry-after" in refused.value.headers()
    with pytest.raises(StateUnavailable):
        await enter(door(store, everyone={"rpm": 3}, without_store="refuse"))


async def test_idle_rates_come_back() -> None:
    """What a worker took ahead and does not use, another one gets."""
    store = MemoryStore()
    rates = Rates(store, Clock())
    rate = rates.rate("b", 1000)
    await rates.take(rate, 1)
    assert rate.tokens > 0
    await asyncio.sleep(1.1)
    await rates.report()
    assert rate.tokens == 0
    assert store.buckets["b"].level >= 999
