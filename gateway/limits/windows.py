"""Which day, week or month a budget counts, in UTC. Times go in as seconds since the epoch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from protocol.tenancy import Period

__all__ = ["PERIODS", "Period", "Window", "window"]


PERIODS: tuple[Period, ...] = ("day", "week", "month", "total")


@dataclass(frozen=True, slots=True)
class Window:
    """`name` tells this one from the others of its period; `ends` in seconds since the epoch, None: never."""

    name: str
    ends: float | None


def window(period: Period, now: float) -> Window:
    """The window that `now` lies in. Weeks begin on Monday and are named as in ISO 8601."""
    midnight = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case "total":
            return Window("total", None)
        case "day":
            return Window(f"{midnight:%Y-%m-%d}", (midnight + timedelta(days=1)).timestamp())
        case "week":
            monday = midnight - timedelta(days=midnight.weekday())
            return Window(f"{midnight:%G-W%V}", (monday + timedelta(days=7)).timestamp())
        case "month":
            following = (midnight.replace(day=28) + timedelta(days=4)).replace(day=1)
            return Window(f"{midnight:%Y-%m}", following.timestamp())
