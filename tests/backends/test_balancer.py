"""The balancer: states in, a choice out."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.balancer import BOUND, Account, Balancer, Full, Rule, Seat, Turn
from backends.breaker import Breaker
from backends.bucket import Bucket
from protocol.errors import UpstreamRefused, UpstreamTimeout


def chosen(balancer: Balancer, now: float = 1.0, **told: object) -> Turn:
    turn = balancer.choose(now, **told)  # type: ignore[arg-type]
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


@given(
    weights=st.lists(st.floats(0.5, 4), min_size=2, max_size=6),
    prefixes=st.lists(st.integers(0, 3), min_size=1, max_size=60),
)
def test_prefix_load_is_bounded(weights: list[float], prefixes: list[int]) -> None:
    """However hot a prefix is, no deployment has more than a quarter above its share of the calls under way, rounded
    up."""
    balancer = Balancer([Seat(weight) for weight in weights], "prefix")
    for calls, prefix in enumerate(prefixes, 1):
        turn = chosen(balancer, prefix=str(prefix))
        seat = balancer.seats[turn.index]
        assert seat.under_way <= math.ceil(BOUND * calls * seat.weight / sum(weights))
    assert sum(seat.under_way for seat in balancer.seats) == len(prefixes)


@given(count=st.integers(2, 6), gone=st.integers(0, 5))
def test_prefixes_move_only_from_who_goes(count: int, gone: int) -> None:
    """When a deployment goes, prefixes of others stay where they are; when it is back, so are its own."""
    gone %= count
    balancer = Balancer([Seat() for _ in range(count)], "prefix")

    def places() -> list[int]:
        found = []
        for i in range(60):
            turn = chosen(balancer, prefix=f"prefix {i}")
            found.append(turn.index)
            turn.release()
        return found

    before = places()
    balancer.seats[gone].breaker.failed(1.0, probe=False, wait_s=60.0)
    without = places()
    assert gone not in without
    assert all(a == b for a, b in zip(before, without, strict=True) if a != gone)
    balancer.seats[gone].breaker.succeeded(probe=True)
    assert places() == before


def test_prefixes_are_spread() -> None:
    """Many prefixes are shared out over the deployments, by weight."""
    balancer = Balancer([Seat(1.0), Seat(3.0)], "prefix")
    counts = [0, 0]
    for i in range(2000):
        turn = chosen(balancer, prefix=str(i))
        counts[turn.index] += 1
        turn.release()
    assert 2.5 < counts[1] / counts[0] < 3.5


def test_names_not_places_are_ranked() -> None:
    """A deployment keeps its sessions and prefixes when another is put before it in the config."""
    first = Balancer([Seat(name="a"), Seat(name="b")], "prefix")
    second = Balancer([Seat(name="new"), Seat(name="a"), Seat(name="b")], "prefix")
    for i in range(100):
        old, new = chosen(first, prefix=str(i)), chosen(second, prefix=str(i))
        assert new.index == 0 or first.seats[old.index].name == second.seats[new.index].name
        old.release()
        new.release()


def test_a_session_goes_before_a_prefix() -> None:
    """Sessions stay where they are, whatever their prompts begin with; other rules look at no prefix."""
    balancer = Balancer([Seat(), Seat(), Seat()], "prefix")
    asked = set()
    for i in range(20):
        turn = chosen(balancer, session="s", prefix=str(i))
        asked.add(turn.index)
        turn.release()
    assert len(asked) == 1
    assert len({chosen(Balancer([Seat(), Seat()], "weighted"), prefix="x").index for _ in range(50)}) == 2


def asks(status: int, wait_s: float) -> UpstreamRefused:
    """A refusal that says how long to wait."""
    error = UpstreamRefused("no", status=status)
    error.asked_s = wait_s
    return error


def test_an_account_rests_as_a_whole() -> None:
    """A limit with a time to wait rests every deployment of the account, until the latest such time; another account
    goes on, and a failure that is no limit concerns its deployment alone."""
    account = Account()
    seats = [Seat(account=account), Seat(account=account), Seat(account=Account())]
    balancer = Balancer(seats)
    turns = [chosen(balancer, tried=[1, 2]), chosen(balancer, tried=[0, 2])]
    assert [turn.index for turn in turns] == [0, 1]
    turns[0].failed(1.0, asks(429, 10.0))
    turns[1].failed(1.0, asks(429, 5.0))
    assert [seat.opens_at(2.0) for seat in seats] == [11.0, 11.0, 2.0]
    assert {chosen(balancer, prefix="x").index for _ in range(9)} == {2}
    assert balancer.untried(2.0, [2]) is False
    chosen(balancer).failed(1.0, asks(408, 10.0))
    assert seats[2].account is not None
    assert seats[2].account.until == 0.0
