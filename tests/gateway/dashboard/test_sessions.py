"""Sessions of the dashboard: they end, their tokens are replaced, and guessing is slow."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.dashboard.sessions import GRACE_S, IDLE_S, LIFE_S, MOST, ROTATE_S, Sessions, Throttle


@dataclass
class Clock:
    at: float = 1000.0

    def __call__(self) -> float:
        return self.at


def test_a_session_ends() -> None:
    """Unused for half an hour, or after its whole life, however much it is used."""
    clock = Clock()
    sessions = Sessions(clock)
    token, _ = sessions.open()
    clock.at += IDLE_S - 1
    assert sessions.find(token) is not None
    clock.at += IDLE_S
    assert sessions.find(token) is None
    token, session = sessions.open()
    ends = clock.at + LIFE_S
    while clock.at < ends - 1:
        assert sessions.find(token) is session
        clock.at = min(clock.at + IDLE_S / 2, ends - 0.5)
    clock.at = ends
    assert sessions.find(token) is None


def test_tokens_are_replaced() -> None:
    """After a while there is a new token; the old one is good for a moment, a token of nobody never."""
    clock = Clock()
    sessions = Sessions(clock)
    old, session = sessions.open()
    assert sessions.rotate(session) is None
    clock.at += ROTATE_S
    new = sessions.rotate(session)
    assert new is not None
    assert sessions.find(new) is sessions.find(old) is session
    clock.at += GRACE_S
    assert sessions.find(old) is None
    assert sessions.find(new) is session
    assert sessions.find("") is sessions.find("guess\udcff") is None


def test_sessions_are_revoked() -> None:
    """One, or all of them; and there are never more than so many."""
    sessions = Sessions(Clock())
    tokens = [sessions.open() for _ in range(MOST + 3)]
    assert [sessions.find(token) is not None for token, _ in tokens] == [False] * 3 + [True] * MOST
    sessions.close(tokens[-1][1])
    assert sessions.find(tokens[-1][0]) is None
    assert sessions.find(tokens[-2][0]) is not None
    sessions.close_all()
    assert sessions.find(tokens[-2][0]) is None


def test_only_digests_are_kept() -> None:
    """Whoever reads the sessions cannot take one over."""
    sessions = Sessions(Clock())
    token, session = sessions.open()
    assert token not in repr(session)


def test_guessing_is_slow() -> None:
    """After some failures everybody waits, until the first of them is a minute old."""
    clock = Clock()
    throttle = Throttle(most=3, period_s=60, now=clock)
    for _ in range(3):
        assert throttle.wait_s() == 0
        throttle.failed()
        clock.at += 1
    assert throttle.wait_s() == 57
    clock.at += 57
    assert throttle.wait_s() == 0
