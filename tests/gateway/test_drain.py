"""Leaving: readiness first, then nobody new, then the end of what is being answered; with real processes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from backends.scripted import Script, ScriptedUpstream
from tests.served import Served, Start, alive

BODY = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}


def url(served: Served, path: str = "/v1/chat/completions") -> str:
    return f"http://127.0.0.1:{served.port}{path}"


@asynccontextmanager
async def streaming(served: Served) -> AsyncIterator[AsyncIterator[str]]:
    """A stream that has begun."""
    async with (
        httpx.AsyncClient(verify=False, timeout=30) as client,
        client.stream("POST", url(served), json={**BODY, "stream": True}) as response,
    ):
        events = response.aiter_text()
        await anext(events)
        yield events


async def draining(served: Served) -> None:
    async with asyncio.timeout(10):
        while (await served.admin.get("/readyz")).status_code != 503:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_unready_before_closed(start: Start, config: str, upstream: ScriptedUpstream) -> None:
    """For `unready_s` both ports say 503 while requests are still answered; then idle connections are closed, the one
    that is in use says that it will be, and nobody new is let in."""
    upstream.default = Script(delay_s=1.0)
    served = await start(config + "\nserver: {unready_s: 0.7}")
    await served.ready()
    async with httpx.AsyncClient(verify=False, timeout=30) as client:
        assert (await client.get(url(served, "/readyz"))).status_code == 200
        served.process.terminate()
        await draining(served)
        async with asyncio.timeout(10):  # workers hear of it a moment after the supervisor
            while (told := await client.get(url(served, "/readyz"))).status_code != 503:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert told.json()["status"] == "draining"
        assert (await client.get(url(served, "/livez"))).status_code == 200
        answer = await client.post(url(served), json=BODY)  # comes before, and ends after, the port is closed
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"
    assert await served.process.wait() == 0


async def test_bounded(start: Start, config: str, upstream: ScriptedUpstream) -> None:
    """What is still being answered after `drain_s` is cut off, and does not look whole."""
    upstream.default = Script(text="word " * 600, chunk_delay_s=0.05)
    served = await start(config + "\nserver: {drain_s: 1}")
    await served.ready()
    rest = ""
    async with streaming(served) as events:
        served.process.terminate()
        try:
            async for event in events:
                rest += event
        except httpx.HTTPError:
            pass
    assert "word" in rest
    assert "[DONE]" not in rest
    async with asyncio.timeout(10):
        assert await served.process.wait() == 0


async def test_second_signal(start: Start, config: str, upstream: ScriptedUpstream) -> None:
    """A second signal ends everything now, and leaves nobody behind."""
    upstream.default = Script(text="word " * 600, chunk_delay_s=0.05)
    served = await start(config + "\nserver: {drain_s: 300}", workers=2)
    await served.ready()
    pids = [child["pid"] for child in (await served.components()).values()]
    async with streaming(served) as events:
        served.process.send_signal(signal.SIGINT)
        await draining(served)
        assert "word" in await anext(events)
        served.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            assert await served.process.wait() == 0
    assert not any(map(alive, pids))


async def test_reload_while_leaving_is_over(start: Start, config: str, upstream: ScriptedUpstream) -> None:
    """A config that changes while Chorus drains is not taken up any more, and does no harm."""
    upstream.default = Script(text="word " * 20, chunk_delay_s=0.05)
    served = await start(config)
    await served.ready()
    before: dict[str, Any] = await served.config_told()
    async with streaming(served) as events:
        served.process.terminate()
        await draining(served)
        served.config.write_text(config.replace("echo", "other"))
        served.process.send_signal(signal.SIGHUP)
        rest = "".join([event async for event in events])
        assert (await served.config_told())["digest"] == before["digest"]
    assert rest.endswith("data: [DONE]\n\n")
    assert await served.process.wait() == 0
