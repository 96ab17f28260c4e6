"""What a person looking at the ledger asks of it, each as one bounded statement.

Every function takes `read(statement, parameters)`, which gives the rows of a statement with `?` for parameters, and a
stretch of time that an index covers. Nothing here returns more rows than it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.ledger.rollups import DAY_S, Stretch, begin_of, steady, summed
from gateway.ledger.store import Read
from gateway.limits.bounds import NANO

__all__ = [
    "GROUPINGS",
    "MOST_DECISIONS",
    "MOST_LATENCIES",
    "MOST_REQUESTS",
    "Decided",
    "Group",
    "decided",
    "latencies",
    "recent",
    "request",
    "timeline",
]

GROUPINGS: Mapping[str, tuple[str, str]] = {
    "all": ("requests", "'all'"),
    "key": ("requests", "coalesce(alias, key)"),
    "team": ("requests", "coalesce(team, '-')"),
    "strategy": ("requests", "strategy"),
    "model": ("calls", "model"),
}
"""What can be grouped by → the table that tells, and SQL of our own."""
MOST_BUCKETS = 400
MOST_REQUESTS = 200
MOST_LATENCIES = 2000
MOST_DECISIONS = 4000
NEARBY_S = 7 * DAY_S
"""How far back a request is looked for by the id that its caller gave it."""
_LISTED = (
    "id, request_id, at, key, alias, team, requested, strategy, outcome, prompt_tokens, completion_tokens, "
    "cost_nano, latency_s"
)
_WHOLE = f"{_LISTED}, owner, tags, path, decision"
_CALLED = (
    "number, model, kind, outcome, attempts, estimated, prompt_tokens, completion_tokens, cached_tokens, "
    "reasoning_tokens, cost_nano, latency_s, began_s, asker, written_tokens"
)


@dataclass(slots=True)
class Group:
    """One group of a timeline. `count` is of requests, or of calls where calls are grouped; `series` holds a pair for
    each bucket: count and US dollars."""

    name: str
    count: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_nano: int = 0
    buckets: dict[int, tuple[int, int, int]] = field(default_factory=dict)

    def wire(self, buckets: int) -> dict[str, Any]:
        """As JSON values; money as US dollars."""
        series = [self.buckets.get(i, (0, 0, 0)) for i in range(buckets)]
        return {
            "name": self.name,
            "count": self.count,
            "failed": self.failed,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost_nano / NANO,
            "series": {
                "count": [count for count, _, _ in series],
                "failed": [failed for _, failed, _ in series],
                "cost_usd": [cost / NANO for _, _, cost in series],
            },
        }


def timeline(read: Read, by: str, since: float, bucket_s: float, buckets: int) -> list[Group]:
    """What was used from `since` on, in `buckets` of `bucket_s` seconds, by one of `GROUPINGS`; dearest group first.
    A request that was refused or left is "failed", and so is a call that did not end well. Buckets of whole UTC days
    are quick at any length."""
    until = since + bucket_s * buckets

    def work(stretch: Stretch) -> list[tuple[Any, ...]]:
        rows = _of_days(read, by, stretch, since, bucket_s)
        for gap in stretch.gaps:
            rows += _of_rows(read, by, gap, since, bucket_s)
        return rows

    if since % DAY_S or bucket_s % DAY_S:  # a bucket would hold part of a day
        rows = work(Stretch((), ((since, until),)))
    else:
        rows = steady(read, since, until, work)
    groups: dict[str, Group] = {}
    for name, number, *sums in rows:
        count, failed, read_tokens, written, cost = map(int, sums)
        one = groups.setdefault(str(name), Group(str(name)))
        one.count += count
        one.failed += failed
        one.prompt_tokens += read_tokens
        one.completion_tokens += written
        one.cost_nano += cost
        at = min(max(int(number), 0), buckets - 1)
        before = one.buckets.get(at, (0, 0, 0))
        one.buckets[at] = (before[0] + count, before[1] + failed, before[2] + cost)
    return sorted(groups.values(), key=lambda one: (-one.cost_nano, -one.count, one.name))


def _of_rows(
    read: Read, by: str, gap: tuple[float, float], since: float, bucket_s: float
) -> list[tuple[Any, ...]]:
    """Of each group and bucket: name and number, requests (or calls), those that failed, tokens, nanodollars."""
    table, group = GROUPINGS[by]
    # Rounding down as every database understands it: one's CAST cuts off, the other's rounds.
    whole, place = "CAST((at - ?) / ? AS INTEGER)", "(at - ?) / ?"
    place = f"{whole} - CASE WHEN {whole} > {place} THEN 1 ELSE 0 END"
    return read(
        f"SELECT {group}, {place}, count(*), sum(CASE WHEN outcome = 'ok' THEN 0 ELSE 1 END), "  # noqa: S608 - our own
        f"sum(prompt_tokens), sum(completion_tokens), sum(cost_nano) FROM {table} "
        "WHERE at >= ? AND at < ? GROUP BY 1, 2",
        [*[since, bucket_s] * 3, *gap],
    )


def _of_days(read: Read, by: str, stretch: Stretch, since: float, bucket_s: float) -> list[tuple[Any, ...]]:
    """The same of days that are added up."""
    table, group = GROUPINGS[by]
    counted, failed = {
        "requests": ("sum(requests)", "sum(CASE WHEN outcome = 'ok' THEN 0 ELSE requests END)"),
        "calls": ("sum(calls)", "sum(failed)"),
    }[table]
    sums = f"{counted}, {failed}, sum(prompt_tokens), sum(completion_tokens), sum(cost_nano)"
    rows = summed(read, stretch, f"{group}, days.day, {sums}", f"day_{table}", "1, 2")
    return [(name, (begin_of(day) - since) // bucket_s, *told) for name, day, *told in rows]


def latencies(read: Read, since: float) -> list[float]:
    """Seconds that the latest answered requests since then took, in ascending order; at most `MOST_LATENCIES`."""
    rows = read(
        "SELECT latency_s FROM requests WHERE at >= ? AND outcome = 'ok' ORDER BY at DESC LIMIT ?",
        [since, MOST_LATENCIES],
    )
    return sorted(float(row[0]) for row in rows)


def recent(
    read: Read,
    since: float,
    limit: int,
    before: tuple[float, str] | None = None,
    where: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The latest requests since then, latest first; with `before`, those earlier than this time and id. `where`:
    "strategy", "key" (its id or alias) and "outcome" ("failed" is any but "ok")."""
    conditions, parameters = ["at >= ?"], [since]  # type: list[str], list[Any]
    if before is not None:
        conditions.append("(at, id) < (?, ?)")
        parameters += before
    for name, value in (where or {}).items():
        if name == "key":
            conditions.append("(key = ? OR alias = ?)")
            parameters += [value, value]
        elif name == "outcome" and value == "failed":
            conditions.append("outcome <> 'ok'")
        else:
            conditions.append({"outcome": "outcome = ?", "strategy": "strategy = ?"}[name])
            parameters.append(value)
    rows = read(
        f"SELECT {_LISTED} FROM requests WHERE {' AND '.join(conditions)} "  # noqa: S608 - SQL of our own
        "ORDER BY at DESC, id DESC LIMIT ?",
        [*parameters, min(limit, MOST_REQUESTS)],
    )
    return [_told(_LISTED, row) for row in rows]


