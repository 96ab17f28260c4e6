"""What was used, added up from the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.ledger.rollups import Stretch, steady, summed
from gateway.ledger.store import LedgerStore, Read, Row
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

    def work(stretch: Stretch) -> list[Row]:
        rows = _of_days(store.read, by, stretch)
        for begin, end in stretch.gaps:
            rows += _of_rows(store.read, by, begin, end)
        return rows

    width = len(by)
    # Days are not told apart by user.
    rows = work(Stretch((), ((since, until),))) if "user" in by else steady(store.read, since, until, work)
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        told = sums.setdefault(tuple(map(str, row[:width])), [0] * len(_SUMS))
        for number, value in enumerate(row[width:]):
            told[number] += int(value)  # PostgreSQL adds whole numbers up to decimals
    lines = [
        Line(group, requests, calls, read, written, cost / NANO)
        for group, (requests, calls, read, written, cost) in sums.items()
    ]
    if by[:1] == ("day",):
        return sorted(lines, key=lambda line: (line.group[0], -line.cost_usd, line.group))
    return sorted(lines, key=lambda line: (-line.cost_usd, line.group))


_SUMS = ("requests", "calls", "prompt_tokens", "completion_tokens", "cost_nano")


def _of_rows(read: Read, by: tuple[str, ...], since: float, until: float) -> list[Row]:
    """The groups, then `_SUMS` of each."""
    groups = ", ".join(GROUPS[name] for name in by)
    # A request's calls are numbered from 0; only where they are parted by model may its first be elsewhere.
    requests = (
        "count(DISTINCT requests.id)"
        if "model" in by
        else "sum(CASE WHEN coalesce(calls.number, 0) = 0 THEN 1 ELSE 0 END)"
    )
    return read(
        f"SELECT {groups}, {requests}, count(calls.number), "  # noqa: S608 - SQL of our own
        "coalesce(sum(calls.prompt_tokens), 0), coalesce(sum(calls.completion_tokens), 0), "
        "coalesce(sum(calls.cost_nano), 0) "
        f"FROM requests {'JOIN' if 'model' in by else 'LEFT JOIN'} calls ON calls.request = requests.id "
        f"WHERE requests.at >= ? AND requests.at < ? GROUP BY {groups}",
        [since, until],
    )


def _of_days(read: Read, by: tuple[str, ...], stretch: Stretch) -> list[Row]:
    """The same of marked days. A request that asked two models is one request, but stands with both."""
    # Tables of sums name their columns as the rows' tables do.
    groups = ", ".join(
        GROUPS[name].replace("requests.", "").replace("calls.", "").replace("{day}", "days.day")
        for name in by
    )
    calls = [f"sum({name})" for name in _SUMS[1:]]
    if "model" in by:
        return summed(read, stretch, ", ".join([groups, "sum(requests)", *calls]), "day_calls", groups)
    return [
        *summed(read, stretch, f"{groups}, sum(requests)", "day_requests", groups),
        *summed(read, stretch, ", ".join([groups, "0", *calls]), "day_calls", groups),
    ]
