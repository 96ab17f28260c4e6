"""The balancer: states in, a choice out."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from backends.balancer import Balancer, Full, Rule, Seat, Turn
from backends.breaker import Breaker
from backends.bucket import Bucket
from protocol.errors import UpstreamTimeout


def chosen(balancer: Balancer, now: float = 1.0, **given: object) -> Turn:
    turn = balancer.choose(now, **given)  # type: ignore[arg-type]
    assert isinstance(turn, Turn)
    return turn


def shares(balancer: Balancer, n: int = 4000) -> list[float]:
    """How the choices of `n` calls, one after the other, fall on the seats."""
    counts: Counter[int] = Counter()
    for _ in range(n):
        turn = chosen(balancer)
        counts[turn.index] += 1
        turn.succeeded(1.0)
    return [counts[i] / n for i in range(len(balancer.seats))]


def test_weighted() -> None:
    """Choices fall by weight."""
    balancer = Balancer([Seat(weight=3.0), Seat(weight=1.0)], "weighted", random.Random(1))
    assert shares(balancer) == pytest.approx([0.75, 0.25], abs=0.03)


def test_least_busy() -> None:
    """The fewest calls under way per weight win; a tie goes round."""
    balancer = Balancer([Seat(weight=2.0), Seat()], "least-busy")
    assert [chosen(balancer).index for _ in range(6)] == [0, 1, 0, 1, 0, 0]


def test_fastest() -> None:
    """Of two, the one with the lower expected wait; a deployment not yet measured is tried."""
    balancer = Balancer([Seat(), Seat()], "fastest", random.Random(1))
    for latency_s in (1.0, 0.1):
        turn = chosen(balancer, 1.0)
        turn.began(1.0 + (latency_s if turn.index == 0 else 0.1))
        turn.succeeded(2.0)
    fast = 1 if balancer.seats[0].latency_s > 0.5 else 0
    assert shares(balancer, 50)[fast] == 1.0
    held = [chosen(balancer) for _ in range(12)]
    assert {turn.index for turn in held} == {0, 1}  # its queue makes the fast one slow


@pytest.mark.parametrize("rule", ["fastest", "least-busy", "weighted"])
def test_sessions_stay(rule: Rule) -> None:
    """A session keeps its deployment; when that is gone only its sessions move."""
    seats = [Seat(), Seat(), Seat()]
    balancer = Balancer(seats, rule)
    sessions = [f"s{i}" for i in range(60)]
    before = {session: chosen(balancer, session=session).index for session in sessions}
    assert before == {session: chosen(balancer, session=session).index for session in sessions}
    assert set(before.values()) == {0, 1, 2}
    seats[1].breaker.failed(1.0, probe=False, wait_s=60)
    after = {session: chosen(balancer, session=session).index for session in sessions}
    assert all(after[session] == index for session, index in before.items() if index != 1)
    assert 1 not in after.values()


def test_untried_first() -> None:
    """A call goes to a deployment it has not tried, as long as there is one."""
    balancer = Balancer([Seat(), Seat()])
    assert chosen(balancer, tried={0}).index == 1
    assert chosen(balancer, tried={1}).index == 0
    assert chosen(balancer, tried={0, 1}).index in {0, 1}
    assert balancer.untried(1.0, {0})
    assert not balancer.untried(1.0, {0, 1})


def test_full_says_why_and_until_when() -> None:
    """Open breakers, limits per minute and calls at once are different reasons with different ends."""
    seat = Seat(breaker=Breaker(failures=1, cooldown_s=5.0), max_concurrent=1, requests=Bucket(2, 0.5))
    balancer = Balancer([seat])
    turn = chosen(balancer)
    assert balancer.choose(1.0) == Full(None, limits=True)
    turn.succeeded(1.0)
    chosen(balancer).succeeded(1.0)
    assert balancer.choose(1.0) == Full(3.0, limits=True)
    chosen(balancer, 3.0).failed(3.0, UpstreamTimeout("late"))
    assert balancer.choose(3.0) == Full(8.0, limits=False)


def test_a_turn_ends_once() -> None:
    """Whatever is said of a turn, and how often, its place is given back once and its first verdict stands."""
    seat = Seat(breaker=Breaker(failures=1))
    turn = chosen(Balancer([seat]))
    turn.failed(1.0, UpstreamTimeout("late"))
    turn.succeeded(1.0)
    turn.release()
    assert (seat.under_way, seat.breaker.open) == (0, True)
