"""The circuit breaker: times in, verdicts out."""

from __future__ import annotations

from backends.breaker import LONGEST_COOLDOWN_S, Breaker


def broken(failures: int = 2, cooldown_s: float = 5.0) -> Breaker:
    """A breaker that has just opened, at time 0."""
    breaker = Breaker(failures, cooldown_s)
    for _ in range(failures):
        breaker.failed(0.0, probe=breaker.started())
    return breaker


def test_opens_after_failures_in_a_row() -> None:
    """A success in between starts the count anew."""
    breaker = Breaker(failures=2)
    breaker.failed(0.0, probe=False)
    breaker.succeeded(probe=False)
    breaker.failed(0.0, probe=False)
    assert breaker.opens_at(0.0) == 0.0
    breaker.failed(1.0, probe=False)
    assert breaker.opens_at(1.0) == 6.0


def test_one_probe_at_a_time() -> None:
    """Half-open, one call is admitted; while it is under way no other is; its success closes the breaker."""
    breaker = broken()
    assert breaker.opens_at(5.0) == 5.0
    probe = breaker.started()
    assert probe
    assert breaker.opens_at(5.0) is None
    breaker.succeeded(probe=probe)
    assert not breaker.open


def test_a_failed_probe_waits_twice_as_long() -> None:
    """Each failed probe doubles the cooldown, up to a bound."""
    breaker, now = broken(), 5.0
    waits = []
    for _ in range(8):
        breaker.failed(now, probe=breaker.started())
        until = breaker.opens_at(now)
        assert until is not None
        waits.append(until - now)
        now = until
    assert waits[:3] == [10.0, 20.0, 30.0]
    assert waits[-1] == LONGEST_COOLDOWN_S


def test_an_abandoned_probe_frees_its_place() -> None:
    """A probe whose caller left says nothing: the next call is the probe."""
    breaker = broken()
    breaker.left(probe=breaker.started())
    assert breaker.opens_at(5.0) == 5.0


def test_the_later_deadline_counts() -> None:
    """A shorter wait asked for later does not cut a longer one short, nor the other way round."""
    breaker = Breaker()
    breaker.failed(0.0, probe=False, wait_s=60.0)
    breaker.failed(1.0, probe=False, wait_s=2.0)
    assert breaker.opens_at(2.0) == 60.0
    breaker.failed(2.0, probe=False, wait_s=90.0)
    assert breaker.opens_at(2.0) == 92.0


def test_late_news_does_not_close_it() -> None:
    """A success of a call that began before the breaker opened is no probe."""
    breaker = broken()
    breaker.succeeded(probe=False)
    assert breaker.open
