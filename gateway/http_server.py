"""HTTP/1.1 as a worker serves it: a protocol class for uvicorn, in the place of its own.

Every request passes here, so this does what a gateway needs and nothing more: no web sockets, no log of its own. It
is an ASGI server for the pages, and gives the hot routes their `Wire`.

Theory of operation. A connection has one request that is being answered and, when its client sends ahead, a queue of
those that came meanwhile; with a queue, or with more body than a reader takes, the socket is not read. A request's
task starts when its head is complete, and its client takes the answers it has. One timer per connection, never reset,
looks every few seconds what the connection waits for:

    a request      for longer than `KEEP_ALIVE_S`                closed
    a whole head   for longer than `HEAD_S` since its first byte   408, closed
    anything else                                                the application's affair (bodies: `Exchange.body`)
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from secrets import token_hex
from typing import Any, cast
from urllib.parse import unquote

import orjson
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url

from gateway.wire import WIRE, Headers, Message, Scope, header_lines
from protocol.errors import BadRequest, ChorusError, HeadersTooLarge, RequestTimeout

__all__ = ["HEAD_S", "KEEP_ALIVE_S", "MAX_HEAD_BYTES", "HttpServer"]

log = logging.getLogger("chorus.gateway")

KEEP_ALIVE_S = 65.0
"""Longer than load balancers keep their connections, so that they are the ones to close."""
HEAD_S = 15.0
CHECK_S = 5.0
LAST_S = 0.5
"""How long a connection without a request is kept when the server stops: its client may just be sending one."""
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 128
UNREAD_BYTES = 64 * 1024
"""Of a body that nobody reads, before the socket is left alone."""

_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_BODILESS = frozenset({204, 304})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class HttpServer(asyncio.Protocol):
    """One connection. The arguments are uvicorn's."""

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self._app, self.state = config.loaded_app, server_state
        self.loop = _loop or asyncio.get_running_loop()
        self.parser = self._new_parser()
        self.full = False
        self.waiting: asyncio.Future[None] | None = None
        self._request: Request | None = None
        self._incoming: Request | None = None
        self._queue: deque[Request] = deque()
        self._head: Headers = []
        self._url = b""
        self._head_since: float | None = None
        self._head_bytes = 0
        self._paused = self._upgrading = False
        self.closing = False
        """Whether the connection ends with the request that is being answered."""
        self._always: Headers = []
        self._always_lines = b""

    # ------------------------------------------------------------------------------------------ the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.state.connections.add(self)
        self._idle_since = self.loop.time()
        self._timer = self.loop.call_later(CHECK_S, self._check)
        ours, theirs = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
            "root_path": "",
            "server": tuple(ours[:2]) if isinstance(ours, tuple) else (str(ours), None),
            "client": tuple(theirs[:2]) if isinstance(theirs, tuple) else None,
        }

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self.state.connections.discard(self)
        self._wake()
        for request in (self._request, *self._queue):
            if request is not None:
                request.lost()

    def data_received(self, data: bytes) -> None:
        if self._incoming is None:
            self._head_bytes += len(data)
        try:
            self._parse(data)
        except HttpParserError:
            if len(self._head) <= MAX_HEADERS:
                self._refuse(BadRequest("This is no HTTP/1.1 request.", code="invalid_http"))
                return
        if self._incoming is None and (self._head_bytes > MAX_HEAD_BYTES or len(self._head) > MAX_HEADERS):
            self._refuse(
                HeadersTooLarge(f"A head has at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} headers here.")
            )

    def _parse(self, data: bytes) -> None:
        """Raises `HttpParserError`."""
        rest = memoryview(data)
        while rest:
            try:
                self.parser.feed_data(rest)
                return
            except HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
                self._read_on()

    def _read_on(self) -> None:
        """There is nothing here to upgrade to, so a request that asks for it is answered as if it had not. The parser
        took what follows its head, the body too, for words of another protocol; a new one is told how long the body
        is."""
        framing = [line for line in self._head if line[0] in _FRAMING]
        self.parser = self._new_parser()
        self.parser.feed_data(
            b"POST / HTTP/1.1\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % line for line in framing])
        )

    def _new_parser(self) -> HttpRequestParser:
        parser = HttpRequestParser(self)
        # What a client sends after the request with which it said it would close is not looked at, but no error either.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def eof_received(self) -> None:
        """Half a connection is none: `connection_lost` follows."""

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self._wake()
        if self._request is None:
            self._next()

    def _wake(self) -> None:
        self.full = False
        waiting, self.waiting = self.waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def shutdown(self) -> None:
        """Uvicorn stops: what has begun is answered, and so is a request already on its way on a connection that looks
        idle."""
        self.closing = True
        self.loop.call_later(LAST_S, self._close_idle)

    def _close_idle(self) -> None:
        if self._request is None:
            self.transport.close()

    def pause_reading(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and not self._queue and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def always(self) -> bytes:
        """The header lines of every answer. uvicorn makes a new list whenever one of them, the date, has changed."""
        headers = self.state.default_headers
        if headers is not self._always:
            self._always = headers
            self._always_lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        return self._always_lines

    def answered(self, *, close: bool) -> None:
        """The request is answered: the next one, if its client has sent it."""
        self.state.total_requests += 1
        self._request = None
        self._idle_since = self.loop.time()
        if close or self.closing:
            self.transport.close()
            return
        self._next()

    def _next(self) -> None:
        """Begin what waits, unless the client does not take what it was answered."""
        if self._queue and not self.full:
            self._begin(self._queue.popleft())
        if self._head_since is not None:
            self._head_since = self.loop.time()  # nobody read the rest of it
        self.resume_reading()

    def _begin(self, request: Request) -> None:
        self._request = request
        task = self.loop.create_task(request.run(self._app, self.state.tasks))
        self.state.tasks.add(task)

    def _check(self) -> None:
        now = self.loop.time()
        self._timer = self.loop.call_later(CHECK_S, self._check)
        if self._request is not None:
            return
        if self._head_since is not None and not self._queue:
            if now - self._head_since > HEAD_S:
                self._refuse(RequestTimeout(f"The request's head did not arrive within {HEAD_S:g} s."))
        elif now - self._idle_since > KEEP_ALIVE_S:
            if self.transport.is_closing():  # and its client does not read the end of its answer
                self.transport.abort()
            self.transport.close()

    def _refuse(self, error: ChorusError) -> None:
        """Answer what is no request, unless somebody still waits for an answer to an earlier one."""
        request = self._request
        if request is not None and request is self._incoming and not request.started:
            request.lost()  # its body is none
            request = None
        if request is None and not self.transport.is_closing():
            body = orjson.dumps(error.body())
            head = (
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
                f"x-request-id: req_{token_hex(16)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(_LINES[error.status] + head.encode("ascii") + body)
        self.transport.close()

    # ---------------------------------------------------------------------------------------------- the parser

    def on_message_begin(self) -> None:
        if self._upgrading:
            return
        self._url, self._head = b"", []
        self._head_since = self.loop.time()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._incoming is None:  # trailers are not headers
            self._head.append((name.lower(), value))
            if len(self._head) > MAX_HEADERS:
                raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        if self._upgrading:
            self._upgrading = False
            return
        parser, head = self.parser, self._head
        url = parse_url(self._url)
        raw_path = url.path or b"/"
        path = raw_path.decode("ascii")
        wire = Request(self, parser.should_keep_alive())
        wire.scope = {
            **self._scope,
            "method": parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "headers": head,
            "extensions": {WIRE: wire},
        }
        if parser.get_http_version() != "1.1":
            wire.speaks_1_0()
        self._head_since, self._head_bytes = None, 0
        self._incoming = wire
        if self._request is None and not self.full:
            self._begin(wire)
        else:
            self._queue.append(wire)
            self.pause_reading()
        self._upgrading = parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        if self._incoming is not None:
            self._incoming.body_came(body)

    def on_message_complete(self) -> None:
        if self._upgrading:
            return
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.body_ended()


class Request:
    """One request and its answer: the `Wire` of the hot routes, ASGI for everything else."""

    __slots__ = (
        "_bare", "_body", "_chunked", "_close", "_complete", "_connection", "_head", "_left", "_lost", "_missing",
        "_more", "_size", "_urged", "_waiter", "scope", "started",
    )  # fmt: skip

    scope: Scope

    def __init__(self, connection: HttpServer, keep_alive: bool) -> None:
        self._connection, self._close = connection, not keep_alive
        self._body: list[bytes] | None = []  # None: it was taken, or nobody wants it
        self._size = self._missing = 0
        self._more = True
        self.started = self._complete = self._lost = self._chunked = self._bare = False
        self._urged = False  # to send its body
        self._head = b""  # until it goes out with what follows it
        self._left: Callable[[], None] | None = None
        self._waiter: asyncio.Future[None] | None = None

    async def run(self, app: Callable[..., Any], tasks: set[asyncio.Task[None]]) -> None:
        """Have it answered by `app`; an answer that breaks off closes the connection."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception:
            log.exception("a bug of ours")
        finally:
            if not (self.started or self._lost):
                self.start(500, b"", 0, close=True)
                self.end()
            elif not self._complete:
                self._finish(close=True)
            tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))

    # ------------------------------------------------------------------------------------------- what comes in

    def speaks_1_0(self) -> None:
        """An old client, who knows no chunks."""
        self.scope["http_version"] = "1.0"
        self._close = True

    def body_came(self, data: bytes) -> None:
        """A part of the body."""
        if self._body is None:
            return
        self._body.append(data)
        self._size += len(data)
        if self._size > UNREAD_BYTES:
            self._connection.pause_reading()
        self._wake()

    def body_ended(self) -> None:
        """There is no more of it."""
        self._more = False
        self._wake()

    def lost(self) -> None:
        """The client has left."""
        self._lost = True
        self._wake()
        left, self._left = self._left, None
        if left is not None and not self._complete:
            left()

    def whole_body(self) -> bytes | None:
        parts = self._body
        if self._more or parts is None or self._lost:
            return None
        self._body = None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def receive(self) -> Message:
        """ASGI's way to read the request."""
        connection = self._connection
        if self._body == [] and self._hesitates() and not (self.started or self._lost):
            self._urged = True
            connection.transport.write(_CONTINUE)
        while not (self._complete or self._lost):
            if self._body is not None and (self._body or not self._more):
                data, self._size = b"".join(self._body), 0
                self._body = [] if self._more else None
                return {"type": "http.request", "body": data, "more_body": self._more}
            connection.resume_reading()
            self._waiter = connection.loop.create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    def _hesitates(self) -> bool:
        """Whether the client waits for leave to send its body, or may have given up waiting."""
        return (
            self._more
            and not self._urged
            and any(
                name == b"expect" and value.lower() == b"100-continue"
                for name, value in self.scope["headers"]
            )
        )

    def watch(self, left: Callable[[], None]) -> None:
        if self._lost:
            left()
        else:
            self._left = left

    def unwatch(self) -> None:
        self._left = None

    # --------------------------------------------------------------------------------------------- what goes out

    @property
    def full(self) -> bool:
        return self._connection.full

    async def drain(self) -> None:
        connection = self._connection
        if self._head and not self._lost:
            head, self._head = self._head, b""
            connection.transport.write(head)
        # Of a complete answer nothing more comes, and the next request does not begin before it is taken.
        while connection.full and not (self._lost or self._complete):
            connection.waiting = connection.loop.create_future()
            await connection.waiting

    def start(self, status: int, head: bytes, length: int | None = None, *, close: bool = False) -> None:
        # A client that is answered before it has sent its body may send it, or another request: nobody could tell.
        self._close = self._close or close or self._connection.closing or self._hesitates()
        self._bare = status in _BODILESS or self.scope["method"] == "HEAD"
        framing = b""
        if status == 204:
            pass  # has no length, not even none
        elif length is not None:
            self._missing = length
            framing = b"content-length: %d\r\n" % length
        elif not self._bare and self.scope["http_version"] == "1.1":
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        if self._close:
            framing += b"connection: close\r\n"
        line = _LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
        self.started = True
        self._head = b"%b%b%b%b\r\n" % (line, self._connection.always(), head, framing)

    def write(self, data: bytes) -> None:
        if data and not (self._lost or self._complete or self._bare):
            self._missing -= len(data)
            if self._chunked:
                data = b"%b%x\r\n%b\r\n" % (self._head, len(data), data)
            elif self._head:
                data = self._head + data
            self._head = b""
            self._connection.transport.write(data)

    def end(self, data: bytes = b"") -> None:
        if self._complete:
            return
        cut = False
        if not self._lost:
            if self._bare:
                data = self._head
            elif self._chunked:
                data = b"%b%x\r\n%b\r\n" % (self._head, len(data), data) if data else self._head
                data += b"0\r\n\r\n"
            else:
                # An answer shorter, or longer, than was told is one whose end the client cannot find.
                cut = self._missing != len(data)
                data = self._head + data
            self._connection.transport.write(data)
        self._finish(close=self._close or cut)

    async def send(self, message: Message) -> None:
        """ASGI's way to write the answer."""
        if message["type"] == "http.response.start":
            length, close = None, False
            lines = b""
            for name, value in message.get("headers", ()):
                match name.lower():
                    case b"content-length":
                        length = int(value)
                    case b"connection":
                        close = value.lower() == b"close"
                    case b"transfer-encoding":
                        pass
                    case lowered:
                        lines += header_lines({lowered.decode("latin-1"): value.decode("latin-1")})
            self.start(message["status"], lines, length, close=close)
        elif message.get("more_body", False):
            self.write(message.get("body", b""))
            if self.full:
                await self.drain()
        else:
            self.end(message.get("body", b""))

    def _finish(self, *, close: bool) -> None:
        self._complete = True
        self._body = self._left = None
        self._wake()
        if not self._lost:
            self._connection.answered(close=close)

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
