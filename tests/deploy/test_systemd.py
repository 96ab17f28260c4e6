"""The systemd units, and a restart that loses no request."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from backends.scripted import Script, ScriptedUpstream

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
GIVEN = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, "-c", "from gateway.cli import main; main()", *sys.argv[2:]])
"""

Start = Callable[[], Awaitable[Process]]


@pytest.mark.requires("systemd-analyze")
def test_units_are_right(tmp_path: Path) -> None:
    """Systemd finds no fault in the units, and little to attack: exposure below 3 of 10."""
    for unit in UNITS.iterdir():
        shutil.copy(unit, tmp_path)
    service = tmp_path / "chorus.service"
    service.write_text(service.read_text().replace("/opt/chorus/bin/chorus", sys.executable))
    checks = (["verify", str(service)], ["security", "--offline=true", "--threshold=30", str(service)])
    for check in checks:
        command = ["systemd-analyze", "--man=no", *check]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "chorus.service:" not in done.stderr


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """The socket that the service manager holds."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen(128)
        yield held


@pytest.fixture
async def start(port: socket.socket, upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts gateways on the held socket, ready when it returns, and ends them."""
    told = tmp_path / "notify"
    running = []
    async with upstream.serving() as url:
        config = tmp_path / "chorus.yaml"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            admin = free.getsockname()[1]
        config.write_text(
            f"models: {{echo: {{openai: {{base_url: '{url}', model: x}}}}}}\nserver: {{admin_port: {admin}}}"
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(told))
            manager.setblocking(False)

            async def begin() -> Process:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-c", GIVEN, str(port.fileno()), "serve", str(config)),
                    env={
                        **os.environ,
                        "PYTHONPATH": str(ROOT),
                        "NOTIFY_SOCKET": str(told),
                        "TMPDIR": str(tmp_path),
                    },
                    pass_fds=(port.fileno(),),
                )
                running.append(process)
                async with asyncio.timeout(30):
                    while await asyncio.get_running_loop().sock_recv(manager, 64) != b"READY=1":
                        pass
                return process

            yield begin
            for process in running:
                if process.returncode is None:
                    process.terminate()
                await process.wait()


@pytest.fixture
def upstream() -> ScriptedUpstream:
    return ScriptedUpstream(default=Script(text="word " * 20, chunk_delay_s=0.05))


async def test_a_restart_loses_no_request(start: Start, port: socket.socket) -> None:
    """Answers being written are finished by the old process; requests that come while it ends, and until its
    successor is ready, wait in the held socket's queue and are answered by that one."""
    url = f"http://127.0.0.1:{port.getsockname()[1]}/v1/chat/completions"
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "stream": True}
    answers: list[str] = []

    async def ask() -> None:
        # A connection of its own, so that none is asked that the old process closes.
        async with httpx.AsyncClient(verify=False, timeout=60) as client:
            answers.append((await client.post(url, json=body)).text)

    async def keep_asking(until: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            while not until.is_set():
                group.create_task(ask())
                await asyncio.sleep(0.05)

    old = await start()
    over = asyncio.Event()
    asking = asyncio.create_task(keep_asking(over))
    await asyncio.sleep(0.5)
    old.terminate()
    assert await old.wait() == 0
    await start()
    await asyncio.sleep(0.5)
    over.set()
    await asking
    assert len(answers) > 20
    assert all(answer.endswith("data: [DONE]\n\n") for answer in answers)
