"""A Redis server of the test's own, and stores on it and on a file."""

from __future__ import annotations

import asyncio
import shutil
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import pytest

from gateway.state.redis_client import RedisClient


@dataclass
class RedisServer:
    """A server on a Unix socket, empty and without persistence."""

    folder: Path
    process: Process | None = None
    clients: list[RedisClient] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/redis.sock"

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            *("redis-server", "--port", "0", "--unixsocket", str(self.folder / "redis.sock")),
            *("--save", "", "--appendonly", "no", "--dir", str(self.folder)),
            stdout=DEVNULL,
        )
        async with asyncio.timeout(10):
            while not (self.folder / "redis.sock").exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            await self.process.wait()

    def client(self, timeout_s: float = 2.0) -> RedisClient:
        """A client with a bound that a busy test machine keeps."""
        client = RedisClient(self.url, timeout_s=timeout_s)
        self.clients.append(client)
        return client


@pytest.fixture
async def start_redis() -> AsyncIterator[Callable[[], Awaitable[RedisServer]]]:
    """Starts Redis servers, and ends them. Needs `redis-server`: mark the test with `requires`."""
    servers: list[RedisServer] = []

    async def start() -> RedisServer:
        # Not pytest's own folder: its path is too long for a socket.
        servers.append(RedisServer(Path(mkdtemp(prefix="chorus-redis-"))))
        await servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        for client in server.clients:
            await client.close()
        await server.stop()
        shutil.rmtree(server.folder)


@pytest.fixture
async def redis(start_redis: Callable[[], Awaitable[RedisServer]]) -> RedisServer:
    """One server."""
    return await start_redis()
