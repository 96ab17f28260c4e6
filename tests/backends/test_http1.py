"""The HTTP/1.1 client against a raw TCP server that does exactly what each test tells it, on both event
loops."""

from __future__ import annotations

import asyncio
import inspect
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from backends.http1 import (
    BadResponse,
    Clocks,
    ClosedEarly,
    ConnectError,
    ConnectTimeout,
    FirstByteTimeout,
    Http1,
    Http1Error,
    IdleTimeout,
    Limits,
    PoolExhausted,
    TlsError,
    TooLarge,
    TotalTimeout,
    Unanswered,
    header_block,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_both_loops(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run the coroutine `test` on asyncio's own loop and on uvloop, and see that it leaves no task behind."""

    async def bounded(arguments: dict[str, Any]) -> None:
        async with asyncio.timeout(20):
            await test(**arguments)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    def run(loop: str, **arguments: Any) -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(bounded(arguments))

    wanted = list(inspect.signature(test).parameters.values())
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter("loop", kind), *wanted])
    run.__signature__ = signature  # type: ignore[attr-defined]  # pytest reads the fixtures off it
    run.__name__, run.__doc__ = test.__name__, test.__doc__
    parametrized: Callable[..., None] = pytest.mark.parametrize("loop", LOOPS)(run)
    return parametrized


@dataclass
class Peer:
    """One accepted connection, as the script of a test sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> bytes:
        """Read one request, head and body; empty when the client has closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""
        lines = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        return head + await self.reader.readexactly(length)

    async def send(self, *parts: bytes, pause_s: float = 0.0) -> None:
        """Write `parts`, each in a segment of its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(pause_s)

    def reset(self) -> None:
        """Close with a reset, as a crashing server does."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def left(self) -> None:
        """Return when the client has closed or reset the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass


Script = Callable[[Peer], Awaitable[None]]


@dataclass
class Raw:
    """A server that runs `script` on each connection and closes it when the script returns."""

    script: Script
    host: str = "127.0.0.1"
    uds: Path | None = None
    context: ssl.SSLContext | None = None
    accepted: int = 0
    failures: list[BaseException] = field(default_factory=list)

    async def __aenter__(self) -> Raw:
        if self.uds:
            self._server = await asyncio.start_unix_server(self._serve, str(self.uds))
        else:
            self._server = await asyncio.start_server(self._serve, self.host, 0, ssl=self.context)
        self._tasks: set[asyncio.Task[Any]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(0.01)  # transports close in the loop's own time
        assert self.failures == []

    @property
    def url(self) -> str:
        """The base URL of a client for it."""
        if self.uds:
            return f"unix://{self.uds}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = self._server.sockets[0].getsockname()[1]
        return f"{'https' if self.context else 'http'}://{host}:{port}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        try:
            await self.script(Peer(reader, writer, self.accepted))
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception as error:  # noqa: BLE001 - told by __aexit__
            self.failures.append(error)
        finally:
            writer.close()
            self._tasks.discard(task)


def answering(*parts: bytes, times: int = 1000, pause_s: float = 0.0) -> Script:
    """A script that answers each of `times` requests of a connection with `parts`, then closes it."""

    async def script(peer: Peer) -> None:
        for _ in range(times):
            if not await peer.request():
                return
            await peer.send(*parts, pause_s=pause_s)

    return script


async def hanging(peer: Peer) -> None:
    """A script that reads a request and never answers."""
    await peer.request()
    await peer.left()


class Talk:
    """A server and a client of it: `async with Talk(script, **what Http1 takes) as talk`."""

    def __init__(
        self,
        script: Script,
        *,
        limits: Limits | None = None,
        clocks: Clocks | None = None,
        trust: ssl.SSLContext | None = None,
        headers: dict[str, str] | None = None,
        proxy: str | None = None,
        **server: Any,
    ) -> None:
        self.server = Raw(script, **server)
        self._options: dict[str, Any] = {
            "limits": limits, "clocks": clocks, "context": trust, "headers": headers, "proxy": proxy
        }  # fmt: skip

    async def __aenter__(self) -> Talk:
        self._stack = AsyncExitStack()
        await self._stack.enter_async_context(self.server)
        self.client = Http1(self.server.url, **self._options)
        self._stack.push_async_callback(self.client.close)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        assert (self.client.open, self.client.idle, self.client.waiting) == (0, 0, 0)

    async def ask(self, body: bytes = b"{}") -> tuple[int, bytes]:
        """One exchange, read whole."""
        response = await self.client.post("/chat", body)
        return response.status, await response.read()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task does."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - what it waits for is another task's affair
            await asyncio.sleep(0.005)


# ------------------------------------------------------------------------------------------------- what is
# sent


@on_both_loops
async def test_request_bytes_are_exactly_these() -> None:
    """A request is its line, host, the given headers and the length, and nothing else."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(OK)
        seen.append(await peer.request())
        await peer.send(OK)

    async with Talk(script, headers={"authorization": "Bearer k"}) as talk:
        response = await talk.client.post("/chat", b'{"a":1}', header_block({"X-Id": "7"}))
        assert await response.read() == b"ok"
        await (await talk.client.get("/models?x=1")).read()
        host = talk.server.url[7:-3].encode()
    common = b"host: " + host + b"\r\nauthorization: Bearer k\r\n"
    assert seen == [
        b"POST /v1/chat HTTP/1.1\r\n" + common + b'X-Id: 7\r\ncontent-length: 7\r\n\r\n{"a":1}',
        b"GET /v1/models?x=1 HTTP/1.1\r\n" + common + b"\r\n",
    ]


