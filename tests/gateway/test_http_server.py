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
    assert b"\r\nx-request-id: req_" in told
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


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before any body has come."""
    await send({"type": "http.response.start", "status": 401, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


async def test_an_unread_hesitating_body_ends_the_connection() -> None:
    """Who is refused before it was told to go on may send its body or not: what follows is no request of anybody's."""
    hesitating = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\nExpect: 100-Continue\r\n\r\n"
    async with served(refuse) as port:
        told = await said(port, hesitating, GET)
    assert told.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in told


async def test_leave_to_go_on_is_given_once() -> None:
    """However many pieces the body comes in, and never inside an answer."""

    async def listens_on(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await receive()
        await send({"type": "http.response.body", "body": b"two"})

    head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n"
    async with served(echo) as port:
        told = await said(port, head, b"a", b"b", b"c", last=b" abc")
    assert told.count(b"100 Continue") == 1
    async with served(listens_on) as port:
        told = await said(port, head, b"abc", last=b"0\r\n\r\n")
    assert b"100 Continue" not in told


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n",
        b"content-length: 3\r\n\r\nabc",
        b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\ntrailer: x\r\n\r\n",
    ],
)
async def test_an_upgrade_is_not_taken_up(body: bytes) -> None:
    """The request is answered as if it had not asked, and what was sent with it is answered too."""
    upgrade = b"POST /1 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n" + body
    last = b"GET /2 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    async with served(echo) as port:
        told = await said(port, upgrade * 2 + last)
    assert [told.count(b"POST /1"), told.count(b"GET /2")] == [2, 1]


async def test_the_body_of_an_upgrade_is_no_request() -> None:
    """A body that comes after its head is read as the body, though the parser takes it for another protocol's."""
    upgrade = b"POST /1 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n"
    async with served(echo) as port:
        told = await said(
            port, upgrade + b"content-length: %d\r\n\r\n" % len(GET), GET, last=b"POST /1  " + GET
        )
    assert told.count(b"HTTP/1.1 200") == 1


async def test_a_body_that_is_none_is_refused() -> None:
    """A body whose end nobody could tell is a bad request, and nothing behind it is read."""
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    async with served(echo) as port:
        told = await said(port, head + b"3\nabc\n0\r\n\r\n" + GET)
    assert told.startswith(b"HTTP/1.1 400")
    assert told.count(b"HTTP/1.1 4") == 1
    assert b"HTTP/1.1 200" not in told


async def test_no_content_has_no_length() -> None:
    """RFC 9110, 8.6: an answer with status 204 tells no length."""

    async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async with served(nothing) as port:
        told = await said(port, GET, last=b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 204")
    assert b"content-length" not in told


async def test_the_next_request_waits_until_the_answer_is_taken(until: Any) -> None:
    """A client that sends ahead and does not read fills nothing; once it reads, everything is answered."""
    begun = ended = 0
    large = b"x" * (4 << 20)

    async def much(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal begun, ended
        begun += 1
        wire = wire_of(scope, receive, send)
        wire.start(200, b"", len(large))
        wire.end(large)
        await wire.drain()
        ended += 1

    async with served(much) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(GET * 6)
        await until(lambda: ended > 0)
        await asyncio.sleep(0.1)
        assert begun < 6
        told = b""
        async with asyncio.timeout(20):
            while told.count(b"x") < 6 * len(large):
                told += await reader.read(1 << 20)
        writer.close()
        await until(lambda: ended == 6)


async def test_half_a_request_does_not_cut_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the answer takes; only then the rest is waited for."""
    monkeypatch.setattr(http_server, "HEAD_S", 0.05)
    monkeypatch.setattr(http_server, "CHECK_S", 0.02)

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.sleep(0.3)
        await echo(scope, receive, send)

    async with served(slow) as port:
        told = await said(port, GET + GET[:20])
    assert told.startswith(b"HTTP/1.1 200")
    assert b"HTTP/1.1 408" in told
