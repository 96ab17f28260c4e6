"""Answers in the worker's own memory: bounded by size and age, the least recently asked for going first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

__all__ = ["MemoryStore"]

OVERHEAD = 512
"""Bytes that an entry takes beside its value, about."""


class MemoryStore:
    """At most `capacity` bytes; `now` tells seconds of any clock that does not go back."""

    def __init__(self, capacity: int, now: Callable[[], float]) -> None:
        self._capacity, self._now = capacity, now
        self._entries: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._size = 0

    async def get(self, name: str) -> bytes | None:
        """What was put there, unless it is too old."""
        found = self._entries.get(name)
        if found is None:
            return None
        until, value = found
        if until <= self._now():
            self._drop(name)
            return None
        self._entries.move_to_end(name)
        return value

    async def put(self, name: str, value: bytes, ttl_s: float) -> None:
        """Keep `value` for `ttl_s` seconds at most. What is larger than an eighth of the room is not kept."""
        if name in self._entries:
            self._drop(name)
        if len(value) + OVERHEAD > self._capacity // 8:
            return
        self._entries[name] = (self._now() + ttl_s, value)
        self._size += len(value) + OVERHEAD
        while self._size > self._capacity:
            self._drop(next(iter(self._entries)))

    async def open(self) -> None:
        """It is there."""

    async def close(self) -> None:
        """Nothing is open."""

    def _drop(self, name: str) -> None:
        _, value = self._entries.pop(name)
        self._size -= len(value) + OVERHEAD
