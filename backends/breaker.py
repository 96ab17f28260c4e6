"""When a deployment that fails is left alone, and when it is tried again. No clock: `now` goes in.

    closed ── `failures` in a row, or a wait the backend asked for ──> open until …
    open ── its time has come ──> half-open: one call is let through as a probe
    half-open ── the probe succeeds ──> closed
              ── the probe fails ──> open, twice as long as before, at most `LONGEST_COOLDOWN_S`

A deadline only ever moves later: of two reasons to leave a deployment alone the longer one counts. What
became of calls that began before it opened does not close it: only a probe does.
"""

from __future__ import annotations

__all__ = ["LONGEST_ASKED_S", "LONGEST_COOLDOWN_S", "Breaker"]

LONGEST_COOLDOWN_S = 30.0
"""The longest a deployment is left alone before it is probed again: so late may its recovery be noticed."""

LONGEST_ASKED_S = 120.0
"""The longest it is left alone when it asks for more."""


class Breaker:
    """Opens after `failures` in a row, for `cooldown_s` seconds at first."""

    def __init__(self, failures: int = 5, cooldown_s: float = 5.0) -> None:
        self._limit, self._cooldown_s = failures, cooldown_s
        self._failures = self._trips = 0
        self._until: float | None = None
        self._probing = False

    @property
    def open(self) -> bool:
        """Whether it is open or half-open."""
        return self._until is not None

    def opens_at(self, now: float) -> float | None:
        """The time from which a call is admitted: `now` when one is, None while a probe is under way."""
        if self._until is None:
            return now
        if now < self._until:
            return self._until
        return None if self._probing else now

    def started(self) -> bool:
        """A call begins that was admitted; returns whether it is the probe."""
        if self._until is None:
            return False
        self._probing = True
        return True

    def succeeded(self, *, probe: bool) -> None:
        """The call was answered."""
        if probe:
            self._until, self._probing, self._trips = None, False, 0
        if self._until is None:
            self._failures = 0

    def failed(self, now: float, *, probe: bool, wait_s: float | None = None) -> None:
        """The call failed, and it was the backend's fault; `wait_s` seconds when it said how long it needs."""
        self._failures += 1
        if probe:
            self._probing = False
        if wait_s is not None:
            self._open(now + min(wait_s, LONGEST_ASKED_S))
        elif probe or (self._until is None and self._failures >= self._limit):
            self._open(now + min(self._cooldown_s * 2**self._trips, LONGEST_COOLDOWN_S))
            self._trips += 1

    def left(self, *, probe: bool) -> None:
        """The call ended without telling anything about the backend."""
        if probe:
            self._probing = False

    def same(self, other: Breaker) -> bool:
        """Whether `other` has the same settings."""
        return (self._limit, self._cooldown_s) == (other._limit, other._cooldown_s)

    def continued(self, by: Breaker) -> Breaker:
        """The new breaker `by`, which goes on where this one stands; a probe under way stays this one's."""
        by._failures, by._trips, by._until = self._failures, self._trips, self._until
        return by

    def _open(self, until: float) -> None:
        self._until = until if self._until is None else max(self._until, until)
