"""How long prompts and answers are kept: for as long as their key says now, within what the settings allow."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass

from gateway.keys.book import Book
from gateway.ledger.place import make_ledger
from gateway.ledger.store import LedgerStore
from gateway.ledger.texts import sweep
from gateway.state.store import StoreAway
from protocol.errors import SettingsError, StateUnavailable
from protocol.settings import Settings

__all__ = ["SWEEP_S", "TextKeeping"]

log = logging.getLogger("chorus.ledger")

KIB = 1024
SWEEP_S = 60.0
"""How often texts are looked through: the longest that one is kept beyond its time."""


@dataclass(frozen=True, slots=True)
class TextKeeping:
    """In the ledger that `make()` reaches, of each request at most `most_bytes` of prompt and answer (0: nothing), for
    `most_days` at the longest. `book` has the keys, which decide for their own."""

    make: Callable[[], LedgerStore]
    book: Book
    most_days: float
    most_bytes: int

    @classmethod
    def of(cls, settings: Settings, book: Book) -> TextKeeping:
        """What the `settings` say."""
        ledger = settings.ledger
        most_days = min(ledger.max_text_days, ledger.retention_days)
        most_bytes = ledger.max_text_kib * KIB if ledger.enabled and most_days else 0
        return cls(lambda: make_ledger(settings), book, most_days, most_bytes)

    async def run(self) -> None:
        """Sweep now and again, until cancelled."""
        while True:
            try:
                await self.sweep()
            except (StoreAway, StateUnavailable, SettingsError) as error:
                log.debug("texts are not looked through: %s", error)
            await asyncio.sleep(SWEEP_S)

    async def sweep(self) -> int:
        """Remove what no key has stored any more; gives how many texts. Raises `StoreAway`, `StateUnavailable`,
        `SettingsError`."""
        if not await asyncio.to_thread(self._any):
            return 0
        keys = await self.book.all()
        days = {key.id: min(key.text_days, self.most_days) for key in keys if key.text_days}
        return await asyncio.to_thread(self._sweep, days)

    def _any(self) -> bool:
        with closing(self.make()) as store:
            return store.exists() and bool(store.read("SELECT 1 FROM texts LIMIT 1"))

    def _sweep(self, days: Mapping[str, float]) -> int:
        with closing(self.make()) as store:
            return sweep(store, days, time.time())
