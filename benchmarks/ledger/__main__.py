"""Time a large ledger: what people ask of it, its migration, retention beside a writer, and its backup.

    python -m benchmarks.ledger                                  five million requests in SQLite
    python -m benchmarks.ledger --requests 1000000 --url postgresql://…/an_empty_database

Prints a table and writes `benchmarks/results/ledger-sqlite.json`, or `-postgres`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.ledger.rows import DAYS, fill_postgres, fill_sqlite
from gateway.ids import Ids
from gateway.keys.key import Key
from gateway.ledger import views
from gateway.ledger.care import check
from gateway.ledger.entry import Entry
from gateway.ledger.postgres_ledger import PostgresLedger
from gateway.ledger.rolling_up import RollingUp
from gateway.ledger.rollups import roll_up
from gateway.ledger.savings import savings
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.store import LedgerStore
from gateway.ledger.texts import sweep
from gateway.ledger.usage import usage
from gateway.ledger.writer import RETIRED_AT_ONCE
from protocol.run import Call, Trace
from protocol.usage import Price, Usage

DAY_S = 86_400.0
TEXTS, TEXT = 20_000, "a word " * 600
BATCH = 1000


class Timings:
    """Wall seconds, and processor seconds of this process: what a busy machine adds is in the first alone."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def time(self, name: str, work: Callable[[], Any], **facts: Any) -> Any:
        wall, processor = time.perf_counter(), time.process_time()
        told = work()
        row = {"what": name, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - processor}
        self.add(row | facts)
        return told

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append({name: round(v, 4) if isinstance(v, float) else v for name, v in row.items()})
        more = ", ".join(f"{name} {v}" for name, v in self.rows[-1].items() if name not in ("what", "wall_s"))
        print(f"{self.rows[-1]['what']:<58}{row['wall_s']:>9.3f} s   {more}", flush=True)


def entries(count: int, now: float) -> Iterator[Entry]:
    """Requests as a gateway writes them."""
    ids, key = Ids(), Key("key_1", alias="alias-1", team="team-1")
    for _ in range(count):
        trace = Trace(calls=[Call("small", Usage(200, 60), 1e-5, 0.3)])
        told = ("/chat/completions", "auto", "auto", "ok", 0.3, trace)
        yield Entry(id := ids.fresh(), id, now, key, None, None, *told)


