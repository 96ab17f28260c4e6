"""A token bucket without a clock: limits per minute, and the retry budget."""

from __future__ import annotations

__all__ = ["Bucket"]


class Bucket:
    """Holds up to `capacity`, and fills by `per_s` a second; full at first."""

    def __init__(self, capacity: float, per_s: float) -> None:
        self._capacity, self._per_s = capacity, per_s
        self._level, self._at = capacity, 0.0

    def wait_s(self, now: float, amount: float = 1.0) -> float:
        """Seconds until `amount` can be taken; 0 when it can. More than fits is let through when it is full."""
        missing = min(amount, self._capacity) - self._filled(now)
        return 0.0 if missing <= 1e-9 else missing / self._per_s if self._per_s else float("inf")

    def take(self, now: float, amount: float = 1.0) -> None:
        """Take `amount`, also what is not there: a debt is paid by waiting."""
        self._level = self._filled(now) - amount

    def give(self, now: float, amount: float) -> None:
        """Put `amount` in."""
        self._level = min(self._capacity, self._filled(now) + amount)

    def same(self, other: Bucket) -> bool:
        """Whether `other` has the same size and fills as fast."""
        return (self._capacity, self._per_s) == (other._capacity, other._per_s)

    def _filled(self, now: float) -> float:
        if now > self._at:
            gained = (now - self._at) * self._per_s if self._at else 0.0
            self._level, self._at = min(self._capacity, self._level + gained), now
        return self._level
