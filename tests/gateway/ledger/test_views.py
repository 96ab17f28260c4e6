"""What is asked of the ledger by people who look at it: right, bounded, and in nobody's way."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from gateway.dashboard.drift import FEWEST, drift
from gateway.dashboard.frontier import estimated, on_the_frontier
from gateway.keys.key import Key
from gateway.ledger import views
from gateway.ledger.entry import Entry
from gateway.ledger.glance import Glance
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore, Read
from gateway.ledger.views import Decided
from gateway.ledger.writer import LedgerWriter
from protocol.errors import StateUnavailable
from protocol.run import Call, Trace
from protocol.usage import Usage


def entry(number: int, at: float, *, key: str = "a", outcome: str = "ok", cost: float = 1e-6) -> Entry:
    calls = [Call("one", Usage(3, 4), cost, 0.1), Call("two", Usage(1, 1), 1e-9, 0.1, "late", asker="inner")]
    decision = {"chosen": "one", "reason": "best"}
    fields = (None, None, "/chat/completions", "auto", "auto", outcome, number / 100)
    return Entry(
        f"id-{number:04}", f"req-{number}", at, Key(key, alias=key), *fields, Trace(calls, decision=decision)
    )


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., Path]:
    """Writes entries; gives the ledger's path."""

    def write(*entries: Entry) -> Path:
        writer = LedgerWriter(SqliteLedger(tmp_path / "ledger.db"))
        for one in entries:
            writer.add(one)
        writer.start()
        writer.close()
        return tmp_path / "ledger.db"

    return write


