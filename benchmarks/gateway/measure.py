"""One target under all workloads: throughput, latency added, processor time, memory, and whether its books
are right."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import uvloop

from benchmarks.gateway.load import Result, Server, closed_loop, open_loop
from benchmarks.gateway.processes import cpu_s, rss_mb
from benchmarks.gateway.targets import INPUT_USD, OUTPUT_USD, Books, Running
from benchmarks.gateway.workload import CHUNKS, PROMPT_TOKENS, WORKLOADS, Workload

__all__ = ["Latency", "Plan", "Row", "audit", "measure", "percentile", "settled", "warm_up"]

WARM_UP_S = 3.0
SETTLE_S = 10.0
"""How long after the last answer the books may take to be complete."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load: connections of the closed loop, seconds of warm-up and measurement of each loop, and in how many
    rounds those of the closed loop are had."""

    connections: int
    warm_s: float
    closed_s: float
    open_s: float
    rounds: int = 3


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds, at the percentiles 50, 99 and 99.9."""

    p50: float
    p99: float
    p999: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Latency:
        """`samples` are sorted."""
        return cls(percentile(samples, 50), percentile(samples, 99), percentile(samples, 99.9))

    def __sub__(self, other: Latency) -> Latency:
        return Latency(self.p50 - other.p50, self.p99 - other.p99, self.p999 - other.p999)


@dataclass(slots=True)
class Row:
    """What was found for one target and workload. `cpu_us` is microseconds per request, `rate` requests per
    second."""

    target: str
    version: str
    workload: str
    peak_rate: float = 0.0
    cpu_us: float = 0.0
    cpu_us_rounds: list[float] = field(default_factory=list)
    rate: float = 0.0
    open_cpu_us: float = 0.0
    latency: Latency | None = None
    alone: Latency | None = None
    """Of the same rate straight to the upstream: what of the latency, and how much of its noise, is the machine's."""
    added: Latency | None = None
    added_first_byte: Latency | None = None
    rss_mb: float = 0.0
    requests: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.faults


def percentile(samples: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of sorted `samples`; NaN without any."""
    return samples[max(0, math.ceil(len(samples) * share / 100) - 1)] if samples else math.nan


def warm_up(server: Server, plan: Plan) -> None:
    """Let a gateway that has just started compile, import and open what it will need."""
    loop = closed_loop(
        server, WORKLOADS[0], lambda: None, connections=plan.connections, warm_s=WARM_UP_S, run_s=0.1
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(loop)


def measure(name: str, running: Running, workload: Workload, plan: Plan, direct: Server) -> Row:
    """Closed loop, then open loop at half the peak, then the same rate straight to the upstream."""
    row = Row(name, running.version, workload.name)
    pids = running.process.tree() if running.process else []
    before = settled(running)
    rates = []
    for _ in range(plan.rounds):
        closed, cpu = _timed(
            pids,
            lambda mark: closed_loop(
                running.server,
                workload,
                mark,
                connections=plan.connections,
                warm_s=plan.warm_s,
                run_s=plan.closed_s / plan.rounds,
            ),
        )
        rates.append(closed.measured / closed.window_s)
        row.cpu_us_rounds.append(1e6 * cpu / closed.measured if closed.measured else math.nan)
        row.requests += closed.completed
        row.faults += closed.faults
    row.peak_rate, row.cpu_us = median(rates), median(row.cpu_us_rounds)
    row.rate = max(1.0, row.peak_rate / 2)
    paced, cpu = _at_rate(running.server, workload, plan, row.rate, pids)
    row.open_cpu_us = 1e6 * cpu / paced.measured if paced.measured else math.nan
    row.latency = Latency.of(paced.latencies)
    row.rss_mb = rss_mb(pids)
    row.requests += paced.completed
    row.faults += paced.faults
    if running.process is not None:
        alone, _ = _at_rate(direct, workload, plan, row.rate, [])
        row.alone = Latency.of(alone.latencies)
        row.added = row.latency - row.alone
        row.added_first_byte = Latency.of(paced.first_bytes) - Latency.of(alone.first_bytes)
    row.faults += audit(running, before, row.requests)
    return row


def _at_rate(
    server: Server, workload: Workload, plan: Plan, rate: float, pids: list[int]
) -> tuple[Result, float]:
    return _timed(
        pids, lambda mark: open_loop(server, workload, mark, rate=rate, warm_s=plan.warm_s, run_s=plan.open_s)
    )


def _timed(pids: list[int], loop: Callable[[Callable[[], None]], Any]) -> tuple[Result, float]:
    """Run a load; also the processor time `pids` used within its window, in seconds."""
    marks: list[float] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result: Result = runner.run(loop(lambda: marks.append(cpu_s(pids))))
    return result, marks[1] - marks[0]


def settled(running: Running) -> dict[str, Books]:
    """The books once nothing more is written into them."""
    books: dict[str, Books] = {}
    while books != (books := running.books()):
        time.sleep(1.0)
    return books


def audit(running: Running, before: Mapping[str, Books], requests: int) -> list[str]:
    """Its counters and its ledger must say exactly what the load generator knows. They are written a moment later."""
    expected = Books(
        requests,
        requests * PROMPT_TOKENS,
        requests * CHUNKS,
        requests * (PROMPT_TOKENS * INPUT_USD + CHUNKS * OUTPUT_USD),
    )
    ends = time.monotonic() + SETTLE_S
    while (faults := _differences(running.books(), before, expected)) and time.monotonic() < ends:
        time.sleep(0.1)
    return faults


def _differences(after: Mapping[str, Books], before: Mapping[str, Books], expected: Books) -> list[str]:
    return [
        f"its {book} say {name} {told:.12g}, the load generator {wanted:.12g}"
        for book, books in after.items()
        for name, wanted in asdict(expected).items()
        if not math.isclose(told := getattr(books, name) - getattr(before[book], name), wanted, rel_tol=1e-9)
    ]
