"""An HTTP/1.1 client for one server: what the request path asks of a backend, and nothing else.

    client = Http1("https://models.example/v1", headers={"authorization": "Bearer …"})
    response = await client.post("/chat/completions", body)
    body = await response.read()                  # or: async for data in response.stream(): …

It pools connections (`Limits`, with a queue when all are busy), keeps five clocks (`Clocks`), speaks TLS,
Unix sockets and to proxies, pushes back on a server that is faster than its reader, and closes a connection
at once when a call is cancelled. It follows no redirects, keeps no cookies, decodes no content codings (ask
for `accept-encoding: identity`), and sends only the headers it is given, `host` and `content-length`.

**Sent twice?** A request is sent again, once, on a fresh connection (in a full pool: on one just freed),
when all of these hold: its connection had served an exchange before; not one byte of an answer had come;
the server closed or reset it; and that within `RACE_S` (1 s) of sending. That is a keep-alive race: the
server closed an idle connection while the request was on its way, and did not read it. The server may close
without having read what it was sent, or having read it and crashed within that second without a word: HTTP
cannot tell these apart, and in the second case the request is done anew, at the cost of that second. A call
on a fresh connection, a slower close, a timeout, or a cancelled call is never repeated here.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Coroutine, Mapping
from functools import lru_cache
from typing import Any, NewType

from backends._http1_connection import RACE_S, Clocks, Connection, Limits, Raced, Response
from backends._http1_dial import Dialler, Origin, proxy_authorization
from backends._http1_errors import (
    BadResponse,
    ClosedEarly,
    ConnectError,
    ConnectTimeout,
    FirstByteTimeout,
    Http1Error,
    IdleTimeout,
    PoolExhausted,
    TimedOut,
    TlsError,
    TooLarge,
    TotalTimeout,
    Unanswered,
)

__all__ = [
    "NO_HEADERS",
    "RACE_S",
    "BadResponse",
    "Clocks",
    "ClosedEarly",
    "ConnectError",
    "ConnectTimeout",
    "FirstByteTimeout",
    "HeaderBlock",
    "Http1",
    "Http1Error",
    "IdleTimeout",
    "Limits",
    "PoolExhausted",
    "Response",
    "TimedOut",
    "TlsError",
    "TooLarge",
    "TotalTimeout",
    "Unanswered",
    "header_block",
]

HeaderBlock = NewType("HeaderBlock", bytes)
"""Header lines ready to be sent, made by `header_block` only."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_PATH = re.compile(r"/[!-~]*")
_OURS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "expect", "te", "trailer"}
)


def header_block(headers: Mapping[str, str]) -> HeaderBlock:
    """`headers` as bytes. Raises `ValueError` for a line break or other control character, for what Latin-1
    cannot say, and for headers that frame a message, which are the client's own."""
    lines = []
    for name, value in headers.items():
        # The value is not shown: it may be a key.
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(f"the header {name!r} has a character that headers must not have")
        if name.lower() in _OURS:
            raise ValueError(f"the header {name!r} is the client's own")
        lines.append(f"{name}: {value}\r\n")
    return HeaderBlock("".join(lines).encode("latin-1"))


NO_HEADERS = HeaderBlock(b"")


@lru_cache(256)
def _line(method: str, prefix: str, path: str) -> bytes:
    """A request's first line. Raises `ValueError` for a path that would end it."""
    if not _PATH.fullmatch(path):
        raise ValueError("a path begins with a slash and has no blanks, line breaks or letters beyond ASCII")
    return f"{method} {prefix}{path} HTTP/1.1\r\n".encode("ascii")


