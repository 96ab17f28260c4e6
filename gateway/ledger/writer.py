"""Writes the ledger in a thread of its own. The request path only appends to a bounded queue.

What does not fit into the queue is dropped and counted: a full disk, or a database that is away, must not stop answers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from gateway.ledger.entry import Entry
from gateway.ledger.store import LedgerStore, RowsRefused
from gateway.ledger.texts import text_row
from protocol.errors import SettingsError, StateUnavailable

__all__ = ["LedgerWriter"]

log = logging.getLogger("chorus.ledger")

WRITE_S = 0.2
BATCH = 1000
RETRY_S = 1.0
RETIRE_S = 3600.0
RETIRED_AT_ONCE = 5000
DAY_S = 86_400.0
TEXT_BYTES = 64 << 20
"""Of prompts and answers that wait; what does not fit is left out, and its request written without."""


class LedgerWriter:
    """Writes to `store`, which is its own; of a prompt or answer that is stored at most `text_bytes`. `dropped` is told
    how many entries were lost, each time some are, and `text_dropped` how many had to do without their text."""

    def __init__(
        self,
        store: LedgerStore,
        *,
        queue: int = 10_000,
        retention_days: int = 400,
        dropped: Callable[[int], None] = lambda count: None,
        text_bytes: int = 0,
        text_dropped: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._store, self._limit, self._retention_s = store, queue, retention_days * DAY_S
        self._dropped, self._text_dropped, self._text_bytes = dropped, text_dropped, text_bytes
        # One is counted where requests end, the other in the thread: what waits is their difference.
        self._text_taken = self._text_written = 0
        self._waiting: deque[Entry] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._retired_at = 0.0
        self.failing = False
        """Whether the last attempt to write failed."""

    def add(self, entry: Entry) -> None:
        """Have `entry` written soon. Never waits."""
        if len(self._waiting) >= self._limit:
            self._dropped(1)
            return
        if entry.transcript is not None:
            entry = self._with_room(entry, entry.transcript.size)
        self._waiting.append(entry)

    def _with_room(self, entry: Entry, size: int) -> Entry:
        if self._text_taken - self._text_written + size > TEXT_BYTES:
            self._text_dropped(1)
            return replace(entry, transcript=None)
        self._text_taken += size
        return entry

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what waits, and end. What cannot be written now is dropped and counted."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._waiting:
            self._dropped(len(self._waiting))
            log.error("%d requests could not be written to the ledger", len(self._waiting))

    def _run(self) -> None:
        while True:
            stopping = self._stop.wait(RETRY_S if self.failing else WRITE_S)
            try:
                if self._waiting or self._store.exists():
                    while self._waiting:
                        self._write()
                    self._retire()
                self.failing = False
            except (StateUnavailable, SettingsError) as error:
                if not self.failing:  # once, not every second
                    log.error("the ledger cannot be written: %s", error)
                self.failing = True
            if stopping:
                break
        self._store.close()

    def _write(self) -> None:
        """Write some of what waits, all or none of it; only where rows are refused, each request by itself."""
        batch = [self._waiting[i] for i in range(min(BATCH, len(self._waiting)))]
        try:
            self._write_rows(batch)
        except RowsRefused:
            for entry in batch:
                try:
                    self._write_rows([entry])
                except RowsRefused as error:
                    self._dropped(1)
                    log.error("the ledger refuses request %s: %s", entry.id, error)
        for entry in batch:
            self._waiting.popleft()
            if entry.transcript is not None:
                self._text_written += entry.transcript.size

    def _write_rows(self, batch: Sequence[Entry]) -> None:
        rows = [entry.rows() for entry in batch]
        texts = [row for entry in batch if (row := text_row(entry, self._text_bytes)) is not None]
        self._store.write([row for row, _ in rows], [call for _, calls in rows for call in calls], texts)

    def _retire(self) -> None:
        """Now and then, remove what is too old, a little at a time."""
        if time.monotonic() - self._retired_at < RETIRE_S and self._retired_at:
            return
        if self._store.retire(time.time() - self._retention_s, RETIRED_AT_ONCE) < RETIRED_AT_ONCE:
            self._retired_at = time.monotonic()