@on_both_loops
async def test_large_body_arrives_whole() -> None:
    """A body far larger than the socket's buffers is sent whole."""
    body = bytes(range(256)) * 16 * 1024
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append((await peer.request())[-len(body) :])
        await peer.send(OK)

    async with Talk(script) as talk:
        assert await talk.ask(body) == (200, b"ok")
    assert seen == [body]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x", "a\r\nx-evil: 1"), ("x", "a\nb"), ("x", "a\x00b"), ("x", "\u20ac"), ("x y", "a"), ("", "a"),
        ("x\r\n", "a"),
        ("Content-Length", "1"), ("transfer-encoding", "chunked"), ("Host", "evil"), ("connection", "upgrade"),
    ],
)  # fmt: skip
def test_header_injection_is_refused(name: str, value: str) -> None:
    """Line breaks, control characters and headers that frame a message raise; the message hides the value."""
    with pytest.raises(ValueError, match="header") as caught:
        header_block({name: value})
    assert "evil" not in str(caught.value)


@pytest.mark.parametrize("path", ["chat", "/a b", "/a\r\nx: y", "/\u00e9", ""])
@on_both_loops
async def test_path_injection_is_refused(path: str) -> None:
    """A path that could end the request line is not sent."""
    async with Talk(answering(OK)) as talk:
        with pytest.raises(ValueError, match="path"):
            await talk.client.post(path, b"")
        assert talk.server.accepted == 0


@pytest.mark.parametrize(
    "url", ["ftp://x/v1", "http://", "http://user:secret@host/v1", "unix://", "nonsense"]
)
def test_bad_base_url_is_refused(url: str) -> None:
    """What is not an http, https or unix URL, or holds credentials, raises without repeating them."""
    with pytest.raises(ValueError, match="URL") as caught:
        Http1(url)
    assert "secret" not in str(caught.value)


# --------------------------------------------------------------------------------------------- what is
# received

