"""Days of the ledger added up once, so that a report over months reads its days and not its requests.

A day (UTC) that is over is added up into `day_requests` and `day_calls`, a row for each combination of what reports
group by, and gets a *mark* in `days`. A report takes marked days from there and everything else from the rows: the day
under way, the edges of its stretch, days that nobody has added up yet. Sums are of whole numbers, so both ways tell the
same to the last nanodollar.

A mark stands for rows that do not change. Whatever changes a day's rows after all takes its mark away in the same
transaction: a row that is written late (`late_days`), and retention. Then the day is read from its rows until it has
been added up again. So nothing here is ever stale, and requests pay nothing for it: adding up is another thread's work
(`gateway.ledger.rolling_up`). Of who an end user was (`user`) there is no sum: there may be as many as requests.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import chain
from math import ceil
from typing import Any, TypeVar

from gateway.ledger.store import LedgerStore, Read, Row

__all__ = [
    "DAY_S",
    "UNMARKED",
    "Stretch",
    "begin_of",
    "day_of",
    "due",
    "late_days",
    "roll_up",
    "steady",
    "summed",
]

T = TypeVar("T")
DAY_S = 86_400.0
LATE_S = 1800.0
"""A row as old as this when it is written may be of a day that has been added up."""
CLOSED_S = 3 * LATE_S
"""A day is added up so long after its end: rows that are not late are there by then, also of gateways whose clocks
differ by up to half an hour."""
AT = 2
"""Where in a row of `requests` its time stands."""
TRIES = 3
AT_ONCE = 50
GROUPED = "key, alias, owner, team, requested, strategy, outcome"
_FROM = "FROM days JOIN {table} ON {table}.mark = days.mark WHERE days.made = 1 AND days.day >= ? AND days.day <= ?"
_OF_REQUESTS = ", ".join(f"requests.{name}" for name in GROUPED.split(", "))
SUMS = {
    "day_requests": (
        f"SELECT {GROUPED}, count(*), sum(prompt_tokens), sum(completion_tokens), sum(cost_nano) "  # noqa: S608
        f"FROM requests WHERE at >= ? AND at < ? GROUP BY {GROUPED}"
    ),
    "day_calls": (
        f"SELECT {_OF_REQUESTS}, calls.model, count(DISTINCT requests.id), count(*), "  # noqa: S608
        "sum(CASE WHEN calls.outcome = 'ok' THEN 0 ELSE 1 END), sum(calls.prompt_tokens), "
        "sum(calls.completion_tokens), sum(calls.cost_nano) "
        "FROM requests JOIN calls ON calls.request = requests.id WHERE requests.at >= ? AND requests.at < ? "
        f"GROUP BY {_OF_REQUESTS}, calls.model"
    ),
}
"""The tables of sums, and how a stretch of rows is added up for each."""
UNMARKED = tuple(f"DELETE FROM {table} WHERE mark NOT IN (SELECT mark FROM days)" for table in SUMS)  # noqa: S608
"""Sums whose marks are gone."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of time: its marked days, in order, and what lies between them as seconds since the epoch."""

    days: tuple[tuple[str, int], ...]
    gaps: tuple[tuple[float, float], ...]

    @property
    def ends(self) -> tuple[str, str]:
        """The first and the last of the marked days."""
        return self.days[0][0], self.days[-1][0]


def steady(read: Read, since: float, until: float, work: Callable[[Stretch], T]) -> T:
    """What `work` reads of the time from `since` until `until`, given days that were marked the same before and
    after. Where they change again and again, it gets no day at all."""
    for _ in range(TRIES):
        stretch = _stretch(read, since, until)
        told = work(stretch)
        if not stretch.days or _stretch(read, since, until).days == stretch.days:
            return told
    return work(Stretch((), ((since, until),)))


def summed(read: Read, stretch: Stretch, columns: str, table: str, groups: str) -> list[Row]:
    """`columns` of the marked days in one of `SUMS`, whose columns are named there, grouped by `groups`."""
    if not stretch.days:
        return []
    return read(f"SELECT {columns} {_FROM.format(table=table)} GROUP BY {groups}", stretch.ends)


def late_days(requests: Sequence[Row], now: float) -> list[str]:
    """The days of rows that are written so late that they may have been added up without them."""
    return sorted({day_of(row[AT]) for row in requests if row[AT] < now - LATE_S})


def day_of(at: float) -> str:
    """The UTC day of a time, as reports write it."""
    return _day(int(at // DAY_S))


def due(read: Read, now: float, oldest: float) -> list[str]:
    """The days that are over and have no mark, latest first; none that began before the time `oldest`, whose rows are
    being removed."""
    ((first,),) = read("SELECT min(at) FROM requests", []) or ((None,),)
    if first is None:
        return []
    marked = {day for (day,) in read("SELECT day FROM days WHERE made = 1", [])}
    begin = max(int(first // DAY_S), ceil(oldest / DAY_S))
    days = [_day(number) for number in range(begin, int((now - CLOSED_S) // DAY_S))]
    return [day for day in reversed(days) if day not in marked]


def roll_up(store: LedgerStore, day: str) -> None:
    """Add up a day that is over, without holding up those who write. When one of its rows is written meanwhile, its
    mark is gone by the end, and so it stays unmarked. Raises `StateUnavailable`, `SettingsError`, `RowsRefused`."""
    mark = secrets.randbits(60)
    begin = begin_of(day)
    remark = ("DELETE FROM days WHERE day = ?", [day]), ("INSERT INTO days VALUES (?, ?, 0)", [day, mark])
    store.change(remark, alone=True)
    changes: list[tuple[str, Sequence[Any]]] = []
    for table, statement in SUMS.items():
        rows = [
            (mark, number, *row) for number, row in enumerate(store.read(statement, [begin, begin + DAY_S]))
        ]
        for start in range(0, len(rows), AT_ONCE):
            some = rows[start : start + AT_ONCE]
            places = ",".join([f"({','.join('?' * len(some[0]))})"] * len(some))
            changes.append((f"INSERT INTO {table} VALUES {places}", [*chain.from_iterable(some)]))  # noqa: S608
    store.change([*changes, ("UPDATE days SET made = 1 WHERE mark = ?", [mark])])


def _stretch(read: Read, since: float, until: float) -> Stretch:
    first = _day(ceil(since / DAY_S))
    last = _day(min(int(min(until, _NEVER) // DAY_S), _LAST) - 1)
    days = read(
        "SELECT day, mark FROM days WHERE made = 1 AND day >= ? AND day <= ? ORDER BY day", [first, last]
    )
    gaps, at = [], since
    for day, _ in days:
        begin = begin_of(day)
        if begin > at:
            gaps.append((at, begin))
        at = begin + DAY_S
    if until > at:
        gaps.append((at, until))
    return Stretch(tuple((day, mark) for day, mark in days), tuple(gaps))


_EPOCH = date(1970, 1, 1).toordinal()
_LAST = date.max.toordinal() - _EPOCH
_NEVER = _LAST * DAY_S


def _day(number: int) -> str:
    return date.fromordinal(_EPOCH + min(number, _LAST)).isoformat()


def begin_of(day: str) -> float:
    """When a UTC day begins, seconds since the epoch."""
    return datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()
