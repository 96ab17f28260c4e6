"""Server-sent events as bytes: event boundaries, reading `data:` lines, writing events. No sockets, no clock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from protocol.errors import UpstreamBroken

__all__ = ["CONTENT_TYPE", "DONE", "KEEP_ALIVE", "EventSplitter", "event", "event_data", "first_event"]

CONTENT_TYPE = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
MAX_EVENT_BYTES = 16 * 1024 * 1024
"""An upstream event longer than this is not a stream of tokens any more."""


_MARKS = (b"\n\n", b"\r\n\r\n", b"\r\r")


class EventSplitter:
    """Cuts a byte stream into whole events, each with its closing blank line, whatever the network's chunking.

    Boundaries are a blank line after LF, CR or CRLF line ends, as the standard allows.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._marks: tuple[bytes, ...] = (b"\n\n",)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield every event that `data` completes, bytes untouched. Raises `UpstreamBroken` past `MAX_EVENT_BYTES`."""
        self._buffer += data
        if b"\r" in data:
            self._marks = _MARKS
        start = 0
        search = max(0, self._searched - 3)  # what was searched before is not again, but for half a boundary
        while (end := self._boundary(search)) is not None:
            yield bytes(self._buffer[start:end])
            start = search = end
        del self._buffer[:start]
        self._searched = len(self._buffer)
        if len(self._buffer) > MAX_EVENT_BYTES:
            raise UpstreamBroken(f"The backend sent an event of more than {MAX_EVENT_BYTES} bytes.")

    def block(self, data: bytes) -> bytes:
        """All events that `data` completes, in one piece. Raises `UpstreamBroken` past `MAX_EVENT_BYTES`."""
        if not self._buffer and data.endswith(b"\n\n") and b"\r" not in data:
            return data  # as it nearly always comes
        self._buffer += data
        if b"\r" in data:
            self._marks = _MARKS
        search = max(0, self._searched - 3)
        ends = [found + len(mark) for mark in self._marks if (found := self._buffer.rfind(mark, search)) >= 0]
        end = max(ends, default=0)
        block = bytes(self._buffer[:end])
        del self._buffer[:end]
        self._searched = len(self._buffer)
        if self._searched > MAX_EVENT_BYTES:
            raise UpstreamBroken(f"The backend sent an event of more than {MAX_EVENT_BYTES} bytes.")
        return block

    def _boundary(self, start: int) -> int | None:
        """End of the first event at or after `start`, its blank line included, or None when none is whole yet."""
        ends = [found + len(mark) for mark in self._marks if (found := self._buffer.find(mark, start)) >= 0]
        return min(ends, default=None)

    @property
    def rest(self) -> bytes:
        """Bytes of an event that has not ended yet."""
        return bytes(self._buffer)


def first_event(block: bytes) -> bytes:
    """The first of the whole events in `block`; line ends that follow the last one count as one more."""
    marks = _MARKS if b"\r" in block else _MARKS[:1]
    ends = [found + len(mark) for mark in marks if (found := block.find(mark)) >= 0]
    return block[: min(ends, default=len(block))]


def event(body: Any) -> bytes:
    """One `data:` event holding `body` as JSON."""
    return b"data: " + orjson.dumps(body) + b"\n\n"


def event_data(raw: bytes) -> bytes:
    """The payload of one event: its `data:` lines joined by LF; empty for a comment."""
    if raw.startswith(b"data: ") and raw.endswith(b"\n\n") and b"\r" not in raw and raw.count(b"\n") == 2:
        return raw[6:-2]  # as nearly every event is written
    lines = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    values = [line[5:] for line in lines if line.startswith(b"data:")]
    return b"\n".join(value[1:] if value.startswith(b" ") else value for value in values)
