"""A shared store in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from gateway.state.accounts import Account, Ask, Bucket, Grant, Taken, Want, sync, take
from gateway.state.store import StoreAway


class MemoryStore:
    """The rules, in this process; counts operations, and can be away."""

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.buckets: dict[str, Bucket] = {}
        self.operations = 0
        self.away = False
        self.now = 0.0

    @property
    def degraded(self) -> bool:
        return self.away

    async def sync(self, asks: Sequence[Ask]) -> list[Grant]:
        await self._answer()
        return [sync(self.accounts.setdefault(a.account, Account()), a, self._time()) for a in asks]

    async def take(self, want: Want) -> Taken:
        await self._answer()
        bucket = self.buckets.setdefault(want.bucket, Bucket(want.capacity, self._time()))
        return take(bucket, want, self._time())

    async def open(self) -> None:
        """It is there."""

    async def close(self) -> None:
        return

    async def _answer(self) -> None:
        self.operations += 1
        await asyncio.sleep(0)
        if self.away:
            raise StoreAway("away", sure=True)

    def _time(self) -> float:
        return asyncio.get_running_loop().time() + self.now
