"""Requests and tokens per minute: a worker's share of shared buckets.

A bucket holds one minute's allowance and fills steadily. A worker takes a few requests ahead, so that most are
admitted without asking. With the store away every worker counts for itself, with the whole limit (a limit
protects backends and shares them out; it is not money), unless the operator wants no request then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from gateway.state.accounts import Bucket, Want, take
from gateway.state.store import Store, StoreAway

__all__ = ["PERIOD_S", "Rate", "Rates", "TooFast"]

PERIOD_S = 60.0
PERIOD_MS = 60_000
AHEAD = 50
"""A refill takes along at most a fiftieth of a minute's allowance."""
IDLE_S = 1.0
KEPT_S = 2 * PERIOD_S


class TooFast(Exception):
    """The allowance is used up; `wait_s` seconds until it is enough again."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"wait {wait_s:.3f} s")
        self.wait_s = wait_s


@dataclass(slots=True, eq=False)
class Rate:
    """The worker's share of one bucket. `debit` is what was used beyond what was taken (below 0: less), not yet
    reported; `level` what the bucket held when last heard of."""

    bucket: str
    capacity: int
    tokens: int = 0
    debit: int = 0
    level: float = 0.0
    used_at: float = 0.0
    alone: Bucket | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def take(self, amount: int, now: float) -> bool:
        """Use `amount`, or all a minute allows if that is less, if the worker has that much; whether it did."""
        self.used_at = now
        if amount > self.capacity:
            amount = self.capacity
        if self.tokens < amount:
            return False
        self.tokens -= amount
        return True

    def settle(self, taken: int, used: int, now: float) -> None:
        """Of what `taken` took, `used` turned out to be used; the difference goes back, or is owed."""
        if taken > self.capacity:
            taken = self.capacity
        if used <= taken:
            self.tokens += taken - used
        else:
            self.debit += used - taken

    @property
    def remaining(self) -> int:
        """What is left of the minute's allowance, as far as this worker knows."""
        return max(0, int(self.level) + self.tokens)

    def told(self) -> tuple[str, str, str]:
        """The allowance, what is left of it, and how long until it is whole again, in OpenAI's words."""
        capacity, left = self.capacity, self.remaining
        wait_ms = max(0, -((left - capacity) * PERIOD_MS // capacity))  # rounded up
        return str(capacity), str(left), f"{wait_ms}ms" if wait_ms < 1000 else _duration(wait_ms)


class Rates:
    """All rates of one worker. `now` tells seconds of a steady clock, for the limits kept alone."""

    def __init__(self, store: Store, now: Callable[[], float], *, alone: bool = True) -> None:
        self._store, self._now, self._alone = store, now, alone
        self._rates: dict[str, Rate] = {}

    def rate(self, bucket: str, capacity: int) -> Rate:
        """The worker's share of `bucket`, which holds `capacity` a minute. It is kept for as long as it is used, and
        `KEPT_S` after."""
        found = self._rates.get(bucket)
        if found is None or found.capacity != capacity:
            found = self._rates[bucket] = Rate(bucket, capacity)
        found.used_at = monotonic()
        return found

    async def take(self, rate: Rate, amount: int) -> None:
        """Use `amount` of the rate, or all a minute allows if that is less. Raises `TooFast`, and `StoreAway` where
        nothing may be admitted without the store."""
        amount = min(amount, rate.capacity)
        if not rate.take(amount, monotonic()):
            async with rate.asking:
                if not rate.take(amount, monotonic()):
                    await self._refill(rate, amount)
                    rate.tokens -= amount

    async def run(self) -> None:
        """Give back what lies idle and report debts, until cancelled."""
        while True:
            await asyncio.sleep(IDLE_S)
            await self.report()

    async def report(self) -> None:
        """One pass over the rates."""
        now = monotonic()
        for rate in list(self._rates.values()):
            idle = now - rate.used_at > IDLE_S
            if rate.asking.locked() or not (rate.debit or (idle and rate.tokens)):
                if idle and not rate.debit and now - rate.used_at > KEPT_S:
                    del self._rates[rate.bucket]
                continue
            async with rate.asking:
                try:
                    await self._ask(rate, 0, 0, give_back=idle)
                except StoreAway:
                    return

    async def _refill(self, rate: Rate, amount: int) -> None:
        need = amount - rate.tokens
        want = need + rate.capacity // AHEAD
        try:
            wait_s = await self._ask(rate, need, want)
        except StoreAway:
            if not self._alone:
                raise
            wait_s = self._refill_alone(rate, need, want)
        if rate.tokens < amount:
            raise TooFast(wait_s)

    async def _ask(self, rate: Rate, need: int, want: int, *, give_back: bool = False) -> float:
        debit, rate.debit = rate.debit, 0
        if give_back:
            debit, rate.tokens = debit - rate.tokens, 0
        try:
            taken = await self._store.take(Want(rate.bucket, rate.capacity, PERIOD_S, need, want, debit))
        except StoreAway:
            rate.debit += max(0, debit)
            raise
        rate.alone = None
        rate.tokens += taken.granted
        rate.level = taken.level
        return taken.wait_s

    def _refill_alone(self, rate: Rate, need: int, want: int) -> float:
        if rate.alone is None:
            rate.alone = Bucket(rate.capacity, self._now())
        debit, rate.debit = rate.debit, 0
        taken = take(rate.alone, Want(rate.bucket, rate.capacity, PERIOD_S, need, want, debit), self._now())
        rate.tokens += taken.granted
        rate.level = taken.level
        return taken.wait_s


def _duration(milliseconds: int) -> str:
    """As OpenAI writes seconds and more: `1s`, `6m0s`."""
    minutes, rest = divmod(-(-milliseconds // 1000), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
