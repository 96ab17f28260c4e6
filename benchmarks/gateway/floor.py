"""Raw ASGI on uvicorn in front of one of two HTTP clients: what is left when a gateway does nothing.

python -m benchmarks.gateway.floor http1|aiohttp --port 9001 --upstream 9000
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import Any

import aiohttp
import uvicorn

from backends.http1 import Http1

STREAM = re.compile(rb'"stream"\s*:\s*true')
HEADERS = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "chorus"}


def through_http1(base_url: str) -> Callable[[bytes, bool, Any], Any]:
    """Relay through this repository's client."""
    client = Http1(base_url, headers=HEADERS)

    async def relay(body: bytes, streamed: bool, send: Any) -> None:
        response = await client.post("/chat/completions", body)
        if streamed:
            await begin(send, "text/event-stream")
            async for data in response.stream():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        else:
            await whole(send, await response.read())

    return relay


def through_aiohttp(base_url: str) -> Callable[[bytes, bool, Any], Any]:
    """Relay through aiohttp, set up as the fallback is."""
    session: list[aiohttp.ClientSession] = []

    async def relay(body: bytes, streamed: bool, send: Any) -> None:
        if not session:
            connector = aiohttp.TCPConnector(limit=1024, keepalive_timeout=4.0)
            clocks = aiohttp.ClientTimeout(total=600.0, connect=600.0, sock_connect=5.0)
            made = aiohttp.ClientSession(
                connector=connector, timeout=clocks, headers=HEADERS, cookie_jar=aiohttp.DummyCookieJar()
            )
            session.append(made)
        url = base_url + "/chat/completions"
        async with session[0].post(url, data=body, allow_redirects=False) as response:
            if streamed:
                await begin(send, "text/event-stream")
                async for data in response.content.iter_any():
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            else:
                await whole(send, await response.read())

    return relay


async def begin(send: Any, kind: str, *more: tuple[bytes, bytes]) -> None:
    """The head of an answer."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode()), *more]}
    )


async def whole(send: Any, body: bytes) -> None:
    """A complete answer."""
    await begin(send, "application/json", (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.body", "body": body})


def application(relay: Callable[[bytes, bool, Any], Any]) -> Any:
    """The ASGI application."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/v1/chat/completions":
            await whole(send, b"{}")
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        await relay(body, STREAM.search(body) is not None, send)

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("client", choices=("http1", "aiohttp"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", type=int, required=True)
    arguments = parser.parse_args()
    make = through_http1 if arguments.client == "http1" else through_aiohttp
    app = application(make(f"http://127.0.0.1:{arguments.upstream}/v1"))
    uvicorn.run(
        app,
        port=arguments.port,
        access_log=False,
        log_level="warning",
        lifespan="off",
        loop="uvloop",
        http="httptools",
    )
