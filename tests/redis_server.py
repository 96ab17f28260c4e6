"""A Redis server of a test's own."""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import DEVNULL, Process
from dataclasses import dataclass, field
from pathlib import Path

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