def reader(path: Path) -> Read:
    def read(statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(statement, parameters).fetchall()

    return read


def test_timeline(kept: Callable[..., Path]) -> None:
    """Each request is in its bucket, those outside in none; groups add up, dearest first."""
    at = time.time() - 100
    path = kept(
        entry(1, at - 1),
        entry(2, at),
        entry(3, at + 9.9, key="b", cost=5e-6),
        entry(4, at + 10.1, outcome="late"),
        entry(5, at + 40),
    )
    groups = views.timeline(reader(path), "key", at, 10.0, 4)
    assert [(one.name, one.count, one.failed, one.cost_nano) for one in groups] == [
        ("b", 1, 0, 5001),
        ("a", 2, 1, 2002),
    ]
    assert groups[1].wire(4)["series"]["count"] == [1, 1, 0, 0]
    assert groups[1].wire(4)["series"]["failed"] == [0, 1, 0, 0]
    models = views.timeline(reader(path), "model", at, 10.0, 4)
    assert [(one.name, one.count, one.failed, one.cost_nano) for one in models] == [
        ("one", 3, 0, 7000),
        ("two", 3, 3, 3),
    ]


def test_every_store_understands(open_ledger: Callable[[], LedgerStore]) -> None:
    """SQLite and PostgreSQL tell the same, question by question."""
    at = time.time() - 100
    store = open_ledger()
    rows = [entry(i, at + i).rows() for i in range(1, 6)]
    store.write([row for row, _ in rows], [call for _, calls in rows for call in calls])
    read = store.read
    for by, count in (("all", 5), ("key", 5), ("team", 5), ("strategy", 5)):
        (group,) = views.timeline(read, by, at, 10.0, 4)
        assert (group.count, group.cost_nano, group.buckets) == (count, 5005, {0: (5, 0, 5005)})
    assert [one.name for one in views.timeline(read, "model", at, 10.0, 4)] == ["one", "two"]
    assert views.latencies(read, at) == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
    page = views.recent(read, at, 2, (at + 4, "id-0004"), {"key": "a", "outcome": "ok", "strategy": "auto"})
    assert [row["id"] for row in page] == ["id-0003", "id-0002"]
    told = views.request(read, "req-2", time.time())
    assert told is not None
    assert [call["asker"] for call in told["calls"]] == ["", "inner"]
    assert [row.cost_usd for row in views.decided(read, at)] == [1001e-9] * 5


def test_recent_is_paged_and_filtered(kept: Callable[..., Path]) -> None:
    """Latest first, page after page without gap or double, also among requests of the same moment."""
    at = time.time() - 100
    path = kept(
        *(entry(i, at + i // 3, key="ab"[i % 2], outcome=("ok", "late")[i % 5 == 0]) for i in range(30))
    )
    read, before, seen = reader(path), None, []
    while page := views.recent(read, at - 1, 7, before):
        seen += [row["id"] for row in page]
        before = (page[-1]["at"], page[-1]["id"])
    assert seen == [f"id-{i:04}" for i in reversed(range(30))]
    failed = views.recent(read, 0, 50, None, {"outcome": "failed", "key": "a"})
    assert [row["id"] for row in failed] == ["id-0020", "id-0010", "id-0000"]
    assert views.recent(read, 0, 50, None, {"strategy": "' OR 1=1 --"}) == []
    assert len(views.recent(read, 0, 10**6)) == 30


def test_one_request(kept: Callable[..., Path]) -> None:
    """By its id or by what its caller called it, with its calls as they were booked."""
    path = kept(entry(1, time.time()))
    for name in ("id-0001", "req-1"):
        told = views.request(reader(path), name, time.time())
        assert told is not None
        assert told["cost_usd"] == 1001e-9
        assert told["decision"] == {"chosen": "one", "reason": "best"}
        assert [(call["model"], call["asker"], call["cost_usd"]) for call in told["calls"]] == [
            ("one", "", 1e-6),
            ("two", "inner", 1e-9),
        ]
    assert views.request(reader(path), "req-2", time.time()) is None


def test_indexes_are_used(kept: Callable[..., Path]) -> None:
    """No question reads a whole table."""
    read, plans = reader(kept(entry(1, time.time()))), []

    def explained(statement: str, parameters: Any) -> list[tuple[Any, ...]]:
        plans.extend(row[3] for row in read(f"EXPLAIN QUERY PLAN {statement}", parameters))
        return read(statement, parameters)

    for by in views.GROUPINGS:
        views.timeline(explained, by, 0.0, 1.0, 4)
    views.latencies(explained, 0.0)
    views.recent(explained, 0.0, 5, (time.time(), "x"), {"key": "a", "outcome": "failed"})
    views.request(explained, "nobody", time.time())
    views.request(explained, "id-0001", time.time())
    views.decided(explained, 0.0)
    assert len(plans) >= 10
    assert not [plan for plan in plans if plan.startswith("SCAN")]


async def test_a_look_that_takes_too_long_is_stopped(kept: Callable[..., Path]) -> None:
    """It fails with words; the next one is answered, and a writer was never kept waiting."""
    path = kept(entry(1, time.time()))
    glance = Glance(lambda: SqliteLedger(path), within_s=0.05)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    slow = asyncio.create_task(glance.look("slow", lambda read: read(endless, []), fresh_s=0))
    await asyncio.to_thread(kept, entry(2, time.time()))
    with pytest.raises(StateUnavailable, match="look at less time"):
        await slow
    count = "SELECT count(*) FROM requests"
    assert await glance.look("quick", lambda read: read(count, []), fresh_s=0) == [(2,)]
    with pytest.raises(StateUnavailable):
        await glance.look("write", lambda read: read("DELETE FROM requests", []), fresh_s=0)


async def test_what_was_seen_is_told_again(kept: Callable[..., Path], tmp_path: Path) -> None:
    """For as long as it is fresh, however many ask; without a ledger there is nothing to see."""
    looks = []
    path = kept(entry(1, time.time()))
    glance = Glance(lambda: SqliteLedger(path))

    def work(read: Read) -> int:
        looks.append(1)
        return len(looks)

    assert await asyncio.gather(*(glance.look("a", work, fresh_s=60) for _ in range(5))) == [1] * 5
    assert await glance.look("a", work, fresh_s=0) == 2
    none = Glance(lambda: SqliteLedger(tmp_path / "none.db"))
    assert await none.look("a", lambda read: read("SELECT 1", []), fresh_s=0) == []
    assert not (tmp_path / "none.db").exists()


def decision(chosen: str, cost: float = 1.0, **more: Any) -> Decided:
    estimates = {"small": {"quality": 0.4, "cost_usd": 1.0}, "large": {"quality": 0.8, "cost_usd": 3.0}}
    return Decided("auto", {"chosen": chosen, "estimates": estimates, **more}, cost, 1.0)


def test_frontier() -> None:
    """Means over the requests that were estimated and answered by a model; what another beats is not on it."""
    rows = [decision("small", 1.0), decision("large", 4.0), decision("large", 0.0, cache="exact")]
    points = estimated([*rows, Decided("auto", {"chosen": "small", "reason": "default: late"}, 9.0, 1.0)])
    told = {point["name"]: (point["quality"], point["cost_usd"], point["count"]) for point in points}
    assert told == {"auto": (pytest.approx(0.6), 2.5, 2), "large": (0.8, 3.0, 2), "small": (0.4, 1.0, 2)}
    assert [points[i]["name"] for i in on_the_frontier(points)] == ["small", "auto", "large"]
    beaten = {"name": "beaten", "quality": 0.4, "cost_usd": 1.5}
    assert 3 not in on_the_frontier([*points, beaten])
    assert on_the_frontier([]) == []


def test_drift() -> None:
    """The same shares are steady, other ones have shifted, a few tell nothing."""
    half = [decision("small" if i % 4 else "large") for i in range(400)]
    (steady,) = drift([*half, *half])
    assert (steady["verdict"], steady["distance"], steady["count"]) == ("steady", 0.0, 800)
    (shifted,) = drift([*(decision("large") for _ in range(400)), *half])
    assert (shifted["verdict"], shifted["distance"]) == ("shifted", pytest.approx(0.75))
    assert shifted["quality"] == {"newer": pytest.approx(0.8), "older": pytest.approx(0.5)}
    (few,) = drift([decision("small")] * (2 * FEWEST - 1))
    assert few["verdict"] == "too few"
    (late,) = drift([decision("small"), decision("small", reason="default: late")])
    assert late["defaulted"] == 0.5
    assert drift([]) == []