def request(read: Read, name: str, now: float) -> dict[str, Any] | None:
    """One request with its calls and its decision, by its id, or by the `x-request-id` of a late one. "text": whether
    its prompt and answer are stored."""
    rows = read(f"SELECT {_WHOLE} FROM requests WHERE id = ?", [name])  # noqa: S608 - columns of our own
    rows = rows or read(
        f"SELECT {_WHOLE} FROM requests WHERE at >= ? AND request_id = ? ORDER BY at DESC LIMIT 1",  # noqa: S608
        [now - NEARBY_S, name],
    )
    if not rows:
        return None
    told = _told(_WHOLE, rows[0])
    told["tags"] = orjson.loads(told["tags"] or "[]")
    told["decision"] = orjson.loads(told["decision"] or "{}")
    calls = read(f"SELECT {_CALLED} FROM calls WHERE request = ? ORDER BY number", [told["id"]])  # noqa: S608
    told["calls"] = [_told(_CALLED, row) for row in calls]
    told["text"] = bool(read("SELECT 1 FROM texts WHERE request = ?", [told["id"]]))
    return told


@dataclass(frozen=True, slots=True)
class Decided:
    """A request that was decided: by which strategy, on what facts, at what cost in US dollars."""

    strategy: str
    facts: Mapping[str, Any]
    cost_usd: float
    at: float


def decided(read: Read, since: float) -> list[Decided]:
    """The latest decisions since then of requests that were answered, latest first; at most `MOST_DECISIONS`."""
    rows = read(
        "SELECT strategy, decision, cost_nano, at FROM requests WHERE at >= ? AND decision IS NOT NULL "
        "AND outcome = 'ok' ORDER BY at DESC LIMIT ?",
        [since, MOST_DECISIONS],
    )
    return [Decided(strategy, orjson.loads(facts), cost / NANO, at) for strategy, facts, cost, at in rows]


def _told(columns: str, row: tuple[Any, ...]) -> dict[str, Any]:
    told = dict(zip(columns.split(", "), row, strict=True))
    told["cost_usd"] = told.pop("cost_nano") / NANO
    return told
