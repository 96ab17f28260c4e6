"""Redis with every operation bounded, behind a breaker: a slow or dead Redis costs a request 50 ms at most, and
soon nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from gateway.state.breaker import Breaker
from gateway.state.store import StoreAway

__all__ = ["OPERATION_S", "RedisClient"]

T = TypeVar("T")
OPERATION_S = 0.05
CONNECTIONS = 64


class RedisClient:
    """Redis at `url`: `redis://`, `rediss://` (TLS), `unix://`, `redis+cluster://HOST:PORT` or
    `redis+sentinel://HOST:PORT,HOST:PORT/SERVICE` (either with `rediss+…` for TLS). Connected on first use."""

    def __init__(self, url: str, *, timeout_s: float = OPERATION_S) -> None:
        self._url, self._timeout_s = url, timeout_s
        self.breaker = Breaker()
        self._client: Any = None

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """`work(client)`, within the bound. Raises `StoreAway`."""
        import redis.exceptions

        loop = asyncio.get_running_loop()
        if not self.breaker.allows(loop.time()):
            raise StoreAway("Redis does not answer.", sure=True)
        try:
            async with asyncio.timeout(self._timeout_s):
                told = await work(self._open())
        except (redis.exceptions.RedisError, OSError, TimeoutError) as error:
            self.breaker.failed(loop.time())
            # The type alone: a message may hold the address.
            raise StoreAway(f"Redis: {type(error).__name__}.", sure=self.breaker.open) from error
        self.breaker.succeeded()
        return told

    async def close(self) -> None:
        """Close every connection."""
        if self._client is not None:
            await self._client.aclose()

    def _open(self) -> Any:
        """The client, made on first use because it belongs to the running event loop."""
        if self._client is None:
            self._client = _connect(self._url, self._timeout_s)
        return self._client


def _connect(url: str, timeout_s: float) -> Any:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.sentinel import Sentinel

    scheme, _, kind = urlsplit(url).scheme.partition("+")
    plain = f"{scheme}://{url.partition('://')[2]}"
    options: dict[str, Any] = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    if kind == "cluster":
        return RedisCluster.from_url(plain, **options)
    if kind == "sentinel":
        hosts, _, service = plain.partition("://")[2].rpartition("/")
        login, _, hosts = hosts.rpartition("@")
        addresses = [(host.rpartition(":")[0], int(host.rpartition(":")[2])) for host in hosts.split(",")]
        if login:
            options["password"] = login.rpartition(":")[2]
        if scheme == "rediss":
            options["ssl"] = True
        sentinel: Any = Sentinel(addresses, sentinel_kwargs=dict(options))  # type: ignore[no-untyped-call]
        return sentinel.master_for(service, **options)
    pool = BlockingConnectionPool.from_url(plain, max_connections=CONNECTIONS, timeout=timeout_s, **options)
    return Redis.from_pool(pool)
