"""One HTTP/1.1 connection and the response that is arriving on it.

Theory of operation. A connection carries one exchange at a time: `ask` writes the request in one piece and
waits for the head; what follows is buffered in the `Response` until its reader takes it. The parser calls
back while bytes are fed to it; decisions are taken once per read, when it has eaten them all. As soon as
the body is complete the connection is free for the next exchange, though the reader may not have read it
yet.

    idle ── ask ──> waiting ── head ──> receiving ── body complete ──> idle (or closed)
                       │                    │
                       └────── failure, clock, cancellation, close ──────> closed

Clocks cost nothing per read: a read only raises the flag `_heard`, and `check`, which the pool calls for
all connections a few times per second, turns flags into times. So a clock rings up to two ticks late, never
early.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from backends._http1_errors import (
    BadResponse,
    ClosedEarly,
    FirstByteTimeout,
    Http1Error,
    IdleTimeout,
    TooLarge,
    TotalTimeout,
    Unanswered,
)

__all__ = ["Clocks", "Connection", "Limits", "Raced", "Response"]

RACE_S = 1.0
"""A close within this time after the request went out may be the server's answer to silence, not to the
request."""

DRAIN_S = 0.1
"""How long a finished stream may take to end properly, which is what lets its connection be used again."""

ONE_WRITE = 64 * 1024
"""Bodies up to this size are copied behind their head, which costs less than a second buffer."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """How long may it take, in seconds. `total_s` runs from when the request is sent; `pool_s` is the wait
    for a free connection; `connect_s` covers name look-up, TCP, proxy and TLS; `first_byte_s` ends with the
    whole head."""

    connect_s: float = 5.0
    pool_s: float = 30.0
    first_byte_s: float = 600.0
    idle_s: float = 600.0
    total_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may there be. `keep_alive_s` is shorter than the 5 s after which common servers (uvicorn,
    node) close an idle connection. `buffer_bytes` of a streamed body wait for a slow reader before the
    socket is left alone; `max_body_bytes` bounds a body read whole. Sizes hold to within one read of the
    socket."""

    max_connections: int = 1024
    max_waiting: int = 4096
    keep_alive_s: float = 4.0
    max_head_bytes: int = 64 * 1024
    max_body_bytes: int = 64 * 1024 * 1024
    buffer_bytes: int = 256 * 1024


class Raced(Unanswered):
    """A used connection was closed at once and without a byte: the server most likely never saw the
    request."""


