"""What one request said and was told, overheard on its wire: for callers whose key has that stored, and no others."""

from __future__ import annotations

import re
from collections.abc import Callable

from gateway.wire import Message, Wire

__all__ = ["STREAM_TIMES", "Transcript"]

STREAM_TIMES = 16
"""A stream's events are about so many times the words in them; they are put together when it is stored."""
_CONTENT_TYPE = re.compile(rb"^content-type: ([^;\r]+)", re.MULTILINE)


class Transcript:
    """A `Wire` that passes everything on to `wire` and holds what was said: of the request its first `most` bytes, of
    the answer as many, or `STREAM_TIMES` as many of a stream. Files and sounds, either way, are not words."""

    __slots__ = ("_most", "_room", "_wire", "answer", "answer_cut", "answer_type", "prompt", "prompt_cut")

    def __init__(self, wire: Wire, most: int) -> None:
        self._wire, self._most, self._room = wire, most, 0
        self.prompt, self.answer = bytearray(), bytearray()
        self.answer_type = ""
        """The answer's media type; empty while none has begun that is of words."""
        self.answer_cut = self.prompt_cut = False
        """Whether the one, or the other, went on beyond what is held."""

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        return len(self.prompt) + len(self.answer)

    @property
    def full(self) -> bool:
        return self._wire.full

    def whole_body(self) -> bytes | None:
        body = self._wire.whole_body()
        if body is not None:
            self._said(body)
        return body

    async def receive(self) -> Message:
        message = await self._wire.receive()
        self._said(message.get("body", b""))
        return message

    def start(self, status: int, head: bytes, length: int | None = None, *, close: bool = False) -> None:
        found = _CONTENT_TYPE.search(head)
        kind = found[1].decode("latin-1") if found else ""
        if kind == "text/event-stream":
            self.answer_type, self._room = kind, self._most * STREAM_TIMES
        elif kind == "application/json":
            self.answer_type, self._room = kind, self._most
        self._wire.start(status, head, length, close=close)

    def write(self, data: bytes) -> None:
        self._told(data)
        self._wire.write(data)

    def end(self, data: bytes = b"") -> None:
        self._told(data)
        self._wire.end(data)

    async def drain(self) -> None:
        await self._wire.drain()

    def watch(self, left: Callable[[], None]) -> None:
        self._wire.watch(left)

    def unwatch(self) -> None:
        self._wire.unwatch()

    def _said(self, data: bytes) -> None:
        room = self._most - len(self.prompt)
        self.prompt += data[:room]
        self.prompt_cut = self.prompt_cut or len(data) > room

    def _told(self, data: bytes) -> None:
        if self.answer_type:
            room = self._room - len(self.answer)
            self.answer += data[:room]
            self.answer_cut = self.answer_cut or len(data) > room
