"""What a client may see of the bytes committed so far: whole characters, and nothing that may still become a
stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

__all__ = ["VisibleText"]


class VisibleText:
    """Bytes in, text out. `before` is text that stands ahead of the first byte and may be part of a stop
    string.

    Bytes that can never be UTF-8 are left out, so U+FFFD is never made up; a character cut in two waits for
    its rest."""

    def __init__(self, stops: Sequence[bytes] = (), before: bytes = b"") -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._before = len(before)
        self._bytes = bytearray(before)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        self._shown = len(before)
        self.stopped = False

    @property
    def released(self) -> int:
        """Bytes, counted from the first one pushed, that are out of reach of every stop string."""
        return self._shown - self._before

    def push(self, data: bytes) -> str:
        """Add `data`; returns the text that became visible. After a stop string nothing does, and `stopped`
        is True."""
        if self.stopped:
            return ""
        seen = max(0, len(self._bytes) - self._longest + 1)
        self._bytes += data
        found = [at for stop in self._stops if (at := self._bytes.find(stop, seen)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found), final=True)
        return self._release(len(self._bytes) - self._held(), final=False)

    def finish(self) -> str:
        """The rest, when the answer ended without a stop string."""
        if self.stopped:
            return ""
        self.stopped = True
        return self._release(len(self._bytes), final=True)

    def _held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        for length in range(min(self._longest - 1, len(self._bytes)), 0, -1):
            tail = bytes(self._bytes[-length:])
            if any(stop.startswith(tail) for stop in self._stops):
                return length
        return 0

    def _release(self, end: int, *, final: bool) -> str:
        start, self._shown = self._shown, max(self._shown, end)
        text = self._decoder.decode(bytes(self._bytes[start : self._shown]))
        if final:
            self._decoder.decode(b"", True)
        return text
