"""A worker's view of the keys: looked up once, remembered until something changes."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from gateway.keys.book import Book
from gateway.keys.key import Key
from gateway.keys.secret import Pepper
from gateway.state.store import StoreAway

__all__ = ["Directory"]

log = logging.getLogger("chorus.keys")

LOOK_S = 0.5
"""How often the book is asked whether anything changed: the longest a revoked key is still good."""
AGE_S = 60.0
"""How long a key is remembered at most: the grace of a rotated secret ends without a change that could be noticed."""
KNOWN = 20_000
TRIES = 3


class Directory:
    """Finds keys by their secret. While the store is away, keys that were known before stay good, as nobody can revoke
    them then either. `run` must be running as a task."""

    def __init__(self, book: Book, pepper: Pepper) -> None:
        self._book, self._pepper = book, pepper
        self._known: OrderedDict[str, Key | None] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Key | None]] = {}
        self._generation, self._cleared_at = -1, 0.0

    async def find(self, secret: bytes) -> Key | None:
        """The key with this secret, whatever its state. Raises `StoreAway` for one that was not known before."""
        digest = self._pepper.digest(secret)
        if digest in self._known:
            self._known.move_to_end(digest)
            return self._known[digest]
        # One look-up for all who wait for the same key; shielded, for any of them may leave.
        if digest not in self._asking:
            self._asking[digest] = asyncio.create_task(self._look_up(digest))
        return await asyncio.shield(self._asking[digest])

    async def _look_up(self, digest: str) -> Key | None:
        try:
            generation = self._generation
            key = await self._patiently(digest)
            if generation == self._generation:
                self._known[digest] = key
                if len(self._known) > KNOWN:
                    self._known.popitem(last=False)
            return key
        finally:
            del self._asking[digest]

    async def _patiently(self, digest: str) -> Key | None:
        """A single answer that was late does not yet mean that the store is away."""
        for _ in range(TRIES - 1):
            try:
                return await self._book.find(digest)
            except StoreAway as error:
                if error.sure:
                    raise
        return await self._book.find(digest)

    async def run(self) -> None:
        """Forget what is known whenever a key was made, changed or revoked; until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask once whether anything changed."""
        try:
            generation = await self._book.generation()
        except StoreAway as error:
            log.debug("keys are not looked after: %s", error)
            return
        now = asyncio.get_running_loop().time()
        if generation != self._generation or now - self._cleared_at > AGE_S:
            self._generation, self._cleared_at = generation, now
            self._known.clear()
