"""Workers that are killed or crowded, as clients see it: real processes."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from backends.scripted import Script, ScriptedUpstream
from tests.served import Served, Start

STREAMS = 2000
PAGE = resource.getpagesize()


async def test_worker_killed_mid_stream(
    start: Start, config: str, upstream: ScriptedUpstream, until: Any
) -> None:
    """A worker is killed while it streams: the client's stream is cut without `[DONE]`, the backend's call ends, the
    worker is started again, and the metrics of both lives add up."""
    served = await start(config)
    await served.ready()
    url = f"http://127.0.0.1:{served.port}/v1/chat/completions"
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    async with httpx.AsyncClient(verify=False, timeout=20) as client:
        for _ in range(3):
            assert (await client.post(url, json=body)).status_code == 200
    await counted(served, 3)
    upstream.default = Script(text="word " * 1000, chunk_delay_s=0.05)
    pid = (await served.components())["worker-0"]["pid"]
    told = b""

    async def read() -> None:
        nonlocal told
        async with (
            httpx.AsyncClient(verify=False, timeout=20) as client,
            client.stream("POST", url, json={**body, "stream": True}) as response,
        ):
            async for piece in response.aiter_raw():
                if not told:
                    os.kill(pid, signal.SIGKILL)
                told += piece

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert b"word" in told
    assert b"[DONE]" not in told
    await until(lambda: upstream.left == ["x"])
    upstream.default = Script()
    async with asyncio.timeout(20):
        while (state := (await served.components())["worker-0"])["pid"] in (pid, None):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert state["restarts"] == 1
    async with httpx.AsyncClient(verify=False, timeout=20) as client:
        for _ in range(2):
            assert (await client.post(url, json=body)).status_code == 200
    await counted(served, 5)


async def counted(served: Served, answered: int) -> None:
    """Until the metrics of all workers tell of so many answers, and of none under way."""
    async with asyncio.timeout(20):
        while True:
            metrics = (await served.admin.get("/metrics")).text
            lines = [line for line in metrics.splitlines() if line.startswith("chorus_requests_total{")]
            total = sum(float(line.rpartition(" ")[2]) for line in lines if 'outcome="ok"' in line)
            assert total <= answered, f"{total} answers are counted"
            if total == answered and "chorus_requests_in_flight 0.0" in metrics:
                return
            await asyncio.sleep(0.1)


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as the system allows, for this process and those it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """An upstream that answers each stream with the caller's own words, once all have come; or with `filler`."""

    def __init__(self, size: int = 0, filler: int = 0) -> None:
        self.size, self.filler = size, filler
        self.come = 0
        self.sent = 0
        self.complete = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        application = web.Application(client_max_size=1 << 26)
        application.add_routes([web.post("/v1/chat/completions", self._answer)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        words = (await request.json())["messages"][0]["content"]
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        await response.write(_event({"role": "assistant", "content": ""}) + _event({"content": words[0]}))
        self.come += 1
        if self.come >= self.size:
            self.complete.set()
        await self.complete.wait()
        for letter in words[1:]:
            await response.write(_event({"content": letter}))
        while self.sent < self.filler:
            event = _event({"content": "x" * 60_000})
            await response.write(event)
            self.sent += len(event)
        await response.write(_event({}, "stop") + b"data: [DONE]\n\n")
        return response


def _event(delta: dict[str, Any], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


async def begin(served: Served, words: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask for a stream on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": words}]})
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        f"{body}".encode()
    )
    return reader, writer


async def close(writer: asyncio.StreamWriter) -> None:
    """End the connection."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def text(answer: bytes) -> str:
    """The words of a whole stream."""
    lines = [line for line in answer.splitlines() if line.startswith(b"data: ")]
    assert lines[-1] == b"data: [DONE]"
    deltas = (json.loads(line[6:])["choices"][0]["delta"] for line in lines[:-1])
    return "".join(delta.get("content", "") for delta in deltas)


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in megabytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 1e6


async def test_two_thousand_streams(start: Start, many_files: None, until: Any) -> None:
    """2,000 streams at once through one worker, each over a connection of its own: all are under way together, each
    gets its own words whole, and one costs less than 100 kB."""
    crowd = Crowd(STREAMS)
    async with crowd.serving() as url:
        openai = {
            "base_url": url,
            "model": "x",
            "max_connections": STREAMS + 10,
            "first_token_timeout_s": 120,
        }
        served = await start(json.dumps({"models": {"m": {"openai": openai}}, "ledger": {"queue": 100}}))
        await served.ready()
        pid = (await served.components())["worker-0"]["pid"]
        before = resident_mb(pid)

        async def one(number: int) -> bool:
            words = f"{number:04} grüße ✓"
            reader, writer = await begin(served, words)
            answer = await reader.read()
            while piece := await reader.read():
                answer += piece
            await close(writer)
            return text(answer) == words

        asking = [asyncio.create_task(one(number)) for number in range(STREAMS)]
        async with asyncio.timeout(120):
            await crowd.complete.wait()
            cost_mb = resident_mb(pid) - before
            assert all(await asyncio.gather(*asking))
        print(f"{STREAMS} streams: {cost_mb:.0f} MB, {cost_mb / STREAMS * 1000:.0f} kB each")
        assert cost_mb < STREAMS * 0.1
        await counted(served, STREAMS)


async def test_slow_reader(start: Start) -> None:
    """A client reads nothing of 64 MB: the backend is held back, the worker keeps less than a quarter of it; then he
    reads on, and gets all."""
    crowd = Crowd(1, filler=64_000_000)
    async with crowd.serving() as url:
        openai = {"base_url": url, "model": "x", "idle_timeout_s": 120}
        served = await start(json.dumps({"models": {"m": {"openai": openai}}}))
        await served.ready()
        pid = (await served.components())["worker-0"]["pid"]
        before = resident_mb(pid)
        reader, writer = await begin(served, "x")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with asyncio.timeout(60):
            last = -1
            while not crowd.sent or last != crowd.sent:  # until nothing moves any more
                last = crowd.sent
                await asyncio.sleep(0.3)
            assert crowd.sent < 32_000_000, f"{crowd.sent} bytes are on their way"
            assert resident_mb(pid) - before < 16
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            size, end = 0, b""
            while piece := await reader.read(1 << 20):
                size, end = size + len(piece), (end + piece)[-100:]
        await close(writer)
        assert size > 64_000_000
        assert b"data: [DONE]" in end
