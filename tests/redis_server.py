"""A Redis server of a test's own."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio
import redis.exceptions
import trustme

from gateway.state.redis_client import RedisClient
from tests.served import free_port

SLOTS = 16384


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
            self.process.kill()  # a server that has just been told to keep an append-only file does not end by itself
            await self.process.wait()
            # Which it had no time for; `start` waits for a new one.
            (self.folder / "redis.sock").unlink(missing_ok=True)

    def client(self, timeout_s: float = 2.0) -> RedisClient:
        """A client with a bound that a busy test machine keeps."""
        client = RedisClient(self.url, timeout_s=timeout_s)
        self.clients.append(client)
        return client


class Topology(ABC):
    """Servers of one test on loopback TCP, each in a folder of its own below `folder`; with `tls` only over TLS, and
    only for clients with a certificate."""

    def __init__(self, folder: Path, *, tls: bool = False) -> None:
        self.folder = folder
        self.tls = tls
        self.clients: list[RedisClient] = []
        self.servers: dict[int, Process] = {}
        if tls:
            authority = trustme.CA()
            issued = authority.issue_cert("127.0.0.1")
            authority.cert_pem.write_to_path(folder / "ca.pem")
            issued.private_key_pem.write_to_path(folder / "key.pem")
            for number, blob in enumerate(issued.cert_chain_pems):
                blob.write_to_path(folder / "cert.pem", append=number > 0)

    def client(self, timeout_s: float = 2.0) -> RedisClient:
        """A client of all of it, with a bound that a busy test machine keeps."""
        self.clients.append(RedisClient(self.url, timeout_s=timeout_s))
        return self.clients[-1]

    @property
    def url(self) -> str:
        """Where all of it is reached."""
        return f"{'rediss' if self.tls else 'redis'}{self._place()}{self._query()}"

    @abstractmethod
    def _place(self) -> str:
        """The rest of the scheme, and the addresses."""

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        for process in self.servers.values():
            if process.returncode is None:
                process.kill()
            await process.wait()

    def _query(self) -> str:
        if not self.tls:
            return ""
        return "?" + "&".join(
            f"ssl_{name}={self.folder}/{file}.pem"
            for name, file in (("ca_certs", "ca"), ("certfile", "cert"), ("keyfile", "key"))
        )

    async def _serve(self, port: int, *options: str, sentinel: str | None = None) -> None:
        folder = self.folder / str(port)
        folder.mkdir()
        if sentinel is not None:
            (folder / "sentinel.conf").write_text(sentinel)
        tls = (
            *("--port", "0", "--tls-port", str(port), "--tls-replication", "yes", "--tls-cluster", "yes"),
            *("--tls-ca-cert-file", str(self.folder / "ca.pem")),
            *(
                "--tls-cert-file",
                str(self.folder / "cert.pem"),
                "--tls-key-file",
                str(self.folder / "key.pem"),
            ),
        )
        self.servers[port] = await asyncio.create_subprocess_exec(
            *(
                "redis-server",
                *([str(folder / "sentinel.conf"), "--sentinel"] if sentinel is not None else []),
            ),
            *(tls if self.tls else ("--port", str(port))),
            *("--bind", "127.0.0.1", "--dir", str(folder), *options),
            stdout=DEVNULL,
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    await self.ask(port, "PING")
                except (redis.exceptions.RedisError, OSError):
                    await asyncio.sleep(0.02)
                else:
                    return

    async def ask(self, port: int, *command: str) -> Any:
        """One command to one server."""
        scheme = "rediss" if self.tls else "redis"
        async with redis.asyncio.from_url(f"{scheme}://127.0.0.1:{port}{self._query()}") as client:
            return await client.execute_command(*command)


class SingleRedis(Topology):
    """One server."""

    async def start(self) -> None:
        self.port = free_port()
        await self._serve(self.port, "--save", "")

    def _place(self) -> str:
        return f"://127.0.0.1:{self.port}"


class RedisNodes(Topology):
    """A cluster of three nodes, without replicas."""

    async def start(self) -> None:
        ports = [free_port() for _ in range(6)]
        self.ports, buses = ports[:3], ports[3:]
        clustered = ("--save", "", "--cluster-enabled", "yes", "--cluster-port")
        pairs = zip(self.ports, buses, strict=True)
        await asyncio.gather(*(self._serve(port, *clustered, str(bus)) for port, bus in pairs))
        bounds = [SLOTS * number // 3 for number in range(4)]
        for number, port in enumerate(self.ports):
            await self.ask(port, "CLUSTER", "ADDSLOTSRANGE", str(bounds[number]), str(bounds[number + 1] - 1))
            if number:
                await self.ask(port, "CLUSTER", "MEET", "127.0.0.1", str(self.ports[0]), str(buses[0]))
        async with asyncio.timeout(30):
            for port in self.ports:
                while "cluster_state:ok" not in str(await self.ask(port, "CLUSTER", "INFO")):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)

    def _place(self) -> str:
        return f"+cluster://127.0.0.1:{self.ports[0]}"

    async def names(self) -> dict[str, int]:
        """Every key of every node → seconds it has left to live, -1 without end."""
        return await _names(self, self.ports)


class RedisWatched(Topology):
    """A primary and its replica, watched by three sentinels."""

    async def start(self) -> None:
        self.primary, self.replica, *self.sentinels = (free_port() for _ in range(5))
        await self._serve(self.primary, "--save", "")
        await self._serve(self.replica, "--save", "", "--replicaof", "127.0.0.1", str(self.primary))
        async with asyncio.timeout(20):
            while (await self.ask(self.replica, "INFO", "REPLICATION"))["master_link_status"] != "up":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        watch = (
            f"sentinel monitor main 127.0.0.1 {self.primary} 2\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
        )
        await asyncio.gather(*(self._serve(port, sentinel=watch) for port in self.sentinels))
        async with asyncio.timeout(30):
            while True:
                told = (await self.ask(self.sentinels[0], "INFO", "SENTINEL"))["master0"]
                if (told["sentinels"], told["slaves"]) == (3, 1):
                    break
                await asyncio.sleep(0.1)

    def _place(self) -> str:
        return f"+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.sentinels)}/main"

    async def names(self) -> dict[str, int]:
        return await _names(self, [self.replica])


async def _names(topology: Topology, ports: Sequence[int]) -> dict[str, int]:
    found = {}
    for port in ports:
        for name in await topology.ask(port, "KEYS", "*"):
            found[name.decode()] = await topology.ask(port, "TTL", name.decode())
    return found
