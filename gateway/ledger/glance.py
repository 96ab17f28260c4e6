"""A reader of the ledger that is never in its writers' way: one statement at a time, each stopped when it takes too
long, and what was read a moment ago is told again."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import closing
from typing import Any

from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore, Read, nothing
from gateway.state.sqlite_file import connect
from protocol.errors import StateUnavailable

__all__ = ["Glance"]

WITHIN_S = 3.0
"""How long one look may take."""
STEPS = 20_000
"""Instructions of SQLite's machine between two looks at the clock."""
KEPT = 64


class Glance:
    """Over the ledger that `make()` reaches: each look opens it anew. PostgreSQL ends a statement by its own clock."""

    def __init__(self, make: Callable[[], LedgerStore], *, within_s: float = WITHIN_S) -> None:
        self._make, self._within_s = make, within_s
        self._turn = asyncio.Lock()
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()

    async def look(self, name: Hashable, work: Callable[[Read], Any], *, fresh_s: float) -> Any:
        """What `work` reads, or what the look of this `name` found less than `fresh_s` seconds ago. Raises
        `StateUnavailable` when it takes too long. With `fresh_s` 0 nothing of it is kept."""
        async with self._turn:
            at, told = self._kept.get(name, (float("-inf"), None))
            if time.monotonic() - at >= fresh_s:
                told = await asyncio.to_thread(self._work, work)
                if not fresh_s:
                    return told
                self._kept[name] = (time.monotonic(), told)
                self._kept.move_to_end(name)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return told

    def _work(self, work: Callable[[Read], Any]) -> Any:
        with closing(self._make()) as ledger:
            if not ledger.exists():
                return work(nothing)
            return self._watched(ledger, work) if isinstance(ledger, SqliteLedger) else work(ledger.read)

    def _watched(self, ledger: SqliteLedger, work: Callable[[Read], Any]) -> Any:
        due = time.monotonic() + self._within_s
        with closing(connect(ledger.path, MIGRATIONS)) as connection:
            connection.execute("PRAGMA query_only=ON")
            connection.set_progress_handler(lambda: time.monotonic() > due, STEPS)

            def read(statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
                return connection.execute(statement, parameters).fetchall()

            try:
                return work(read)
            except sqlite3.OperationalError as error:
                if time.monotonic() > due:
                    raise StateUnavailable(
                        f"The ledger holds too much to be added up within {self._within_s:g} s; look at less time."
                    ) from error
                raise StateUnavailable("The ledger cannot be read at present.") from error
