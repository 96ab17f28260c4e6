"""What was used, added up from the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.ledger.store import LedgerStore
from gateway.limits.bounds import NANO
from protocol.errors import SettingsError

__all__ = ["GROUPS", "Line", "usage"]

GROUPS: Mapping[str, str] = {
    "key": "coalesce(requests.alias, requests.key)",
    "team": "coalesce(requests.team, '-')",
    "owner": "coalesce(requests.owner, '-')",
    "user": """coalesce(requests."user", '-')""",
    "model": "calls.model",
    "strategy": "requests.strategy",
    "requested": "requests.requested",
    "outcome": "requests.outcome",
    "day": "{day}",
}
"""What can be grouped by, as SQL of our own."""


@dataclass(frozen=True, slots=True)
class Line:
    """One group. Counts of requests, calls to models, and tokens; `cost_usd` in US dollars, exact to a
    nanodollar."""

    group: tuple[str, ...]
    requests: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float


def usage(
    store: LedgerStore, by: tuple[str, ...], since: float = 0.0, until: float = float("inf")
) -> list[Line]:
    """The ledger in `store`, added up by the names of `GROUPS` in `by`, dearest group first (by day: in order). Times
    in seconds since the epoch. Raises `SettingsError`, `StateUnavailable`."""
    for name in by:
        if name not in GROUPS:
            raise SettingsError(f"--by {name!r}: one of {', '.join(GROUPS)}.")
    if not store.exists():
        return []
    groups = ", ".join(GROUPS[name] for name in by)
    order = "1" if by[:1] == ("day",) else "cost DESC"
    # A request's calls are numbered from 0; only where they are parted by model may its first be elsewhere.
    requests = (
        "count(DISTINCT requests.id)"
        if "model" in by
        else "sum(CASE WHEN coalesce(calls.number, 0) = 0 THEN 1 ELSE 0 END)"
    )
    rows = store.read(
        f"SELECT {groups}, {requests}, count(calls.number), "  # noqa: S608 - SQL of our own
        "coalesce(sum(calls.prompt_tokens), 0), coalesce(sum(calls.completion_tokens), 0), "
        "coalesce(sum(calls.cost_nano), 0) AS cost "
        f"FROM requests {'JOIN' if 'model' in by else 'LEFT JOIN'} calls ON calls.request = requests.id "
        f"WHERE requests.at >= ? AND requests.at < ? GROUP BY {groups} ORDER BY {order}",
        [since, until],
    )
    width = len(by)
    # PostgreSQL adds whole numbers up to decimals.
    return [_line(tuple(map(str, row[:width])), *map(int, row[width:])) for row in rows]


def _line(group: tuple[str, ...], requests: int, calls: int, read: int, written: int, cost_nano: int) -> Line:
    return Line(group, requests, calls, read, written, cost_nano / NANO)