BODIES = {
    "content-length": (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabcdef",),
    "body in pieces": (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n", b"abc", b"def"),
    "chunked": (CHUNKED + b"3\r\nabc\r\n3;ext=1\r\ndef\r\n0\r\n\r\n",),
    "chunked with trailers": (CHUNKED + b"6\r\nabcdef\r\n0\r\nx-sum: 1\r\n\r\n",),
    "chunked, byte by byte": tuple(bytes([b]) for b in CHUNKED + b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n"),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nabc", b"def"),
    "until close, 1.0": (b"HTTP/1.0 200 OK\r\n\r\nabcdef",),
    "100 and 103 first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nabcdef",
    ),
    "connection: close": (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 6\r\n\r\nabcdef",),
}


@pytest.mark.parametrize("name", BODIES)
@on_both_loops
async def test_body_framings(name: str) -> None:
    """Every framing of a body is read whole, and streamed to the same bytes."""
    async with Talk(answering(*BODIES[name], times=1)) as talk:
        response = await talk.client.post("/chat", b"")
        assert "x-early" not in response.headers
        assert (response.status, await response.read()) == (200, b"abcdef")
    async with Talk(answering(*BODIES[name], times=1)) as talk:
        response = await talk.client.post("/chat", b"")
        assert b"".join([data async for data in response.stream()]) == b"abcdef"


@on_both_loops
async def test_no_body_statuses() -> None:
    """204 ends with its head, and its connection is used again."""
    async with Talk(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as talk:
        assert [await talk.ask(), await talk.ask()] == [(204, b"")] * 2
        assert talk.server.accepted == 1


@on_both_loops
async def test_response_headers() -> None:
    """Header names come in lower case, repeated ones joined, bytes above ASCII as Latin-1."""
    head = b"HTTP/1.1 429 Slow\r\nRetry-After: 3\r\nX-A: 1\r\nx-a: \xe9\r\ncontent-length: 0\r\n\r\n"
    async with Talk(answering(head)) as talk:
        response = await talk.client.post("/chat", b"")
        assert response.headers == {"retry-after": "3", "x-a": "1, \u00e9", "content-length": "0"}
        assert (response.status, await response.read()) == (429, b"")


@on_both_loops
async def test_redirects_are_not_followed() -> None:
    """A redirect is an answer like any other."""
    async with Talk(
        answering(b"HTTP/1.1 302 F\r\nlocation: http://10.0.0.1/\r\ncontent-length: 0\r\n\r\n")
    ) as talk:
        assert (await talk.ask())[0] == 302


@on_both_loops
async def test_stream_gives_pieces_as_they_come() -> None:
    """A piece is handed over before the next has been sent."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\nabc\r\n")
        await go.wait()
        await peer.send(b"3\r\ndef\r\n0\r\n\r\n")

    async with Talk(script) as talk:
        response = await talk.client.post("/chat", b"")
        pieces = response.stream()
        assert await anext(pieces) == b"abc"
        go.set()
        assert await anext(pieces) == b"def"
        assert await anext(pieces, None) is None


# -------------------------------------------------------------------------------------------------------
# faults


def resetting_after(*parts: bytes) -> Script:
    """A script that answers `parts`, then resets the connection."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(*parts, pause_s=0.02)
        peer.reset()

    return script


HEAD6 = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n"
HUGE_HEAD = b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: %s\r\n" % (i, b"v" * 1000) for i in range(100))
BROKEN: dict[str, tuple[Script, type[Http1Error]]] = {
    "closed before any byte": (answering(b"", times=1), Unanswered),
    "closed in the head": (answering(b"HTTP/1.1 200 OK\r\ncont", times=1), Unanswered),
    "closed in a body with a length": (answering(HEAD6, b"abc", times=1), ClosedEarly),
    "closed between chunks": (answering(CHUNKED + b"3\r\nabc\r\n", times=1), ClosedEarly),
    "closed within a chunk": (answering(CHUNKED + b"9\r\nabc", times=1), ClosedEarly),
    "reset before any byte": (resetting_after(), Unanswered),
    "reset in the body": (resetting_after(HEAD6, b"abc"), ClosedEarly),
    "reset where the body ends by closing": (resetting_after(b"HTTP/1.1 200 OK\r\n\r\nabc"), ClosedEarly),
    "not HTTP": (answering(b"SSH-2.0-OpenSSH_9.6\r\n"), BadResponse),
    "a bad chunk size": (answering(CHUNKED + b"xyz\r\nabc\r\n"), BadResponse),
    "two lengths": (
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
        BadResponse,
    ),
    "length and chunked": (
        answering(
            b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        ),
        BadResponse,
    ),
    "switching protocols unasked": (
        answering(b"HTTP/1.1 101 S\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"),
        BadResponse,
    ),
    "a head without end": (answering(HUGE_HEAD), TooLarge),
    "one header line without end": (answering(b"HTTP/1.1 200 OK\r\nx: " + b"v" * 100_000), TooLarge),
    "endless 1xx": (answering(b"HTTP/1.1 100 Continue\r\n\r\n" * 5000), TooLarge),
    "a body past the limit": (
        answering(b"HTTP/1.1 200 OK\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000),
        TooLarge,
    ),
    "an endless body": (answering(CHUNKED, *([b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"] * 8)), TooLarge),
}


@pytest.mark.parametrize("fault", BROKEN)
@on_both_loops
async def test_broken_answers(fault: str) -> None:
    """Each fault raises its class, on a first connection is not repeated, and leaves no connection behind."""
    script, error = BROKEN[fault]
    limits = Limits(max_head_bytes=16 * 1024, max_body_bytes=100_000)
    async with Talk(script, limits=limits) as talk:
        with pytest.raises(error) as caught:
            await talk.ask()
        assert type(caught.value) is error
        await until(lambda: talk.client.open == 0)
        assert talk.server.accepted == 1


@on_both_loops
async def test_stream_hands_over_what_came_before_a_cut() -> None:
    """A stream that is cut yields what had come, then raises."""
    async with Talk(answering(CHUNKED + b"3\r\nabc\r\n", times=1)) as talk:
        response = await talk.client.post("/chat", b"")
        assert await response.piece() == b"abc"
        with pytest.raises(ClosedEarly):
            await response.piece()


@on_both_loops
async def test_answer_before_the_request_was_read() -> None:
    """A refusal sent before the body was read arrives, and its connection is not used again."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Large\r\ncontent-length: 0\r\n\r\n")
        await peer.left()

    async with Talk(script) as talk:
        assert await talk.ask(b"x" * 30_000_000) == (413, b"")
        assert talk.client.idle == 0
        await until(lambda: talk.client.open == 0)


# ------------------------------------------------------------------------------------------ connecting,
# TLS, proxies


@on_both_loops
async def test_refused_connection() -> None:
    """Nobody listens: `ConnectError`, and the slot is free again."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        client = Http1(f"http://127.0.0.1:{sock.getsockname()[1]}")
        with pytest.raises(ConnectError, match=r"^no connection: Connection refused$"):
            await client.post("/chat", b"")
        assert client.open == 0
        await client.close()


@on_both_loops
async def test_unknown_host() -> None:
    """A name that does not exist is a `ConnectError` that does not repeat it."""
    client = Http1("http://no-such-host.invalid/v1")
    with pytest.raises(ConnectError) as caught:
        await client.post("/chat", b"")
    assert "no-such-host" not in str(caught.value)
    await client.close()


@on_both_loops
async def test_connect_timeout() -> None:
    """A TLS handshake that nobody answers ends with the connect clock."""
    async with Raw(hanging) as server:
        client = Http1(server.url.replace("http", "https"), clocks=Clocks(connect_s=0.1))
        with pytest.raises(ConnectTimeout):
            await client.post("/chat", b"")
        assert client.open == 0
        await client.close()


@on_both_loops
async def test_falls_back_over_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a name's first address refuses, the next is tried."""
    async with Talk(answering(OK)) as talk:
        port = int(talk.server.url[:-3].rpartition(":")[2])
        dead, alive = ("127.0.0.2", port), ("127.0.0.1", port)
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (dead, alive)]

        loop = asyncio.get_running_loop()
        real = loop.getaddrinfo

        async def getaddrinfo(host: Any, *rest: Any, **options: Any) -> Any:
            return found if host == "two-addresses.test" else await real(host, *rest, **options)

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        client = Http1(f"http://two-addresses.test:{port}/v1")
        response = await client.post("/chat", b"")
        assert await response.read() == b"ok"
        await client.close()


@on_both_loops
async def test_ipv6() -> None:
    """An IPv6 literal is connected to, and stands in brackets in the host header."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(OK)

    async with Talk(script, host="::1") as talk:
        assert await talk.ask() == (200, b"ok")
    assert b"\r\nhost: [::1]:" in seen[0]


@on_both_loops
async def test_unix_socket(tmp_path: Path) -> None:
    """`unix://` reaches the server behind a socket, under /v1."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        while request := await peer.request():
            seen.append(request)
            await peer.send(OK)

    async with Talk(script, uds=tmp_path / "x.sock") as talk:
        assert [await talk.ask(), await talk.ask()] == [(200, b"ok")] * 2
        assert talk.server.accepted == 1
    assert seen[0].startswith(b"POST /v1/chat HTTP/1.1\r\nhost: localhost\r\n")


def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context for 127.0.0.1, and a client's that trusts it."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


@on_both_loops
async def test_tls_with_own_authority() -> None:
    """TLS under a private authority works, whole and streamed, on one connection."""
    context, trust = tls()
    async with Talk(answering(CHUNKED, b"3\r\nabc\r\n", b"0\r\n\r\n"), context=context, trust=trust) as talk:
        assert await talk.ask() == (200, b"abc")
        response = await talk.client.post("/chat", b"x" * 200_000)
        assert b"".join([data async for data in response.stream()]) == b"abc"
        assert talk.server.accepted == 1


@on_both_loops
async def test_untrusted_certificate() -> None:
    """A certificate that nobody vouches for is refused before anything is sent."""
    context, _ = tls()
    async with Talk(answering(OK), context=context) as talk:
        with pytest.raises(TlsError, match=r"^no TLS session: .*certificate"):
            await talk.ask()
        assert talk.client.open == 0


@on_both_loops
async def test_tls_cut() -> None:
    """A TLS connection that ends within a body is `ClosedEarly`."""
    context, trust = tls()
    async with Talk(answering(HEAD6, b"abc", times=1), context=context, trust=trust) as talk:
        with pytest.raises(ClosedEarly):
            await talk.ask()


@on_both_loops
async def test_plain_http_through_a_proxy() -> None:
    """Plain HTTP goes to the proxy in absolute form, with the proxy's credentials."""
    seen: list[bytes] = []

    async def proxy(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(OK)

    async with Raw(proxy) as server:
        client = Http1("http://models.test/v1", proxy=server.url[:-3].replace("//", "//u:p@"))
        assert await (await client.post("/chat", b"")).read() == b"ok"
        await client.close()
    assert seen[0].startswith(b"POST http://models.test:80/v1/chat HTTP/1.1\r\nhost: models.test\r\n")
    assert b"proxy-authorization: Basic dTpw\r\n" in seen[0]


@on_both_loops
async def test_tls_through_a_proxy() -> None:
    """TLS goes through a CONNECT tunnel; the proxy sees neither path nor headers, and its refusal is
    `ConnectError`."""
    context, trust = tls()
    seen: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            seen.append(data)
            writer.write(data)
        writer.close()

    async def proxy(peer: Peer) -> None:
        seen.append(head := await peer.reader.readuntil(b"\r\n\r\n"))
        if b"Basic dTpw" not in head:
            await peer.send(b"HTTP/1.1 407 Who\r\ncontent-length: 0\r\n\r\n")
            return
        port = int(head.split()[1].rpartition(b":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(peer.reader, writer), pump(reader, peer.writer))

    async with Raw(answering(OK), context=context) as server, Raw(proxy) as middle:
        ways = [middle.url[:-3].replace("//", f"//{who}@") for who in ("u:p", "x:y")]
        client = Http1(server.url, context=trust, headers={"authorization": "Bearer canary"}, proxy=ways[0])
        assert await (await client.post("/chat", b"{}")).read() == b"ok"
        await client.close()
        refused = Http1(server.url, context=trust, proxy=ways[1])
        with pytest.raises(ConnectError, match="the proxy answered '407'"):
            await refused.post("/chat", b"{}")
        await refused.close()
    assert not any(b"canary" in data or b"/chat" in data for data in seen)


# -------------------------------------------------------------------------------------------------------
# clocks


@on_both_loops
async def test_first_byte_clock() -> None:
    """A server that accepts and says nothing is left; so is one that drips its head."""
    clocks = Clocks(first_byte_s=0.1)
    async with Talk(hanging, clocks=clocks) as talk:
        with pytest.raises(FirstByteTimeout):
            await talk.ask()
        assert talk.server.accepted == 1
    async with Talk(
        answering(*[b"HTTP/1.1 200 OK\r\n"], *[b"x: y\r\n"] * 100, pause_s=0.01), clocks=clocks
    ) as talk:
        with pytest.raises(FirstByteTimeout):
            await talk.ask()


@on_both_loops
async def test_idle_clock() -> None:
    """Silence within a body ends it; a slow but steady body outlives the same clock many times over."""
    clocks = Clocks(idle_s=0.2)

    async def stalling(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"3\r\nabc\r\n")
        await peer.left()

    async with Talk(stalling, clocks=clocks) as talk:
        with pytest.raises(IdleTimeout):
            await talk.ask()
    async with Talk(
        answering(CHUNKED, *[b"1\r\nx\r\n"] * 20, b"0\r\n\r\n", pause_s=0.05), clocks=clocks
    ) as talk:
        assert await talk.ask() == (200, b"x" * 20)


@on_both_loops
async def test_total_clock() -> None:
    """A body that never stops coming ends with the total clock."""

    async def dripping(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED, *[b"1\r\nx\r\n"] * 10_000, pause_s=0.01)

    async with Talk(dripping, clocks=Clocks(total_s=0.2)) as talk:
        with pytest.raises(TotalTimeout):
            await talk.ask()


@on_both_loops
async def test_slow_reader_is_not_the_servers_silence() -> None:
    """While the reader keeps the socket paused, the idle clock stands still."""
    async with Talk(
        answering(CHUNKED, *[b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"] * 100, b"0\r\n\r\n"),
        clocks=Clocks(idle_s=0.1),
        limits=Limits(buffer_bytes=1000),
    ) as talk:
        response = await talk.client.post("/chat", b"")
        size = 0
        async for data in response.stream():
            if not size:
                await asyncio.sleep(0.5)
            size += len(data)
        assert size == 0xFFFF * 100


# ---------------------------------------------------------------------------------------------------
# keep-alive


@on_both_loops
async def test_connections_are_used_again() -> None:
    """One after the other, requests share one connection; at once, each has its own, and the newest is used
    next."""
    async with Talk(answering(OK)) as talk:
        for _ in range(5):
            await talk.ask()
        assert (talk.server.accepted, talk.client.idle) == (1, 1)
        await asyncio.gather(*(talk.ask() for _ in range(3)))
        assert (talk.server.accepted, talk.client.idle) == (3, 3)


@on_both_loops
async def test_idle_connections_are_closed_in_time() -> None:
    """An idle connection is not used past `keep_alive_s`, and is closed without being asked."""
    async with Talk(answering(OK), limits=Limits(keep_alive_s=0.05)) as talk:
        await talk.ask()
        await until(lambda: talk.client.open == 0)
        await talk.ask()
        assert talk.server.accepted == 2


@on_both_loops
async def test_connection_not_to_be_kept() -> None:
    """`connection: close` and HTTP/1.0 without keep-alive are obeyed."""
    for head in (b"HTTP/1.1 200 OK\r\nconnection: close\r\n", b"HTTP/1.0 200 OK\r\n"):
        async with Talk(answering(head + b"content-length: 2\r\n\r\nok")) as talk:
            assert [await talk.ask(), await talk.ask()] == [(200, b"ok")] * 2
            assert talk.server.accepted == 2


@pytest.mark.parametrize("how", ["close", "reset"])
@on_both_loops
async def test_keep_alive_race_is_repeated_once(how: str) -> None:
    """A used connection that closes without a byte as the request goes out: the request is sent again, and
    answered."""
    seen: list[tuple[int, bytes]] = []

    async def script(peer: Peer) -> None:
        seen.append((peer.number, await peer.request()))
        await peer.send(OK)
        request = await peer.request()
        if request and peer.number == 1:
            seen.append((peer.number, request))
            peer.reset() if how == "reset" else peer.writer.close()

    async with Talk(script) as talk:
        await talk.ask(b"1")
        assert await talk.ask(b"2") == (200, b"ok")
    assert [(number, request[-1:]) for number, request in seen] == [(1, b"1"), (1, b"2"), (2, b"2")]


@on_both_loops
async def test_race_lost_twice_is_an_error() -> None:
    """A server that closes the repeated request too is not asked a third time."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 1:
            await peer.send(OK)
            await peer.request()

    async with Talk(script) as talk:
        await talk.ask()
        with pytest.raises(ClosedEarly):
            await talk.ask()
        assert talk.server.accepted == 2


@on_both_loops
async def test_what_is_never_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a used connection that closes after a byte, nor one that closes late, nor a timeout, is tried
    again."""

    async def after_a_byte(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await peer.send(b"H")

    async with Talk(after_a_byte) as talk:
        await talk.ask()
        with pytest.raises(ClosedEarly):
            await talk.ask()
        assert talk.server.accepted == 1

    async def late(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.request()
        await asyncio.sleep(0.2)

    monkeypatch.setattr("backends._http1_connection.RACE_S", 0.1)
    async with Talk(late) as talk:
        await talk.ask()
        with pytest.raises(ClosedEarly):
            await talk.ask()
        assert talk.server.accepted == 1

    async def silent(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await peer.left()

    async with Talk(silent, clocks=Clocks(first_byte_s=0.1)) as talk:
        await talk.ask()
        with pytest.raises(FirstByteTimeout):
            await talk.ask()
        assert talk.server.accepted == 1


@on_both_loops
async def test_closed_while_idle() -> None:
    """A connection that the server closes while it is idle leaves the pool, and nobody notices."""
    async with Talk(answering(OK, times=1)) as talk:
        await talk.ask()
        await until(lambda: talk.client.open == 0)
        assert await talk.ask() == (200, b"ok")


@pytest.mark.parametrize("extra", [OK, b"garbage"])
@on_both_loops
async def test_bytes_nobody_asked_for(extra: bytes) -> None:
    """What follows an answer, in the same read or later, is dropped with its connection and answers no
    later request."""

    async def later(peer: Peer) -> None:
        await peer.request()
        await peer.send(OK)
        await asyncio.sleep(0.05)
        await peer.send(extra)
        await peer.left()

    first = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirst"
    async with Talk(answering(first + extra)) as talk:
        assert [await talk.ask(), await talk.ask()] == [(200, b"first")] * 2
        assert talk.server.accepted == 2
    async with Talk(later) as talk:
        assert await talk.ask() == (200, b"ok")
        await until(lambda: talk.client.open == 0)


# ----------------------------------------------------------------------------------------------------- the
# pool


@on_both_loops
async def test_pool_limit_and_queue() -> None:
    """Never more connections than the limit; requests past it wait in order and are all answered."""
    order: list[bytes] = []

    async def script(peer: Peer) -> None:
        while request := await peer.request():
            order.append(request[-1:])
            await asyncio.sleep(0.01)
            await peer.send(OK)

    async with Talk(script, limits=Limits(max_connections=2)) as talk:
        answers = await asyncio.gather(*(talk.ask(b"%d" % i) for i in range(10)))
        assert answers == [(200, b"ok")] * 10
        assert talk.server.accepted == 2
    assert sorted(order[:2]) == [b"0", b"1"]
    assert sorted(order[8:]) == [b"8", b"9"]


@on_both_loops
async def test_pool_wait_ends() -> None:
    """Waiting for a connection has its own clock, and the queue its own bound."""
    async with Talk(
        hanging, limits=Limits(max_connections=1, max_waiting=1), clocks=Clocks(pool_s=0.1)
    ) as talk:
        holder = asyncio.create_task(talk.ask())
        await until(lambda: talk.server.accepted == 1)
        waiter = asyncio.create_task(talk.ask())
        await until(lambda: talk.client.waiting == 1)
        with pytest.raises(PoolExhausted):
            await talk.ask()
        with pytest.raises(PoolExhausted):
            await waiter
        assert talk.client.waiting == 0
        holder.cancel()
        await asyncio.gather(holder, return_exceptions=True)


@on_both_loops
async def test_slot_of_a_lost_connection_goes_to_who_waits() -> None:
    """When the only connection breaks, the next in the queue opens a new one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number > 1:
            await peer.send(OK)

    async with Talk(script, limits=Limits(max_connections=1)) as talk:
        first, second = await asyncio.gather(talk.ask(), talk.ask(), return_exceptions=True)
        assert isinstance(first, ClosedEarly)
        assert second == (200, b"ok")


@on_both_loops
async def test_cancelled_waiters_lose_nothing() -> None:
    """Requests cancelled at any moment, waiting or handed a connection, leave pool and queue intact."""
    async with Talk(answering(OK), limits=Limits(max_connections=2)) as talk:
        for turns in range(30):
            tasks = [asyncio.create_task(talk.ask()) for _ in range(8)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[1::2] == [(200, b"ok")] * 4
        assert talk.client.waiting == 0
        assert talk.client.open <= 2
        assert await asyncio.gather(*(talk.ask() for _ in range(4))) == [(200, b"ok")] * 4


@on_both_loops
async def test_cancelled_in_the_moment_of_being_served() -> None:
    """A request that is cancelled after it was handed a connection, and before it ran, hands it on."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        while await peer.request():
            await go.wait()
            await peer.send(OK)

    async with Talk(script, limits=Limits(max_connections=1), clocks=Clocks(pool_s=2)) as talk:
        waiting: list[asyncio.Task[tuple[int, bytes]]] = []

        async def first() -> None:
            await talk.client.post("/chat", b"")
            assert talk.client.waiting == 0  # the connection is the waiting request's already
            waiting[0].cancel()

        holder = asyncio.create_task(first())
        await until(lambda: talk.server.accepted == 1)
        waiting.append(asyncio.create_task(talk.ask()))
        await until(lambda: talk.client.waiting == 1)
        go.set()
        await holder
        assert isinstance((await asyncio.gather(*waiting, return_exceptions=True))[0], asyncio.CancelledError)
        assert await talk.ask() == (200, b"ok")
        assert talk.server.accepted == 1


@on_both_loops
async def test_close_ends_everything() -> None:
    """Closing the client fails the call under way, the one that waits, and those that come later."""
    async with Talk(hanging, limits=Limits(max_connections=1)) as talk:
        under_way, waiting = asyncio.create_task(talk.ask()), asyncio.create_task(talk.ask())
        await until(lambda: talk.client.waiting == 1 and talk.server.accepted == 1)
        await talk.client.close()
        results = await asyncio.gather(under_way, waiting, talk.ask(), return_exceptions=True)
        assert [type(result) for result in results] == [ClosedEarly, ConnectError, ConnectError]


# ------------------------------------------------------------------------------------- cancellation,
# backpressure


@pytest.mark.parametrize("when", ["before the head", "reading", "streaming", "closed"])
@on_both_loops
async def test_leaving_closes_the_connection_at_once(when: str) -> None:
    """However a call is left, the server sees its connection close at once, and the connection is not used
    again."""
    left = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        if when != "before the head":
            await peer.send(CHUNKED + b"3\r\nabc\r\n")
        await peer.left()
        left.set()

    async with Talk(script) as talk:

        async def call() -> None:
            response = await talk.client.post("/chat", b"{}")
            if when == "closed":
                response.close()
                response.close()
            elif when == "reading":
                await response.read()
            else:
                async for _ in response.stream():
                    pass

        task = asyncio.create_task(call())
        await until(lambda: talk.server.accepted == 1)
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(0.2):
            await left.wait()
        await until(lambda: talk.client.open == 0)


@on_both_loops
async def test_backpressure() -> None:
    """A server faster than the reader is stopped: what waits here stays near the limit, and all of it
    arrives."""
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        peer.writer.transport.set_write_buffer_limits(high=0)
        await peer.send(CHUNKED)
        for _ in range(1000):
            await peer.send(b"8000\r\n" + b"x" * 0x8000 + b"\r\n")
            sent += 0x8000
        await peer.send(b"0\r\n\r\n")

    async with Talk(script, limits=Limits(buffer_bytes=64 * 1024)) as talk:
        response = await talk.client.post("/chat", b"")
        pieces = response.stream()
        size = len(await anext(pieces))
        await asyncio.sleep(0.2)
        stopped = sent
        await asyncio.sleep(0.1)
        assert sent == stopped < 1000 * 0x8000
        assert response.buffered <= 64 * 1024 + 300 * 1024  # the limit and one read
        async for data in pieces:
            size += len(data)
        assert size == sent == 1000 * 0x8000
