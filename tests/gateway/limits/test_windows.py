"""Which period a budget counts."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.limits.windows import window


@pytest.mark.parametrize(
    ("period", "name", "ends"),
    [
        ("day", "2026-12-31", datetime(2027, 1, 1, tzinfo=UTC)),
        ("week", "2026-W53", datetime(2027, 1, 4, tzinfo=UTC)),
        ("month", "2026-12", datetime(2027, 1, 1, tzinfo=UTC)),
    ],
)
def test_windows(period: str, name: str, ends: datetime) -> None:
    """Periods begin at midnight UTC; weeks on Monday, named as in ISO 8601."""
    told = window(period, datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp())  # type: ignore[arg-type]
    assert (told.name, told.ends) == (name, ends.timestamp())


def test_total_never_ends() -> None:
    """A total budget has one window."""
    assert window("total", 0.0).ends is None