class Http1:
    """A pool of connections to the server of `base_url`; paths are taken below it. `headers` go out with
    every request; `context` None means the system's certificate authorities; `proxy` is an http:// or
    https-tunnelling proxy's URL.

    Connects on first use, and belongs to the event loop of that use. Raises `ValueError` for bad URLs and
    headers.
    """

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        clocks: Clocks | None = None,
        context: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        origin = Origin.parse(base_url)
        way = Origin.parse(proxy, proxy=True) if proxy else None
        if way is not None and (way.tls or way.socket_path):
            raise ValueError("a proxy must have an http:// URL")
        self._limits, self._clocks = limits or Limits(), clocks or Clocks()
        self._dialler = Dialler(origin, connect_s=self._clocks.connect_s, context=context, proxy=way)
        self._root, self._prefix = "", origin.prefix
        common = f"host: {origin.host_header}\r\n"
        if way is not None and not origin.tls and not origin.socket_path:
            # Plain HTTP goes through a proxy in absolute form; TLS through a tunnel.
            self._root = f"http://{origin.authority}"
            self._prefix = self._root + origin.prefix
            if way.credentials is not None:
                common += f"{proxy_authorization(way.credentials)}\r\n"
        self._common = common.encode("latin-1") + header_block(headers or {})
        self._live: set[Connection] = set()
        self._idle: deque[Connection] = deque()  # longest idle first
        self._slots = self._limits.max_connections
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        shortest = min(
            self._clocks.first_byte_s, self._clocks.idle_s, self._clocks.total_s, self._limits.keep_alive_s
        )
        self._tick_s = min(1.0, max(0.01, shortest / 4))
        self._ticker: asyncio.TimerHandle | None = None
        self._closing: asyncio.Future[None] | None = None

    def post(
        self, path: str, body: bytes, headers: HeaderBlock = NO_HEADERS
    ) -> Coroutine[Any, Any, Response]:
        """Send `body` and wait for the head of the answer. Raises `Http1Error`; `ValueError` for a bad
        path."""
        return self._exchange(
            "POST", path, b"%bcontent-length: %d\r\n" % (headers, len(body)), body, self._prefix
        )

    async def send(self, method: str, path: str, body: bytes | None, headers: HeaderBlock) -> Response:
        """Send a request of any `method` but HEAD, with `body` where there is one, and wait for the head of the answer.
        Raises `Http1Error`; `ValueError` for a bad path or method."""
        if not method.isalpha() or not method.isupper() or method == "HEAD":
            raise ValueError("a method is in capital letters, and HEAD is not for this client")
        length = b"" if body is None else b"content-length: %d\r\n" % len(body)
        return await self._exchange(method, path, headers + length, body or b"", self._prefix)

    async def get(self, path: str, headers: HeaderBlock = NO_HEADERS, *, from_root: bool = False) -> Response:
        """Ask for `path`, below the base URL or `from_root` of the server, and wait for the head of the
        answer. Raises `Http1Error`; `ValueError` for a bad path."""
        return await self._exchange("GET", path, headers, b"", self._root if from_root else self._prefix)

    async def close(self) -> None:
        """Abort every connection and wait until they are gone. Calls that are under way, or come later,
        fail."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_future()
        if self._ticker is not None:
            self._ticker.cancel()
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(ConnectError("the client is closed"))
        for connection in tuple(self._live):
            connection.fail(ClosedEarly("the client was closed"))
        if self._live:
            await asyncio.shield(self._closing)

    @property
    def open(self) -> int:
        """Connections that are open or being opened."""
        return self._limits.max_connections - self._slots

    @property
    def idle(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    # -------------------------------------------------------------------------------------------------------
    # one exchange

    async def _exchange(self, method: str, path: str, headers: bytes, body: bytes, prefix: str) -> Response:
        head = b"%b%b%b\r\n" % (_line(method, prefix, path), self._common, headers)
        try:
            return await (self._take() or await self._wait()).ask(head, body)
        except Raced:
            return await (await self._fresh()).ask(head, body)

    def _take(self) -> Connection | None:
        """The connection that was used last, and so is least likely to be closed by the server just now."""
        idle = self._idle
        if idle:
            connection = idle.pop()
            if connection.fresh_enough():
                return connection
            connection.abort()
            return self._take()
        return None

    async def _wait(self) -> Connection:
        """A new connection where there is room for one, else the next that becomes free."""
        if self._slots:
            self._slots -= 1
            return await self._dial()
        if len(self._waiting) >= self._limits.max_waiting:
            raise PoolExhausted(
                f"all connections are busy, and {self._limits.max_waiting} requests wait for one"
            )
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(self._clocks.pool_s):
                connection = await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._pass_on(waiter.result())  # handed over in the moment in which we left
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            if isinstance(error, TimeoutError):
                raise PoolExhausted(f"no connection became free within {self._clocks.pool_s:g} s") from error
            raise
        return await self._dial() if connection is None else connection

    async def _fresh(self) -> Connection:
        """A new connection, in the place of one that has just been lost."""
        while (idle := self._take()) is not None:
            idle.abort()  # as old as the one that raced, or older
        return await self._wait()

    async def _dial(self) -> Connection:
        """Open a connection, in a slot that is already ours."""
        try:
            if self._closing is not None:
                raise ConnectError("the client is closed")
            connection = await self._dialler.dial(self._connection)
        except BaseException:
            self._slots += 1
            self._pass_on_slot()
            raise
        if self._closing is not None or not connection.usable:
            self._slots += 1
            self._pass_on_slot()
            connection.abort()
            raise ConnectError("the connection was closed as soon as it was open")
        self._live.add(connection)
        if self._ticker is None:
            self._tick()
        return connection

    def _connection(self) -> Connection:
        return Connection(self._limits, self._clocks, self._freed, self._lost)

    # ------------------------------------------------------------------------------------------------------
    # keeping the pool

    def _freed(self, connection: Connection) -> None:
        """A connection may be used again: by who waits longest, else later."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)

    def _lost(self, connection: Connection) -> None:
        """A connection is gone, and its slot free."""
        if connection not in self._live:
            return  # it never came to life: its slot is still with `_dial`
        self._live.remove(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._slots += 1
        self._pass_on_slot()
        if self._closing is not None and not self._live and not self._closing.done():
            self._closing.set_result(None)

    def _pass_on_slot(self) -> None:
        """Let who waits longest open a connection of its own."""
        while self._slots and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._slots -= 1
                waiter.set_result(None)

    def _pass_on(self, handed: Connection | None) -> None:
        """What was handed to a request that has left goes to the next."""
        if handed is None:
            self._slots += 1
            self._pass_on_slot()
        elif handed.usable:
            self._freed(handed)

    def _tick(self) -> None:
        """Let the clocks of all connections tick, as long as there are any."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in tuple(self._live):
            connection.check(now)
        self._ticker = loop.call_later(self._tick_s, self._tick) if self._live else None
