"""`chorus serve` as an operator sees it: real processes, light ones."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from backends.scripted import Script, ScriptedUpstream

ROOT = Path(__file__).parents[2]
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

        async def begin(config: str, *, workers: int = 1, port: int | None = None) -> Served:
            path = tmp_path / "config.yaml"
            path.write_text(config)
            port, admin_port = port or free_port(), free_port()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-c", SERVE, str(path), str(port), str(admin_port), str(workers)),
                stdout=PIPE,
                cwd=tmp_path,
            )

            async def end() -> None:
                if process.returncode is None:
                    process.terminate()
                await process.communicate()

            stack.push_async_callback(end)
            base = f"http://127.0.0.1:{admin_port}"
            admin = await stack.enter_async_context(httpx.AsyncClient(base_url=base, verify=False))
            return Served(process, port, admin)

        yield begin


@pytest.fixture
async def config(upstream: ScriptedUpstream) -> AsyncIterator[str]:
    """A config of one model behind the scripted upstream."""
    async with upstream.serving() as url:
        yield f"models: {{echo: {{openai: {{base_url: '{url}', model: x}}}}}}"


async def test_serves_and_stops(start: Start, config: str) -> None:
    """Two workers answer on one port; metrics are merged; SIGTERM ends everything and leaves no files."""
    served = await start(config, workers=2)
    await served.ready()
    assert f"http://127.0.0.1:{served.port}/v1" in served.told[0]
    messages = [{"role": "user", "content": "x"}]
    for _ in range(6):  # each over a connection of its own, so that either worker may take it
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="x") as client:
            answer = await client.chat.completions.create(model="echo", messages=messages)  # type: ignore[arg-type]
            assert answer.choices[0].message.content == Script().text
    assert (await served.admin.get("/livez")).status_code == 200
    assert (await served.admin.get("/readyz")).json()["status"] == "ready"
    counted = 'chorus_requests_total{outcome="ok",requested_model="echo",strategy="direct"} 6.0'
    async with asyncio.timeout(10):
        while counted not in (await served.admin.get("/metrics")).text:  # noqa: ASYNC110 - workers flush in turn
            await asyncio.sleep(0.05)
    assert (await served.admin.get("/nope")).json()["error"]["code"] == "not_found"
    pids = [child["pid"] for child in (await served.components()).values()]
    served.process.terminate()
    assert await served.process.wait() == 0
    assert not any(map(alive, pids))
    assert not [name for name in os.listdir(os.environ["TMPDIR"]) if name.startswith("chorus-")]  # noqa: PTH208


async def test_killed_worker_returns(start: Start, config: str, until: Any) -> None:
    """A killed worker is started again, while the port stays open."""
    served = await start(config)
    await served.ready()
    pid = (await served.components())["worker-0"]["pid"]
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        while (state := (await served.components())["worker-0"])["pid"] in (pid, None):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert state["restarts"] == 1
    async with httpx.AsyncClient(verify=False, timeout=20) as client:
        assert (await client.get(f"http://127.0.0.1:{served.port}/livez")).status_code == 200


async def test_sigkill_leaves_no_orphan(start: Start, config: str, until: Any) -> None:
    """Killed with SIGKILL, the supervisor takes every child along, also those of a program that knows nothing
    of it."""
    served = await start(config, workers=2)
    await served.ready()
    pids = [child["pid"] for child in (await served.components()).values()]
    assert all(map(alive, pids))
    served.process.kill()
    await served.process.wait()
    await until(lambda: not any(map(alive, pids)))


async def test_drains(start: Start, config: str, upstream: ScriptedUpstream, until: Any) -> None:
    """SIGTERM lets a running stream finish; readiness is off meanwhile."""
    upstream.default = Script(text="word " * 30, chunk_delay_s=0.05)
    served = await start(config)
    await served.ready()
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "stream": True}
    url = f"http://127.0.0.1:{served.port}/v1/chat/completions"
    async with (
        httpx.AsyncClient(verify=False) as client,
        client.stream("POST", url, json=body) as response,
    ):
        events = response.aiter_text()
        await anext(events)
        served.process.terminate()
        async with asyncio.timeout(10):
            while (told := await served.admin.get("/readyz")).status_code != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert told.json()["status"] == "draining"
        rest = "".join([event async for event in events])
    assert rest.endswith("data: [DONE]\n\n")
    assert await served.process.wait() == 0


def _restarted(component: dict[str, Any]) -> bool:
    """Whether a component is ready again after it had ended."""
    return bool(component["restarts"]) and component["state"] == "ready"


async def _status(client: openai.AsyncOpenAI) -> int:
    """The status of a new text's embedding."""
    try:
        await client.with_options(max_retries=0).embeddings.create(model="mini", input=os.urandom(8).hex())
    except openai.APIStatusError as error:
        return error.status_code
    return 200


@pytest.mark.requires("weights:all-minilm-l6-v2-int8")
async def test_embedder(start: Start, config: str) -> None:
    """The embedder process is started beside the workers, serves them, and is started again when killed."""
    served = await start(f"{config[:-1]}, mini: {{embedder: {{weights: all-minilm-l6-v2-int8}}}}}}")
    await served.ready()
    async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="x") as client:
        answer = await client.embeddings.create(model="mini", input=["a cat", "a kitten", "tax law"])
        cat, kitten, law = (row.embedding for row in answer.data)
        assert sum(x * y for x, y in zip(cat, kitten, strict=True)) > sum(
            x * y for x, y in zip(cat, law, strict=True)
        )
        os.kill((await served.components())["embedder"]["pid"], signal.SIGKILL)
        while (told := await _status(client)) == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert told == 503
        async with asyncio.timeout(30):
            while not _restarted((await served.components())["embedder"]):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await client.embeddings.create(model="mini", input="back")).data


async def test_taken_port(start: Start, config: str) -> None:
    """A taken port stops the start with who has it and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        served = await start(config, port=taken.getsockname()[1])
        told, _ = await served.process.communicate()
    assert served.process.returncode == 2
    assert b"--port" in told


async def test_missing_artefact(start: Start, config: str, tmp_path: Path) -> None:
    """An artefact that is not there stops the start; the worker has said which."""
    cascade = f"{{method: token-uncertainty, stages: [echo, echo], artefact: {tmp_path / 'nope'}}}"
    served = await start(config + f"\nstrategies: {{cascade: {{cascade: {cascade}}}}}")
    told, _ = await served.process.communicate()
    assert served.process.returncode == 2
    assert b"worker-0 cannot start with this config" in told
