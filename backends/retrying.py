"""Whether a failed attempt is followed by another, and when. No clock: `now` goes in, a wait comes out.

    Again.NEVER       the request is at fault: the error is the answer
    Again.ELSEWHERE   the backend may have done the work (a cut answer, a time-out) or cannot (wrong key): another
                      deployment is asked at once; the same one never, so that no backend does the work twice
    Again.SAME        the backend says, or it is certain, that the work was not done (not connected, 429, 5xx):
                      another deployment at once, else the same one after a jittered, doubling wait, or after
                      the wait it asked for, unless that is longer than `LONGEST_WAIT_S`

A completion changes nothing in the world but the bill, which is why another deployment may be asked where the
first one may have worked: at most one of them gives an answer, and the other's failure is not paid for here.

Every attempt after the first is drawn from a budget that fills with the calls made (`share` of them), so that
in an outage the load grows by that share and not by the number of retries.
"""

from __future__ import annotations

import random

from backends.bucket import Bucket
from protocol.again import Again
from protocol.errors import UpstreamError

__all__ = ["LONGEST_WAIT_S", "Retrying"]

LONGEST_WAIT_S = 5.0
"""A backend that asks for more is not waited for: the caller is told when to come back."""

RESERVE = 10.0
"""Retries that may be made at once, whatever came before; refilled one a second, so that rare calls can retry."""


class Retrying:
    """`retries` attempts after the first; `share` of retries per call in the long run."""

    def __init__(self, retries: int = 2, backoff_s: float = 0.25, share: float = 0.2) -> None:
        self._retries, self._backoff_s, self._share = retries, backoff_s, share
        self._budget = Bucket(RESERVE, 1.0)
        self._random = random.Random()

    def same(self, other: Retrying) -> bool:
        """Whether `other` has the same rules."""
        rules = (self._retries, self._backoff_s, self._share)
        return rules == (other._retries, other._backoff_s, other._share)

    def called(self, now: float) -> None:
        """A call begins: the budget grows."""
        self._budget.give(now, self._share)

    def draw(self, now: float) -> bool:
        """Take one attempt from the budget; False when it is spent."""
        if self._budget.wait_s(now) > 0:
            return False
        self._budget.take(now)
        return True

    def wait_s(
        self, error: UpstreamError, now: float, *, attempts: int, others: bool, left_s: float
    ) -> float | None:
        """Seconds to wait before the next attempt; None when `error` is final. `others`: another deployment is
        left to ask; `left_s`: seconds until the deadline."""
        if error.again is Again.NEVER or attempts > self._retries:
            return None
        if others:
            wait_s = 0.0
        elif error.again is Again.ELSEWHERE:
            return None
        else:
            wait_s = self._backoff_s * 2.0 ** (attempts - 1) * self._random.uniform(0.5, 1.0)
            if asked_s := error.asked_s:
                if asked_s > LONGEST_WAIT_S:
                    return None
                wait_s = max(wait_s, asked_s)
        if wait_s >= left_s or not self.draw(now):
            return None
        return wait_s
