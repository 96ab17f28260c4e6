"""A worker's view of the keys: looked up once, remembered until something changes."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from hashlib import blake2b

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
    them then either. `run` must be running as a task.

    What is known is remembered by a mark of the secret that only this process can make, for it costs a fifth of the
    digest by which the book keeps it. No secret is held here, and none is compared."""

    def __init__(self, book: Book, pepper: Pepper) -> None:
        self._book, self._pepper = book, pepper
        self._marking = os.urandom(32)
        self._known: OrderedDict[bytes, Key | None] = OrderedDict()
        self._asking: dict[str, asyncio.Task[Key | None]] = {}
        self._generation, self._cleared_at = -1, 0.0

    async def find(self, secret: bytes) -> Key | None:
        """The key with this secret, whatever its state. Raises `StoreAway` for one that was not known before."""
        mark = blake2b(secret, key=self._marking, digest_size=32).digest()
        if mark in self._known:
            self._known.move_to_end(mark)
            return self._known[mark]
        digest = self._pepper.digest(secret)
        # One look-up for all who wait for the same key; shielded, for any of them may leave.
        if digest not in self._asking:
            self._asking[digest] = asyncio.create_task(self._look_up(digest, mark))
        return await asyncio.shield(self._asking[digest])

    async def _look_up(self, digest: str, mark: bytes) -> Key | None:
        try:
            generation = self._generation
            key = await self._patiently(digest)
            if generation == self._generation:
                self._known[mark] = key
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
