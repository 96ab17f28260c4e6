"""When to stop asking a store that does not answer. No clock: `now` goes in, in seconds of any steady clock."""

from __future__ import annotations

__all__ = ["Breaker"]


class Breaker:
    """Opens after `failures` in a row; then one probe is let through every `pause_s` seconds until one
    succeeds."""

    def __init__(self, *, failures: int = 5, pause_s: float = 1.0) -> None:
        self._limit, self._pause_s = failures, pause_s
        self._failures = 0
        self._probe_at = 0.0

    @property
    def open(self) -> bool:
        """Whether the last `failures` attempts all failed."""
        return self._failures >= self._limit

    def allows(self, now: float) -> bool:
        """Whether to ask now; while open, True at most once per pause."""
        if not self.open:
            return True
        if now < self._probe_at:
            return False
        self._probe_at = now + self._pause_s
        return True

    def succeeded(self) -> None:
        """An attempt was answered."""
        self._failures = 0

    def failed(self, now: float) -> None:
        """An attempt was not answered in time."""
        self._failures += 1
        if self._failures == self._limit:
            self._probe_at = now + self._pause_s
