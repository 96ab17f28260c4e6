"""Retries: failures in, waits out."""

from __future__ import annotations

import pytest

from backends.retrying import LONGEST_WAIT_S, RESERVE, Retrying
from protocol.again import Again
from protocol.errors import UpstreamBroken, UpstreamError


def failure(again: Again, asked_s: float | None = None) -> UpstreamError:
    error = UpstreamBroken("x", again=again)
    error.asked_s = asked_s
    return error


def wait_s(
    error: UpstreamError, *, attempts: int = 1, others: bool = False, left_s: float = 60.0, **policy: float
) -> float | None:
    return Retrying(**policy).wait_s(error, 1.0, attempts=attempts, others=others, left_s=left_s)  # type: ignore[arg-type]


@pytest.mark.parametrize("others", [False, True])
def test_the_request_at_fault(others: bool) -> None:
    """A request that is at fault is at fault everywhere."""
    assert wait_s(failure(Again.NEVER), others=others) is None


def test_perhaps_done() -> None:
    """Where the work may have been done another deployment is asked, at once, the same one never."""
    assert wait_s(failure(Again.ELSEWHERE)) is None
    assert wait_s(failure(Again.ELSEWHERE), others=True) == 0.0


def test_not_done() -> None:
    """Where it was not done another deployment is asked at once, the same one after a jittered, doubling wait."""
    assert wait_s(failure(Again.SAME), others=True) == 0.0
    for attempts, longest in ((1, 0.25), (2, 0.5), (3, 1.0)):
        waits = [wait_s(failure(Again.SAME), attempts=attempts, retries=5) for _ in range(50)]
        assert all(wait is not None and longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) > 1


def test_retries_are_counted() -> None:
    """There are no more attempts than configured."""
    assert wait_s(failure(Again.SAME), attempts=2, retries=1) is None
    assert wait_s(failure(Again.SAME), attempts=1, retries=0, others=True) is None


def test_the_backends_own_wait() -> None:
    """What a backend asks for is waited at least; if that is too long, or past the deadline, not at all."""
    assert wait_s(failure(Again.SAME, 3.0)) == 3.0
    assert wait_s(failure(Again.SAME, LONGEST_WAIT_S + 1)) is None
    assert wait_s(failure(Again.SAME, 3.0), left_s=2.0) is None
    assert wait_s(failure(Again.SAME, 60.0), others=True) == 0.0


def test_an_outage_is_not_amplified() -> None:
    """Beyond the reserve, retries are a share of the calls, however many fail."""
    retrying, retries = Retrying(share=0.2), 0
    for _ in range(1000):
        retrying.called(1.0)
        while retrying.wait_s(failure(Again.SAME), 1.0, attempts=1, others=True, left_s=9) is not None:
            retries += 1
            break
    assert retries == pytest.approx(RESERVE + 200, abs=2)
