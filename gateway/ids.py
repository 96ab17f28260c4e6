"""Ids of requests: 32 hexadecimal digits that nobody can guess, in the order of their making.

The first twelve are the time in milliseconds, so that the ledger, whose tables are sorted by them, grows at its end;
the others are random, drawn from the operating system many at a time, for each draw is a system call.
"""

from __future__ import annotations

import os
import time

__all__ = ["Ids"]

RANDOM_BYTES = 10
DRAWN = 400


class Ids:
    """A source of fresh ids. Two sources, in one process or in several, never make the same."""

    def __init__(self) -> None:
        self._drawn, self._at = b"", 0

    def fresh(self) -> str:
        """An id that nobody has had."""
        at = self._at
        if at == len(self._drawn):
            self._drawn, at = os.urandom(RANDOM_BYTES * DRAWN), 0
        self._at = at + RANDOM_BYTES
        return f"{time.time_ns() // 1_000_000:012x}{self._drawn[at : self._at].hex()}"
