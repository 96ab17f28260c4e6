"""How many files may be open."""

from __future__ import annotations

import resource

import pytest

from gateway.open_files import MOST, raise_limit


@pytest.mark.parametrize(
    ("soft", "hard", "most"),
    [
        (1024, 65536, 65536),
        (1024, resource.RLIM_INFINITY, MOST),
        (65536, 65536, 65536),
        (2 * MOST, resource.RLIM_INFINITY, 2 * MOST),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, MOST),
    ],
)
def test_raised_to_the_hard_limit(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, most: int) -> None:
    """The soft limit goes up to the hard one, never down, and nothing without bound is asked for."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    assert raise_limit() == most
    raised = soft not in (most, resource.RLIM_INFINITY)
    assert asked == ([(most, hard)] if raised else [])
