"""Days added up tell what their rows tell, in both places, whatever is written or removed meanwhile."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from gateway.keys.key import Key
from gateway.ledger import views
from gateway.ledger.care import check
from gateway.ledger.entry import Entry
from gateway.ledger.rolling_up import RollingUp
from gateway.ledger.rollups import CLOSED_S, DAY_S, begin_of, day_of, due, roll_up
from gateway.ledger.schema import MIGRATIONS
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore
from gateway.ledger.usage import GROUPS, Line, usage
from protocol.run import Call, Trace
from protocol.usage import Usage
from tests.gateway.ledger.conftest import Open

FIRST = 19_700 * DAY_S
DAYS = 6
NOW = FIRST + DAYS * DAY_S + 2 * CLOSED_S
"""The last day is over, and one more has begun."""


def entries(dice: random.Random, count: int, mark: str = "") -> Iterator[Entry]:
    """Requests of the whole time, some at the very edges of days; with no call or with several, of which some fail."""
    keys = [
        Key(f"key_{i}", alias=dice.choice((None, f"a{i}")), team=dice.choice((None, "t"))) for i in range(4)
    ]
    for number in range(count):
        at = dice.uniform(FIRST - DAY_S / 2, NOW)
        if number % 9 == 0:
            at = at // DAY_S * DAY_S + dice.choice((0.0, DAY_S - 0.01))
        calls = [
            Call(
                dice.choice(("one", "two")),
                Usage(dice.randint(1, 999), dice.randint(1, 99)),
                dice.random(),
                0.1,
            )
            for _ in range(dice.randint(0, 3))
        ]
        vectors = [Call("mini", Usage(3, 0), 1e-9, 0.01, dice.choice(("ok", "late")))] * dice.randint(0, 1)
        name = dice.choice(("auto", "vote"))
        outcome = dice.choice(("ok", "ok", "late"))
        trace = Trace(calls, embeddings=vectors)
        told = (f"u{number % 7}", None, "/x", name, name, outcome, 0.2, trace)
        yield Entry(f"{mark}{number}", "req", at, dice.choice(keys), *told)


def write(store: LedgerStore, some: Sequence[Entry]) -> None:
    rows = [entry.rows() for entry in some]
    store.write([row for row, _ in rows], [call for _, calls in rows for call in calls])


def add_up(make: Open) -> int:
    return RollingUp(make, 10_000, lambda: NOW).once()


def lines(told: list[Line]) -> list[Line]:
    return sorted(told, key=lambda line: line.group)


def reports(store: LedgerStore) -> list[Any]:
    """Every report there is, over stretches that begin and end anywhere."""
    told: list[Any] = []
    groups = (
        [(name,) for name in GROUPS] + list(combinations(GROUPS, 2)) + [("day", "team", "model", "outcome")]
    )
    for by in groups:
        for since, until in ((0.0, float("inf")), (FIRST + 0.3 * DAY_S, FIRST + 4.6 * DAY_S), (FIRST, NOW)):
            told.append((by, lines(usage(store, by, since, until))))
    for name in views.GROUPINGS:
        for bucket_s, buckets in ((DAY_S, DAYS), (2 * DAY_S, 3), (DAY_S / 3, 12)):
            rows = views.timeline(store.read, name, FIRST, bucket_s, buckets)
            told.append((name, [(one.name, one.wire(buckets)) for one in rows]))
    return told


def made(store: LedgerStore) -> list[str]:
    return [day for (day,) in store.read("SELECT day FROM days WHERE made = 1 ORDER BY day")]


def test_the_same_as_rows(open_ledger: Open) -> None:
    """Whatever is asked, days that are added up tell what their rows told, to the last nanodollar; and they are what
    was read."""
    store = open_ledger()
    write(store, list(entries(random.Random(1), 400)))
    before = reports(store)
    rolling_up = RollingUp(open_ledger, 10_000, lambda: NOW)
    assert rolling_up.once() == DAYS + 1
    assert rolling_up.exposition().endswith(b"chorus_ledger_days_behind 0\n")
    assert made(store) == [day_of(FIRST + i * DAY_S) for i in range(-1, DAYS)]
    assert reports(store) == before
    assert check(store, 0.0).faults == ()
    store.change([("UPDATE day_calls SET cost_nano = 0", [])])
    cheap = sum(line.cost_usd for line in usage(store, ("key",)))
    assert cheap < sum(line.cost_usd for line in usage(store, ("user",))) / 5  # the rows of today and no more


def test_late_rows(open_ledger: Open) -> None:
    """A row of a day that was added up takes its mark away, and no other's; the day is read from its rows, then added
    up anew; sums of marks that are gone are removed."""
    store = open_ledger()
    write(store, list(entries(random.Random(2), 200)))
    add_up(open_ledger)
    late = [entry for entry in entries(random.Random(3), 40, "late") if entry.at < FIRST + 2 * DAY_S]
    write(store, late)
    days = {day_of(entry.at) for entry in late}
    assert made(store) == sorted({day_of(FIRST + i * DAY_S) for i in range(-1, DAYS)} - days)
    told = reports(store)
    assert add_up(open_ledger) == len(days)
    assert reports(store) == told
    assert sum(line.requests for line in usage(store, ("key",))) == 200 + len(late)
    for table in ("day_requests", "day_calls"):
        assert store.read(f"SELECT count(*) FROM {table} WHERE mark NOT IN (SELECT mark FROM days)") == [(0,)]


def test_written_while_it_is_added_up(open_ledger: Open) -> None:
    """A row that comes between the mark and the sums leaves the day unmarked."""
    store, other = open_ledger(), open_ledger()
    write(store, list(entries(random.Random(4), 50)))
    day = day_of(FIRST + DAY_S)
    (late,) = [next(one for one in entries(random.Random(5), 99, "late") if day_of(one.at) == day)]

    class Slow:
        """A store in which somebody else writes after the sums were read."""

        change = store.change

        def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
            rows = store.read(statement, parameters)
            write(other, [late])
            return rows

    roll_up(Slow(), day)  # type: ignore[arg-type]
    assert made(store) == []
    roll_up(store, day)
    assert made(store) == [day]
    assert reports(store) == reports(other)
    (line,) = [line for line in usage(store, ("day",)) if line.group == (day,)]
    ((count,),) = store.read(
        "SELECT count(*) FROM requests WHERE at >= ? AND at < ?", [begin_of(day), begin_of(day) + DAY_S]
    )
    assert line.requests == count


def test_days_change_while_they_are_read(open_ledger: Open) -> None:
    """A report that reads while marks go and come tells the rows."""
    store, other = open_ledger(), open_ledger()
    some = list(entries(random.Random(6), 60))
    write(store, some[:50])
    add_up(open_ledger)
    rest = iter(some[50:])

    def read(statement: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        rows = store.read(statement, parameters)
        if "day_requests" in statement and (one := next(rest, None)):
            write(other, [one])
        return rows

    told = views.timeline(read, "all", FIRST, DAY_S, DAYS)[0]
    assert len(list(rest)) == 10 - 3  # three attempts, and then the rows alone
    assert told.wire(DAYS) == views.timeline(store.read, "all", FIRST, DAY_S, DAYS)[0].wire(DAYS)


def test_retention(open_ledger: Open) -> None:
    """What retention removes is gone from the reports at once, also half a day of it, and that day is not added up
    again."""
    store = open_ledger()
    write(store, list(entries(random.Random(7), 300)))
    add_up(open_ledger)
    before = FIRST + 2.5 * DAY_S
    while store.retire(before, 10) >= 10:
        ((count,),) = store.read("SELECT count(*) FROM requests")
        assert sum(line.requests for line in usage(store, ("team",))) == count
    assert made(store) == [day_of(FIRST + i * DAY_S) for i in range(3, DAYS)]
    assert due(store.read, NOW, before) == []
    assert check(store, 0.0).faults == ()


def test_what_is_due(open_ledger: Open) -> None:
    """Days that are well over, latest first, those without requests too; not today, and not yesterday just now."""
    store = open_ledger()
    assert due(store.read, NOW, 0.0) == []
    (one, *_) = entries(random.Random(8), 1)
    write(store, [one])
    after = begin_of(day_of(one.at)) + DAY_S
    assert due(store.read, after + CLOSED_S - 1, 0.0) == []
    assert due(store.read, after + CLOSED_S + DAY_S, 0.0) == [day_of(after), day_of(one.at)]


def test_check_compares(open_ledger: Open) -> None:
    """`chorus ledger check` names the day whose sums are wrong."""
    store = open_ledger()
    write(store, list(entries(random.Random(9), 50)))
    add_up(open_ledger)
    day = made(store)[2]
    which = "mark = (SELECT mark FROM days WHERE day = ?)"
    store.change([(f"UPDATE day_requests SET cost_nano = cost_nano + 1 WHERE {which}", [day])])
    assert check(store, 0.0).faults == (f"what is added up of {day} is not what its requests cost",)


def test_a_ledger_of_the_release_before(tmp_path: Path) -> None:
    """It gets the tables, and its days are added up."""
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(";".join(MIGRATIONS[:-1]))
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) - 1}")
        for entry in entries(random.Random(10), 30):
            row, calls = entry.rows()
            for table, rows in (("requests", [row]), ("calls", calls)):
                for one in rows:
                    connection.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(one))})", one)
        connection.commit()
    with closing(SqliteLedger(path)) as store:
        before = reports(store)
        assert add_up(lambda: SqliteLedger(path)) == len(made(store)) > 0
        assert reports(store) == before


@pytest.mark.parametrize(
    ("at", "day"), [(0.0, "1970-01-01"), (86_399.9999, "1970-01-01"), (FIRST, "2023-12-09")]
)
def test_days(at: float, day: str) -> None:
    """Days are UTC's, from midnight until just before the next."""
    assert day_of(at) == day
    assert begin_of(day) <= at < begin_of(day) + DAY_S
