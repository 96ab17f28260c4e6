"""Adds up the ledger's days once they are over, in a thread that nobody waits for."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing

from gateway.ledger.place import make_ledger
from gateway.ledger.rollups import DAY_S, UNMARKED, due, roll_up
from gateway.ledger.store import LedgerStore, RowsRefused
from protocol.errors import SettingsError, StateUnavailable
from protocol.settings import Settings

__all__ = ["RollingUp"]

log = logging.getLogger("chorus.ledger")

EXPOSITION = """\
# HELP chorus_ledger_days_behind Days of the ledger that are over and not added up: reports read their rows
# TYPE chorus_ledger_days_behind gauge
chorus_ledger_days_behind {}
"""
LOOK_S = 60.0
PAUSE_S = 0.2
"""Between two days, of which an old ledger may have many to add up."""
LEAVE_S = 1.0


class RollingUp:
    """Of the ledger that `make()` reaches; days older than `retention_days` are left to those who remove them. One is
    enough for a ledger; several do the same work twice and no harm."""

    def __init__(
        self, make: Callable[[], LedgerStore], retention_days: float, now: Callable[[], float] = time.time
    ) -> None:
        self._make, self._retention_s, self._now = make, retention_days * DAY_S, now
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rolling-up", daemon=True)
        self._behind = 0

    @classmethod
    def of(cls, settings: Settings) -> RollingUp | None:
        """What the `settings` say; None without a ledger."""
        if not settings.ledger.enabled:
            return None
        return cls(lambda: make_ledger(settings), settings.ledger.retention_days)

    def start(self) -> None:
        """Begin, some time after the start of everything else."""
        self._thread.start()

    def close(self) -> None:
        """End; a day half added up is one that is not."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(LEAVE_S)

    def once(self) -> int:
        """Add up every day that is due; gives how many. Raises `StateUnavailable`, `SettingsError`, `RowsRefused`."""
        with closing(self._make()) as store:
            if not store.exists():
                return 0
            days = due(store.read, self._now(), self._now() - self._retention_s)
            self._behind = len(days)
            for number, day in enumerate(days):
                if self._stop.wait(PAUSE_S if number else 0.0):
                    return number
                roll_up(store, day)
                self._behind -= 1
                log.debug("the ledger's %s is added up", day)
            if days:
                store.change([(forget, []) for forget in UNMARKED])
            return len(days)

    def exposition(self) -> bytes:
        """How far it is behind, as Prometheus reads it. The supervisor's own: no worker knows."""
        return EXPOSITION.format(self._behind).encode()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                self.once()
            except (StateUnavailable, SettingsError, RowsRefused) as error:
                log.warning("the ledger's days are not added up: %s", error)
