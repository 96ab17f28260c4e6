"""The worker's HTTP/1.1 server: what goes over the socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from gateway import http_server
from gateway.http_server import MAX_HEAD_BYTES, MAX_HEADERS, HttpServer
from gateway.wire import Receive, Scope, Send, header_lines, wire_of

App = Callable[[Scope, Receive, Send], Awaitable[None]]
GET = b"GET /a%20b?q=1 HTTP/1.1\r\nhost: x\r\n\r\n"


@asynccontextmanager
async def served(app: App) -> AsyncIterator[int]:
    """The port on which `app` is served."""
    config = uvicorn.Config(app, http=HttpServer, log_config=None, lifespan="off", server_header=False)
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    listener = socket.create_server(("127.0.0.1", 0))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event to wait for
        await asyncio.sleep(0.005)
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def said(port: int, *pieces: bytes, last: bytes | None = None) -> bytes:
    """What the server answers to `pieces`, up to `last`, or, without, to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await asyncio.sleep(0.01)
    told = b""
    async with asyncio.timeout(10):
        while not (last and told.endswith(last)) and (data := await reader.read(65536)):
            told += data
    writer.close()
    return told


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was asked, by ASGI's messages."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    told = f"{scope['method']} {scope['path']} {scope['query_string'].decode()} ".encode() + body
    headers = [(b"content-length", b"%d" % len(told)), (b"x-a", b"b")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": told})


async def test_answers() -> None:
    """Path and query are told apart, a body may come in pieces, and the connection is used again."""
    async with served(echo) as port:
        post = [b"POST /p HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nab", b"cd"]
        told = await said(port, GET, *post, last=b"abcd")
    assert told.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert b"\r\nx-a: b\r\n" in told
    assert b"GET /a b q=1 " in told
    assert told.endswith(b"POST /p  abcd")


async def test_pipelined() -> None:
    """Requests sent ahead are answered in their order."""

    async def slow_first(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.05 if scope["path"] == "/1" else 0)
        await echo(scope, receive, send)

    requests = b"".join(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % i for i in range(1, 6))
    async with served(slow_first) as port:
        told = await said(port, requests, last=b"/5  ")
    places = [told.index(b"GET /%d" % i) for i in range(1, 6)]
    assert places == sorted(places)


async def test_head_has_no_body_and_old_clients_no_chunks() -> None:
    """HEAD is told the length only; HTTP/1.0 gets what it can read, and the end of the connection."""

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async with served(echo) as port:
        told = await said(port, b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n", last=b"\r\n\r\n")
        assert told.endswith(b"\r\n\r\n")
        assert b"content-length: " in told
    async with served(stream) as port:
        chunks = b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"
        assert (await said(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", last=chunks)).endswith(chunks)
        assert (await said(port, b"GET / HTTP/1.0\r\n\r\n")).endswith(b"connection: close\r\n\r\nonetwo")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"what is this\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n", b"431"),
    ],
)
async def test_refuses(sent: bytes, status: bytes) -> None:
    """What is no request, or has a head beyond all measure, is told so, and the connection is closed."""
    async with served(echo) as port:
        told = await said(port, sent)
    assert told.startswith(b"HTTP/1.1 " + status)
    assert b"connection: close" in told
    assert b'{"error":{' in told


async def test_a_slow_head_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends its head byte by byte does not keep its connection."""
    monkeypatch.setattr(http_server, "HEAD_S", 0.05)
    monkeypatch.setattr(http_server, "CHECK_S", 0.02)
    async with served(echo) as port:
        told = await said(port, GET[:20])
    assert told.startswith(b"HTTP/1.1 408")


async def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which nothing is asked is closed in the end."""
    monkeypatch.setattr(http_server, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(http_server, "CHECK_S", 0.02)
    async with served(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


@pytest.mark.parametrize("value", ["a\r\nx-b: c", "a\nx", "a\rb", "a\0b"])
async def test_headers_cannot_end_their_line(value: str) -> None:
    """A value with a line break is an error of ours, not somebody's header; by ASGI's messages too."""
    with pytest.raises(ValueError, match="a header has a character"):
        header_lines({"x-a": value})

    async def inject(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", value.encode())]})

    async with served(inject) as port:
        told = await said(port, GET)
    assert told.startswith(b"HTTP/1.1 500")
    assert b"x-b" not in told


async def test_a_slow_reader_fills_nothing(until: Any) -> None:
    """A writer waits for a client that reads too slowly; what is held is bounded, and nothing is lost."""
    written = 0
    chunk = b"x" * 65536

    async def much(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal written
        wire = wire_of(scope, receive, send)
        wire.start(200, b"")
        for _ in range(400):
            wire.write(chunk)
            written += 1
            if wire.full:
                await wire.drain()
        wire.end()

    async with served(much) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(GET)
        await asyncio.sleep(0.3)
        assert written < 400
        told = 0
        while data := await reader.read(1 << 20):
            told += data.count(b"x")
            if data.endswith(b"0\r\n\r\n"):
                break
        writer.close()
    assert told == 400 * len(chunk)


async def test_leaving_is_told(until: Any) -> None:
    """A client that leaves is told of at once; what is written to it afterwards is nobody's."""
    left: list[bool] = []
    begun = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        wire = wire_of(scope, receive, send)
        wire.watch(lambda: left.append(True))
        wire.start(200, b"")
        wire.write(b"a")
        begun.set()
        while not left:  # noqa: ASYNC110 - called back
            await asyncio.sleep(0.005)
        wire.write(b"b")
        wire.end()

    async with served(wait) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        await begun.wait()
        writer.close()
        await until(lambda: left == [True])


async def test_an_answer_that_breaks_off_closes() -> None:
    """An application that fails before its answer gives a 500; after its beginning, an answer without an end."""

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/late":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
        raise RuntimeError("oh")

    async with served(fail) as port:
        assert (await said(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")).startswith(b"HTTP/1.1 500")
        assert (await said(port, b"GET /late HTTP/1.1\r\nhost: x\r\n\r\n")).endswith(b"3\r\none\r\n")


async def test_expect() -> None:
    """A client that asks before it sends is told to go on when its body is wanted."""
    async with served(echo) as port:
        told = await said(
            port,
            b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\r\n",
            b"ab",
            last=b" ab",
        )
    assert told.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    assert told.endswith(b" ab")
