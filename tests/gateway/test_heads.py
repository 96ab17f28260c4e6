"""Heads of requests that drip, never end, or are none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from gateway import http_server
from tests.listening import listening

HELLO = b"POST /x HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\nhi"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    """Answers after a while, so that a clock that is not stopped would ring."""
    if scope["type"] == "http":
        assert (await receive())["body"] == b"hi"
        await asyncio.sleep(0.4)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})
    elif scope["type"] == "lifespan":
        for word in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{word}.complete"})


Say = Callable[..., Awaitable[bytes]]


@pytest.fixture
async def say(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Say]:
    """Sends pieces on one connection, slowly, and gives all that came back until it was closed."""
    monkeypatch.setattr(http_server, "HEAD_S", 0.2)
    monkeypatch.setattr(http_server, "KEEP_ALIVE_S", 0.2)
    monkeypatch.setattr(http_server, "CHECK_S", 0.05)
    async with listening(hello) as url:
        port = int(url.rpartition(":")[2])

        async def send(*pieces: bytes, pause_s: float = 0.0) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)

            async def tell() -> None:
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(pause_s)

            telling = asyncio.create_task(tell())
            told = b""
            with suppress(ConnectionResetError):  # what still drips meets a closed socket
                async with asyncio.timeout(20):
                    while data := await reader.read(65536):
                        told += data
            telling.cancel()
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
            return told

        yield send


def refused(answer: bytes, status: int) -> None:
    """It is an error in OpenAI's shape, and says that the connection ends."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"connection: close" in head.lower()
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


async def test_slow_heads(say: Say) -> None:
    """A head that drips is a 408."""
    refused(await say(*[bytes([byte]) for byte in HELLO * 9], pause_s=0.02), 408)


async def test_silence(say: Say) -> None:
    """Who connects and asks nothing is told nothing, and loses the connection."""
    assert await say() == b""


async def test_endless_heads(say: Say) -> None:
    """A head beyond the limit is a 431, whether it comes at once or bit by bit."""
    filler = b"x-more: " + b"y" * 10_000 + b"\r\n"
    refused(await say(b"GET / HTTP/1.1\r\n" + filler * 9), 431)
    refused(await say(b"GET / HTTP/1.1\r\n", *[filler] * 9, pause_s=0.005), 431)


async def test_no_http(say: Say) -> None:
    """What is not HTTP is a 400 in OpenAI's shape."""
    refused(await say(b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"), 400)


async def test_long_answers(say: Say) -> None:
    """The clock is about the head alone."""
    assert (await say(HELLO.replace(b"host: x", b"connection: close"))).endswith(b"hello")