class Response:
    """An answer whose head has come. Read it (`read` or `stream`, once) to its end, or `close` it."""

    __slots__ = (
        "buffered",
        "complete",
        "connection",
        "error",
        "held",
        "parts",
        "raw_headers",
        "status",
        "take",
        "waiter",
        "whole",
    )

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        # What follows is between the response and its connection.
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.parts: list[bytes] = []
        self.buffered = 0
        self.complete = self.whole = self.held = False
        self.take: Callable[[bytes], None] | None = None
        self.error: Exception | None = None
        self.connection: Connection | None = connection
        self.waiter: asyncio.Future[None] | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Names in lower case; what stands twice is joined by a comma."""
        headers: dict[str, str] = {}
        for raw_name, raw_value in self.raw_headers:
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    async def read(self) -> bytes:
        """The whole body. Raises `Http1Error`, `TooLarge` past `Limits.max_body_bytes`."""
        self.whole = True
        while not self.complete:
            await self.more()
        return self.taken()

    async def piece(self) -> bytes:
        """All of the body that has come since the last piece; waits for some, and is empty at its end. Raises
        `Http1Error` after what came before it."""
        while not self.parts:
            if self.complete:
                return b""
            await self.more()
        return self.taken()

    async def pour(self, take: Callable[[bytes], None]) -> bool:
        """Have `take` called with all of the body that is there, and with each piece as it comes, until `hold` is
        called (True) or the body ends (False). `take` is called where the socket is read: it must not wait. What it
        raises ends the exchange and is raised here. Raises `Http1Error`."""
        self.take, self.held = take, False
        try:
            while True:
                if self.parts:
                    take(self.taken())
                if self.complete or self.held:
                    return self.held
                await self.more()
        finally:
            self.take = None

    def hold(self) -> None:
        """Have `pour` return, and read no more until somebody asks."""
        self.held = True
        if self.connection is not None:
            self.connection.pause()
        self.wake()

    async def stream(self) -> AsyncIterator[bytes]:
        """The body in pieces; leaving the loop closes the response when the iterator is closed."""
        try:
            while data := await self.piece():
                yield data
        finally:
            self.close()

    async def drain(self) -> None:
        """Read the end of a stream whose last event has come; a server that does not end it loses the connection."""
        if self.complete:
            return
        try:
            async with asyncio.timeout(DRAIN_S):
                while await self.piece():
                    pass
        except (Http1Error, TimeoutError):
            self.close()

    def close(self) -> None:
        """Abort the connection unless the body is complete; safe to repeat. The server learns of it at
        once."""
        if self.connection is not None:
            self.connection.fail(ClosedEarly("the response was closed by its reader"))

    async def more(self) -> None:
        """Wait until more has come, or raise what ended it."""
        if self.error is not None:
            raise self.error
        assert self.connection is not None
        self.connection.resume()
        self.waiter = self.connection.loop.create_future()
        try:
            await self.waiter
        except asyncio.CancelledError:
            self.close()
            raise

    def wake(self) -> None:
        """Let `more` go on."""
        waiter, self.waiter = self.waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def taken(self) -> bytes:
        """All that has come and was not taken yet."""
        parts = self.parts
        self.parts, self.buffered = [], 0
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Connection(asyncio.Protocol):
    """A protocol for `loop.create_connection`; `freed` and `lost` are called with it when it may be used
    again, and when it is gone."""

    def __init__(
        self,
        limits: Limits,
        clocks: Clocks,
        freed: Callable[[Connection], None],
        lost: Callable[[Connection], None],
    ) -> None:
        self._limits, self._clocks, self._freed, self._lost = limits, clocks, freed, lost
        self.loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._response: Response | None = None
        self._used = self._heard = self._headed = self._ended = self._reusable = self._paused = False
        self._head_bytes = 0
        self._deadline = self.since = 0.0

    # ----------------------------------------------------------------------------------------------------
    # what the pool does

    async def ask(self, head: bytes, body: bytes) -> Response:
        """Send a request and wait for the head of its answer. Raises `Http1Error`; `Raced` when it may be
        sent again."""
        if not self.usable:
            raise Raced("a used connection was closed before the request went out")
        response = self._response = Response(self)
        self._heard = self._headed = self._ended = False
        self._head_bytes = 0
        self.since = now = self.loop.time()
        self._deadline = now + self._clocks.total_s
        if len(body) <= ONE_WRITE:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        await response.more()
        if not response.status:
            await response.more()  # raises what came instead of a head
        return response

    @property
    def usable(self) -> bool:
        """Whether it is open, as far as this side knows."""
        return not self._transport.is_closing()

    def fresh_enough(self) -> bool:
        """Whether it is open and has not been idle for longer than `Limits.keep_alive_s`."""
        return self.usable and self.loop.time() - self.since < self._limits.keep_alive_s

    def check(self, now: float) -> None:
        """Let the clocks tick; `now` in seconds of the loop's clock."""
        if self._response is None:
            if now - self.since > self._limits.keep_alive_s:
                self.abort()
        elif now > self._deadline:
            self.fail(TotalTimeout(f"no complete answer within {self._clocks.total_s:g} s"))
        elif not self._headed:
            if now - self.since > self._clocks.first_byte_s:
                self.fail(FirstByteTimeout(f"no answer within {self._clocks.first_byte_s:g} s"))
        elif self._heard or self._paused:
            self._heard, self.since = False, now
        elif now - self.since > self._clocks.idle_s:
            self.fail(IdleTimeout(f"silence for {self._clocks.idle_s:g} s in the middle of an answer"))

    def fail(self, error: Exception) -> None:
        """End the exchange with `error`, and the connection with it."""
        response, self._response = self._response, None
        if response is not None:
            response.error, response.connection = error, None
            response.wake()
        self.abort()

    def abort(self) -> None:
        """Close at once, whatever has not been sent."""
        self._transport.abort()

    def pause(self) -> None:
        """Read no more for the present."""
        if not self._paused and self.usable:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on after a pause."""
        if self._paused and self.usable:
            self._paused = False
            self._transport.resume_reading()

    # ------------------------------------------------------------ what
    # the event loop does

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.since = self.loop.time()

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            # Nobody asked. An answer to nothing would be taken for the answer to the next request.
            self.abort()
            return
        self._heard = True
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            if self._ended:
                self._finish(response, reuse=False)  # the answer is whole; what follows it is not ours
            else:
                self.fail(BadResponse(f"not HTTP/1.1: {error}"))
            return
        if not self._headed:
            self._head_bytes += len(data)
            if self._head_bytes > self._limits.max_head_bytes:
                self.fail(TooLarge(f"a head of more than {self._limits.max_head_bytes} bytes"))
            return
        if response.take is not None and response.parts:
            try:
                response.take(response.taken())
            except Exception as error:  # noqa: BLE001 - whatever it is, whoever pours is told
                self.fail(error)
                return
        if response.whole and response.buffered > self._limits.max_body_bytes:
            self.fail(TooLarge(f"a body of more than {self._limits.max_body_bytes} bytes"))
        elif self._ended:
            self._finish(response, reuse=self._reusable)
        elif not response.whole and response.take is None:
            if response.buffered > self._limits.buffer_bytes:
                self.pause()
            response.wake()

    def eof_received(self) -> None:
        self._closed_by_peer(None)
        self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._closed_by_peer(error)
        self._lost(self)

    # ----------------------------------------------------------------------------------------------------
    # what the parser does

    def on_message_begin(self) -> None:
        if self._ended:
            raise ValueError("bytes after the end of the answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._response is not None and not self._headed:  # trailers are not headers
            self._response.raw_headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        response = self._response
        assert response is not None
        if status >= 200:
            response.status, self._headed = status, True
        else:
            response.raw_headers.clear()  # 1xx: an answer before the answer

    def on_body(self, body: bytes) -> None:
        response = self._response
        assert response is not None
        response.parts.append(body)
        response.buffered += len(body)

    def on_message_complete(self) -> None:
        if self._headed:
            # Asked now, because the parser forgets what `connection: close` said as soon as the message is
            # over.
            self._ended, self._reusable = True, self._parser.should_keep_alive()

    # --------------------------------------------------------------------------------------------------------------
    # private

    def _finish(self, response: Response, *, reuse: bool) -> None:
        """The body is complete: hand it over, and free the connection."""
        self._response, self._used = None, True
        response.complete, response.connection = True, None
        response.wake()
        # What is left of a request that was answered before it was read whole would stand in front of the
        # next one.
        if reuse and not self._transport.get_write_buffer_size() and self.usable:
            self.resume()
            self.since = self.loop.time()
            self._freed(self)
        else:
            self.abort()

    def _closed_by_peer(self, error: Exception | None) -> None:
        response = self._response
        if response is None:
            return
        if error is None and self._headed and _ends_by_closing(response):
            self._finish(response, reuse=False)
        elif self._used and not self._heard and self.loop.time() - self.since < RACE_S:
            self.fail(Raced("a used connection was closed as the request went out"))
        elif not self._headed:
            self.fail(Unanswered(f"closed before an answer began ({_how(error)})"))
        else:
            self.fail(ClosedEarly(f"closed before the answer was complete ({_how(error)})"))


def _how(error: Exception | None) -> str:
    return "closed" if error is None else type(error).__name__


def _ends_by_closing(response: Response) -> bool:
    """Whether the body has no length of its own, so that its end is the end of the connection."""
    headers = response.headers
    if "transfer-encoding" in headers:
        return not headers["transfer-encoding"].lower().endswith("chunked")
    return "content-length" not in headers