class Writing:
    """A gateway that writes a batch every fifth of a second in a thread and a connection of its own, and how long each
    took."""

    def __init__(self, store: LedgerStore) -> None:
        self._store, self._stop = store, threading.Event()
        self.took: list[float] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Writing:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with closing(self._store) as store:
            while not self._stop.wait(0.2):
                rows = [entry.rows() for entry in entries(BATCH, time.time())]
                began = time.perf_counter()
                store.write([row for row, _ in rows], [call for _, calls in rows for call in calls])
                self.took.append(time.perf_counter() - began)

    def told(self) -> dict[str, Any]:
        took = sorted(self.took)
        return {"batches": len(took), "batch_median_s": took[len(took) // 2], "batch_worst_s": took[-1]}


def reports(timings: Timings, store: LedgerStore, now: float, how: str = "") -> None:
    """What people ask; `how` is said of each."""
    began = len(timings.rows)
    for days in (1, 30, DAYS):
        for by in (("key",), ("team", "model"), ("strategy",), ("day",)):
            work = partial(usage, store, by, now - days * DAY_S)
            timings.time(f"usage by {','.join(by)}, {days} days", work)
    price = Price(2.5e-6, 1e-5)
    timings.time(
        "savings against one model, 30 days", lambda: savings(store.read, "large", price, now - 30 * DAY_S)
    )
    read = store.read
    timings.time(
        "dashboard: spend by key, a day", lambda: views.timeline(read, "key", now - DAY_S, 1440.0, 60)
    )
    timings.time(
        "dashboard: spend by model, 90 days",
        lambda: views.timeline(read, "model", (now // DAY_S - 89) * DAY_S, 2 * DAY_S, 45),
    )
    page = timings.time("dashboard: latest requests", lambda: views.recent(read, now - 7 * DAY_S, 50))
    where = {"key": "alias-3", "outcome": "failed"}
    timings.time(
        "dashboard: latest failed requests of a key",
        lambda: views.recent(read, now - 7 * DAY_S, 50, None, where),
    )
    timings.time("dashboard: one request by x-request-id", lambda: views.request(read, "no-such-id", now))
    timings.time("dashboard: one request by id", lambda: views.request(read, page[0]["id"], now))
    for row in timings.rows[began:]:
        row["what"] += how


def rolling_up(timings: Timings, make: Callable[[], LedgerStore], now: float) -> None:
    """Every day that is over is added up, as a gateway does after its first start with such a ledger, while another
    writes."""
    added = 0

    def work() -> None:
        nonlocal added
        added = RollingUp(make, 10_000, lambda: now).once()

    with Writing(make()) as writing:
        timings.time("all days added up, beside a writer", work)
    timings.rows[-1] |= {"days": added} | writing.told()
    print("   ", timings.rows[-1])
    with closing(make()) as store:
        (day, *_) = [day for (day,) in store.read("SELECT day FROM days ORDER BY day DESC LIMIT 1")]
        timings.time("one day added up", lambda: roll_up(store, day))


def retention(timings: Timings, make: Callable[[], LedgerStore], now: float) -> None:
    """A day's rows go, as a gateway removes them, while another writes."""
    before, worst, removed = now - (DAYS - 1) * DAY_S, 0.0, 0

    def work() -> None:
        nonlocal worst, removed
        with closing(make()) as store:
            count = RETIRED_AT_ONCE
            while count >= RETIRED_AT_ONCE:
                began = time.perf_counter()
                count = store.retire(before, RETIRED_AT_ONCE)
                worst, removed = max(worst, time.perf_counter() - began), removed + count
                time.sleep(0.2)

    with Writing(make()) as writing:
        time.sleep(2)
    timings.add(
        {
            "what": "a batch of 1000 requests written, alone",
            "wall_s": writing.told()["batch_median_s"],
            **writing.told(),
        }
    )
    with Writing(make()) as writing:
        timings.time("retention of a day beside a writer", work)
    timings.rows[-1] |= {"rows": removed, "worst_step_s": round(worst, 4)} | writing.told()
    print("   ", timings.rows[-1])
    texts = [(f"text-{i}", f"key_{i % 20}", now - 9 * DAY_S, TEXT, TEXT, 0) for i in range(TEXTS)]
    with closing(make()) as store:
        store.write([], [], texts)
        with Writing(make()) as writing:
            timings.time(f"removal of {TEXTS} stored texts beside a writer", lambda: sweep(store, {}, now))
    timings.rows[-1] |= writing.told()
    print("   ", timings.rows[-1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.ledger", description=__doc__)
    parser.add_argument("--requests", type=int, default=5_000_000)
    parser.add_argument("--url", help="an empty PostgreSQL database; default: a SQLite file")
    parser.add_argument("--folder", type=Path, help="where the file is made, and removed")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = Path(mkdtemp(prefix="chorus-ledger-", dir=arguments.folder))
    now, timings, path = time.time(), Timings(), folder / "ledger.db"

    def make() -> LedgerStore:
        return PostgresLedger(arguments.url) if arguments.url else SqliteLedger(path)

    def progress(count: int) -> None:
        print(f"{count} of {arguments.requests}", end="\r", file=sys.stderr)

    try:
        if arguments.url:
            fill_postgres(arguments.url, arguments.requests, now, progress)
        else:
            fill_sqlite(path, arguments.requests, now, progress)
        with closing(make()) as store:
            timings.time("migration from the release before", lambda: store.read("SELECT 1"))
            reports(timings, store, now, ", from rows")
        rolling_up(timings, make, now)
        with closing(make()) as store:
            reports(timings, store, now)
            retention(timings, make, now)
            timings.time("chorus ledger check", lambda: check(store, 0.0))
            size = None
            if isinstance(store, SqliteLedger):
                timings.time("backup", lambda: store.backup(folder / "copy.db"))
                size = path.stat().st_size
    finally:
        shutil.rmtree(folder)
    place = "postgres" if arguments.url else "sqlite"
    out = arguments.out or Path(__file__).parents[1] / "results" / f"ledger-{place}.json"
    told = {
        "requests": arguments.requests,
        "calls": arguments.requests * 17 // 10,
        "bytes": size,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, shared; load {os.getloadavg()[0]:.0f} at the end",
        "python": platform.python_version(),
        "rows": timings.rows,
    }
    out.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
