"""The token bucket."""

from __future__ import annotations

import pytest

from backends.bucket import Bucket


def test_full_at_first_then_at_its_rate() -> None:
    """What it holds can be taken at once, the rest as it fills."""
    bucket = Bucket(2, per_s=0.5)
    for _ in range(2):
        assert bucket.wait_s(1.0) == 0.0
        bucket.take(1.0)
    assert bucket.wait_s(1.0) == pytest.approx(2.0)
    assert bucket.wait_s(3.0) == 0.0


def test_never_holds_more_than_its_capacity() -> None:
    """A long rest earns no more than is held, nor does a gift."""
    bucket = Bucket(2, per_s=1.0)
    bucket.take(1.0, 2)
    bucket.give(1000.0, 5)
    assert bucket.wait_s(1000.0, 2) == 0.0
    bucket.take(1000.0, 2)
    assert bucket.wait_s(1000.0) == pytest.approx(1.0)


def test_a_debt_is_waited_off() -> None:
    """What was spent beyond the limit delays the next."""
    bucket = Bucket(10, per_s=1.0)
    bucket.take(1.0, 15)
    assert bucket.wait_s(1.0) == pytest.approx(6.0)


def test_what_never_fits_passes_when_full() -> None:
    """A call larger than a whole minute's limit is not refused for ever."""
    bucket = Bucket(10, per_s=1.0)
    assert bucket.wait_s(1.0, 1000) == 0.0


def test_without_a_rate_it_never_fills() -> None:
    """An empty bucket that does not fill is waited for in vain."""
    bucket = Bucket(1, per_s=0.0)
    bucket.take(1.0)
    assert bucket.wait_s(1.0) == float("inf")
