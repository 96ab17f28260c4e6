"""Redis with every operation bounded, behind a breaker: a slow or dead Redis costs a request 50 ms at most, and
soon nothing.

To find a server takes longer than to ask it: its name, TLS, who is the primary, which node has which slots. So that is
done before the first use, and, after a failure, beside the requests, within a bound of its own; it leaves connections
that they then use. Else a fleet whose nodes are 30 ms away would start to connect for ever, and never finish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

from gateway.state.breaker import Breaker
from gateway.state.store import StoreAway

__all__ = ["OPERATION_S", "READY", "RedisClient"]

T = TypeVar("T")
OPERATION_S = 0.05
FIND_S = 3.0
"""How long it may take to find the server again."""
CONNECT_S = 1.0
"""For one step of that: to connect, and for each answer while a connection is made."""
READY = 4
"""Connections that are made at once, for as many requests that need one."""
CONNECTIONS = 64


class RedisClient:
    """Redis at `url`: `redis://`, `rediss://` (TLS), `unix://`, `redis+cluster://HOST:PORT` or
    `redis+sentinel://HOST:PORT,HOST:PORT/SERVICE` (either with `rediss+…` for TLS). Files for TLS stand in its query:
    `?ssl_ca_certs=…&ssl_certfile=…&ssl_keyfile=…`. The first use connects, unless `open` has."""

    def __init__(self, url: str, *, timeout_s: float = OPERATION_S) -> None:
        self._url, self._timeout_s = url, timeout_s
        self.breaker = Breaker()
        self._client: Any = None
        self._finding: asyncio.Task[None] | None = None
        self._opened = False

    async def open(self) -> None:
        """Find the server, within `FIND_S` seconds; whether it answers, the first use tells."""
        if not self._opened:
            if self._finding is None:
                self._finding = asyncio.create_task(self._find())
            await asyncio.shield(self._finding)  # for all who wait, any of whom may leave
            self._opened = True

    async def run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """`work(client)`, within the bound. Raises `StoreAway`."""
        loop = asyncio.get_running_loop()
        if not self.breaker.allows(loop.time()):
            raise StoreAway("Redis does not answer.", sure=True)
        await self.open()
        client = self._made()  # loading the library takes longer than Redis does, and is not its fault
        try:
            async with asyncio.timeout(self._timeout_s):
                told = await work(client)
        except _away() as error:
            self.breaker.failed(loop.time())
            if self._finding is None or self._finding.done():
                self._finding = asyncio.create_task(self._find())
            # The type alone: a message may hold the address.
            raise StoreAway(f"Redis: {type(error).__name__}.", sure=self.breaker.open) from error
        self.breaker.succeeded()
        return told

    async def close(self) -> None:
        """Close every connection."""
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.gather(self._finding, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    def _made(self) -> Any:
        """The client, made on first use because it belongs to the running event loop."""
        if self._client is None:
            self._client = _connect(self._url, self._timeout_s)
        return self._client

    async def _find(self) -> None:
        """Have the client find its server, or all of them. Whether they answer, the next request sees."""
        with suppress(*_away()):
            client = self._made()
            async with asyncio.timeout(FIND_S):
                if urlsplit(self._url).scheme.endswith("+cluster"):
                    await client.initialize()
                    await client.ping(target_nodes="primaries")
                else:
                    await asyncio.gather(*(client.ping() for _ in range(READY)), return_exceptions=True)


def _away() -> tuple[type[Exception], ...]:
    """What is raised when Redis does not answer, or not in time. That of a cluster is no `RedisError`."""
    from redis.exceptions import RedisClusterException, RedisError

    return RedisError, RedisClusterException, OSError, TimeoutError


def _connect(url: str, timeout_s: float) -> Any:
    from redis.asyncio import BlockingConnectionPool, Redis
    from redis.asyncio.cluster import RedisCluster
    from redis.asyncio.sentinel import Sentinel

    told = urlsplit(url)
    scheme, _, kind = told.scheme.partition("+")
    plain = f"{scheme}://{url.partition('://')[2]}"
    # An operation is bounded where it is made; these bound the steps of connecting.
    options: dict[str, Any] = {"socket_timeout": CONNECT_S, "socket_connect_timeout": CONNECT_S}
    if kind == "cluster":
        return RedisCluster.from_url(plain, **options)
    if kind == "sentinel":
        login, _, hosts = told.netloc.rpartition("@")
        addresses = [(host.rpartition(":")[0], int(host.rpartition(":")[2])) for host in hosts.split(",")]
        options |= parse_qsl(told.query)
        if login:
            options["password"] = login.rpartition(":")[2]
        if scheme == "rediss":
            options["ssl"] = True
        sentinel: Any = Sentinel(addresses, sentinel_kwargs=dict(options))  # type: ignore[no-untyped-call]
        return sentinel.master_for(told.path.strip("/"), **options)
    pool = BlockingConnectionPool.from_url(plain, max_connections=CONNECTIONS, timeout=timeout_s, **options)
    return Redis.from_pool(pool)
