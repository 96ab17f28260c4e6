"""What an answer is written to: the server's side of one HTTP request.

`Wire` is what the hot routes need of a server beyond ASGI: a body that has come whole is there without waiting,
writing is a plain call, so that a stream can be relayed by whoever reads the upstream's socket, and a client that
leaves is told of by a call, so that nobody has to wait for it. `gateway.http_server` gives a request's wire in its
scope; under any other ASGI server `AsgiWire` does the same with messages and a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Protocol, cast

__all__ = [
    "WIRE",
    "AsgiWire",
    "Headers",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "Wire",
    "header_lines",
    "wire_of",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

WIRE = "chorus.wire"
"""The scope's extension under which our own server gives a request's wire."""


class Wire(Protocol):
    """`start`, then `write` any number of times, then `end`. None of them waits: whoever writes much waits in `drain`
    whenever the wire is `full`. To write to a client who has left does nothing."""

    @property
    def full(self) -> bool:
        """Whether the client reads more slowly than it is written to."""
        ...

    def whole_body(self) -> bytes | None:
        """The request's body, when all of it has come and none was received yet."""
        ...

    def receive(self) -> Awaitable[Message]:
        """ASGI's next message of the request."""
        ...

    def start(self, status: int, head: bytes, length: int | None = None, *, close: bool = False) -> None:
        """Begin the answer, of `length` bytes (None: not known yet); `close` the connection after it. `head` are header
        lines, made by `header_lines`."""
        ...

    def write(self, data: bytes) -> None:
        """A part of the answer."""
        ...

    def end(self, data: bytes = b"") -> None:
        """The last part of the answer."""
        ...

    async def drain(self) -> None:
        """Wait until the wire is not full, or the client has left."""
        ...

    def watch(self, left: Callable[[], None]) -> None:
        """Call `left` once, when the client leaves before the answer is complete; at once, if it has left."""
        ...

    def unwatch(self) -> None:
        """Nobody is interested any more."""
        ...


def header_lines(headers: Mapping[str, str]) -> bytes:
    """`headers` as lines. Raises `ValueError` for a value that would end its line: what followed would be another
    header, or another answer."""
    lines = "\r\n".join(map(": ".join, headers.items())) + "\r\n" if headers else ""
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
        raise ValueError("a header has a character that headers must not have")
    return lines.encode("latin-1", "replace")


def wire_of(scope: Scope, receive: Receive, send: Send) -> Wire:
    """The wire of a request, whatever the server."""
    given = scope.get("extensions", {}).get(WIRE)
    return cast(Wire, given) if given is not None else AsgiWire(receive, send)


class AsgiWire:
    """A wire made of ASGI's two functions."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive, self._send = receive, send
        self._unsent: list[Message] = []
        self._watcher: asyncio.Task[None] | None = None
        self._complete = False

    @property
    def full(self) -> bool:
        return bool(self._unsent)

    def whole_body(self) -> bytes | None:
        return None

    def start(self, status: int, head: bytes, length: int | None = None, *, close: bool = False) -> None:
        told = [(name, value) for line in head.splitlines() for name, _, value in (line.partition(b": "),)]
        if length is not None:
            told.append((b"content-length", b"%d" % length))
        if close:
            told.append((b"connection", b"close"))
        self._unsent.append({"type": "http.response.start", "status": status, "headers": told})

    def write(self, data: bytes) -> None:
        self._unsent.append({"type": "http.response.body", "body": data, "more_body": True})

    def end(self, data: bytes = b"") -> None:
        self._complete = True
        self._unsent.append({"type": "http.response.body", "body": data})

    async def drain(self) -> None:
        unsent, self._unsent = self._unsent, []
        for message in unsent:
            await self._send(message)

    def watch(self, left: Callable[[], None]) -> None:
        self._watcher = asyncio.create_task(self._watch(left))

    def unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()

    async def _watch(self, left: Callable[[], None]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if not self._complete:
            left()
