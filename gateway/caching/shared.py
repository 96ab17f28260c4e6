"""Answers in Redis, so that all workers and replicas know them. Without Redis there are none, and nobody waits."""

from __future__ import annotations

from typing import Any

from gateway.state.redis_client import RedisClient
from gateway.state.store import StoreAway

__all__ = ["SharedStore"]

LARGEST = 1 << 20


class SharedStore:
    """Names begin with `prefix`; every one expires."""

    def __init__(self, client: RedisClient, prefix: str) -> None:
        self._client, self._prefix = client, f"{prefix}:answer"

    async def get(self, name: str) -> bytes | None:
        """What was put there; None also when Redis does not answer in time."""

        async def work(redis: Any) -> bytes | None:
            return await redis.get(f"{self._prefix}:{name}")  # type: ignore[no-any-return]

        try:
            return await self._client.run(work)
        except StoreAway:
            return None

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """Keep `value` for `ttl_s` seconds, if Redis answers, and unless it is larger than a MiB."""

        async def work(redis: Any) -> None:
            await redis.set(f"{self._prefix}:{name}", value, px=max(1, int(ttl_s * 1000)))

        if len(value) > LARGEST:
            return
        try:
            await self._client.run(work)
        except StoreAway:
            return

    async def open(self) -> None:
        """Connect to Redis."""
        await self._client.open()

    async def close(self) -> None:
        """Close the connections to Redis."""
        await self._client.close()
