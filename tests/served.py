"""`chorus serve` as real processes, for tests."""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

__all__ = ["Served", "Start", "alive", "free_port", "start"]

ROOT = Path(__file__).parents[1]
SERVE = """
import sys
from pathlib import Path
from gateway.supervisor import serve
from protocol.errors import SettingsError
from protocol.settings import load_settings
config, port, admin_port, workers = Path(sys.argv[1]), *map(int, sys.argv[2:])
try:
    settings = load_settings(config)
    sys.exit(serve(settings, config, port=port, admin_port=admin_port, workers=workers))
except SettingsError as error:
    print(error)
    sys.exit(2)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@dataclass
class Served:
    """A running supervisor."""

    process: Process
    port: int
    config: Path
    log: Path
    admin: httpx.AsyncClient
    told: list[str] = field(default_factory=list)

    async def ready(self) -> None:
        """Wait for the ready line, keeping what was printed."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            while not any("is ready" in line for line in self.told):
                line = await self.process.stdout.readline()
                assert line, f"ended before it was ready: {self.told}"
                self.told.append(line.decode())

    async def config_told(self) -> dict[str, Any]:
        """What the admin port tells of the config in force."""
        told: dict[str, Any] = (await self.admin.get("/status")).json()["config"]
        return told

    async def logs(self, line: str) -> None:
        """Wait until `line` stands in what was printed to standard error."""
        async with asyncio.timeout(20):
            while line not in self.log.read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def components(self) -> dict[str, Any]:
        """What the admin port tells of the children."""
        told: dict[str, Any] = (await self.admin.get("/status")).json()["components"]
        return told


Start = Callable[..., Awaitable[Served]]


@pytest.fixture
async def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts supervisors, and ends what is left of them."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # so that a killed supervisor's files end with the test
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with AsyncExitStack() as stack:

        async def begin(
            config: str, *, workers: int = 1, port: int | None = None, at: Path | None = None
        ) -> Served:
            path = at or tmp_path / "config.yaml"
            path.write_text(config)
            log = (tmp_path / "log").open("ab")
            port, admin_port = port or free_port(), free_port()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", SERVE, str(path), str(port), str(admin_port), str(workers)),
                stdout=PIPE,
                stderr=log,
                cwd=tmp_path,
            )
            log.close()

            async def end() -> None:
                if process.returncode is None:
                    process.terminate()
                await process.communicate()

            stack.push_async_callback(end)
            base = f"http://127.0.0.1:{admin_port}"
            admin = await stack.enter_async_context(httpx.AsyncClient(base_url=base, verify=False))
            return Served(process, port, path, tmp_path / "log", admin)

        yield begin
