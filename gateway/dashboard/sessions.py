"""Who is logged in to the dashboard: sessions that this process can end at any time.

A session is known by a random token in a cookie, of which only the digest is kept here, in memory. The token is
replaced now and then; the former one is good for a moment longer, for requests that are under way.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["LIFE_S", "Session", "Sessions", "Throttle"]

LIFE_S = 8 * 3600.0
IDLE_S = 30 * 60.0
ROTATE_S = 15 * 60.0
GRACE_S = 30.0
MOST = 32
"""Sessions at once; beyond, the oldest ends."""


@dataclass(slots=True)
class Session:
    """`csrf`: what writes must show beside the cookie. Times in seconds of the sessions' clock."""

    csrf: str
    began: float
    used: float
    rotated: float
    digests: dict[bytes, float] = field(default_factory=dict)
    """Digest of a token → until when it is good."""

    def shown(self, csrf: str) -> bool:
        """Whether `csrf` is this session's."""
        return hmac.compare_digest(self.csrf.encode(), csrf.encode(errors="replace"))


class Sessions:
    """`now` tells seconds of a steady clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._sessions: list[Session] = []

    def open(self) -> tuple[str, Session]:
        """A new session, and its token."""
        now = self._now()
        self._sessions = [one for one in self._sessions if not self._over(one, now)][-(MOST - 1) :]
        session = Session(secrets.token_urlsafe(32), now, now, now)
        self._sessions.append(session)
        return self._token(session, now), session

    def find(self, token: str) -> Session | None:
        """The session of a token that is good; that counts as its use."""
        digest, now = _digest(token), self._now()
        for session in self._sessions:
            if session.digests.get(digest, 0.0) > now and not self._over(session, now):
                session.used = now
                return session
        return None

    def rotate(self, session: Session) -> str | None:
        """A new token, when it is time for one."""
        now = self._now()
        if now - session.rotated < ROTATE_S:
            return None
        session.rotated = now
        good = {digest: min(until, now + GRACE_S) for digest, until in session.digests.items() if until > now}
        session.digests = good
        return self._token(session, now)

    def left_s(self, session: Session) -> float:
        """Seconds until it ends, if it is used meanwhile."""
        return session.began + LIFE_S - self._now()

    def close(self, session: Session) -> None:
        """End a session."""
        if session in self._sessions:
            self._sessions.remove(session)

    def close_all(self) -> None:
        """End all of them."""
        self._sessions.clear()

    def _token(self, session: Session, now: float) -> str:
        token = secrets.token_urlsafe(32)
        session.digests[_digest(token)] = now + LIFE_S
        return token

    def _over(self, session: Session, now: float) -> bool:
        return now - session.began >= LIFE_S or now - session.used >= IDLE_S


class Throttle:
    """At most `most` failures within `period_s` seconds, all callers together. The admin key itself cannot be guessed
    when it is one of ours; one that a person chose may be."""

    def __init__(
        self, most: int = 10, period_s: float = 60.0, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._most, self._period_s, self._now = most, period_s, now
        self._failures: deque[float] = deque(maxlen=most)

    def wait_s(self) -> float:
        """Seconds until another attempt is allowed; 0 for now."""
        if len(self._failures) < self._most:
            return 0.0
        return max(0.0, self._failures[0] + self._period_s - self._now())

    def failed(self) -> None:
        """An attempt failed."""
        self._failures.append(self._now())


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()
