"""How often a worker asks the store for one key, at several paces, and what an operation costs a Redis.

    python -m benchmarks.state_operations

One worker's slices and rates over a Redis of its own; a key with `rpm`, `tpm`, `concurrent` and a daily budget, whose
requests come at random (Poisson) and take 0.2 s. Prints a table and writes `benchmarks/results/state_operations.json`.
docs/deploy/scaling.md counts with these figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from gateway.limits.rates import Rates
from gateway.limits.slices import Slices
from gateway.state.accounts import Ask, Grant, Taken, Want
from gateway.state.redis_client import RedisClient
from gateway.state.redis_store import RedisStore

PACES = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Requests a second of one key at one worker."""
TAKES_S = 0.2
LASTS_S = 10.0
USD = 10**9
RESERVED, SPENT, TOKENS = 2_000_000, 400_000, 300
OUT = Path(__file__).parent / "results" / "state_operations.json"


class Counted:
    """The store, and how often it was asked about each account and bucket."""

    def __init__(self, store: RedisStore) -> None:
        self._store, self.asked = store, Counter[str]()

    async def sync(self, asks: Sequence[Ask]) -> list[Grant]:
        self.asked.update(ask.account for ask in asks)
        return await self._store.sync(asks)

    async def take(self, want: Want) -> Taken:
        self.asked[want.bucket] += 1
        return await self._store.take(want)

    async def open(self) -> None:
        await self._store.open()

    @property
    def degraded(self) -> bool:
        return self._store.degraded

    async def close(self) -> None:
        await self._store.close()


async def paced(client: RedisClient, pace: float) -> dict[str, Any]:
    """One key at one worker for `LASTS_S` seconds."""
    store = Counted(RedisStore(client, f"bench{pace:g}"))
    slices, rates = Slices(store, "worker"), Rates(store, time.monotonic)
    made = 0

    async def one() -> None:
        at_once, budget = slices.slice("concurrent", 10_000), slices.slice("budget", 1000 * USD)
        rpm, tpm = rates.rate("rpm", 600_000), rates.rate("tpm", 600_000_000)
        await rates.take(rpm, 1)
        await rates.take(tpm, TOKENS)
        await slices.reserve(at_once, 1, patience_s=5.0)
        await slices.reserve(budget, RESERVED, patience_s=5.0)
        await asyncio.sleep(TAKES_S)
        slices.release(budget, RESERVED, SPENT)
        slices.release(at_once, 1)

    keeping = [asyncio.create_task(slices.run()), asyncio.create_task(rates.run())]
    ends, dice = time.monotonic() + max(LASTS_S, 6 / pace), random.Random(1)
    began, at = time.monotonic(), time.monotonic()
    running: set[asyncio.Task[None]] = set()
    while at < ends:
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        task = asyncio.create_task(one())
        running.add(task)
        task.add_done_callback(running.discard)
        made += 1
        at += dice.expovariate(pace)
    await asyncio.gather(*running)
    for each in keeping:
        each.cancel()
        with suppress(asyncio.CancelledError):
            await each
    took = time.monotonic() - began
    told = {name: round(store.asked[name] / took, 2) for name in ("budget", "concurrent", "rpm", "tpm")}
    await slices.close()
    return {"requests_a_second": round(made / took, 1), "operations_a_second": told}


async def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        server = await asyncio.create_subprocess_exec(
            *("redis-server", "--port", "0", "--unixsocket", f"{folder}/redis.sock", "--save", ""),
            *("--dir", folder),
            stdout=asyncio.subprocess.DEVNULL,
        )
        client = RedisClient(f"unix://{folder}/redis.sock", timeout_s=2.0)
        try:
            while not (Path(folder) / "redis.sock").exists():  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.02)
            rows = [await paced(client, pace) for pace in PACES]
            stats = await client.run(lambda redis: redis.info("commandstats"))
        finally:
            await client.close()
            server.terminate()
            await server.wait()
    scripts = {name: facts["usec_per_call"] for name, facts in stats.items() if "eval" in name}
    return {
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "rows": rows,
        "redis_us_an_operation": scripts,
    }


def main() -> int:
    if shutil.which("redis-server") is None:
        print("there is no redis-server on this machine", file=sys.stderr)
        return 1
    told = asyncio.run(measure())
    OUT.write_text(json.dumps(told, indent=1) + "\n")
    print("requests a second | operations a second: budget | concurrent | rpm | tpm | all")
    for row in told["rows"]:
        asked = row["operations_a_second"]
        print(row["requests_a_second"], *asked.values(), round(sum(asked.values()), 1), sep=" | ")
    print("µs of Redis an operation:", told["redis_us_an_operation"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
