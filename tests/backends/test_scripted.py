"""The scripted upstream keeps to its script."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from backends.scripted import Script, ScriptedUpstream


async def test_records_what_it_sees(upstream: ScriptedUpstream, url: str) -> None:
    """Requests are recorded, and each model name has its own script."""
    upstream.scripts["x"] = Script(text="mine")
    async with aiohttp.ClientSession() as session:
        for model, text in (("x", "mine"), ("y", Script().text)):
            async with session.post(f"{url}/chat/completions", json={"model": model}) as response:
                assert (await response.json())["choices"][0]["message"]["content"] == text
    assert [seen.body["model"] for seen in upstream.seen] == ["x", "y"]
    assert upstream.left == []


async def test_records_who_left(upstream: ScriptedUpstream, url: str) -> None:
    """A caller who leaves early is recorded."""
    upstream.default = Script(delay_s=60)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await session.post(f"{url}/chat/completions", json={"model": "x"})
    async with asyncio.timeout(10):
        while upstream.left != ["x"]:  # noqa: ASYNC110 - the server's task records it
            await asyncio.sleep(0.01)
