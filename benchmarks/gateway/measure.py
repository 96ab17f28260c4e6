"""One target under all workloads: throughput, latency added, processor time, memory, and whether its books
are right."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.gateway.load import Result, Server, closed_loop, open_loop
from benchmarks.gateway.processes import cpu_s, rss_mb
from benchmarks.gateway.targets import INPUT_USD, OUTPUT_USD, Running
from benchmarks.gateway.workload import CHUNKS, PROMPT_TOKENS, WORKLOADS, Workload

__all__ = ["Latency", "Plan", "Row", "measure", "percentile", "warm_up"]

WARM_UP_S = 3.0
SETTLE_S = 0.5
"""How long after the last answer the books may take to be complete."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load: connections of the closed loop, and seconds of warm-up and measurement of each loop."""

    connections: int
    warm_s: float
    closed_s: float
    open_s: float


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
    rate: float = 0.0
    open_cpu_us: float = 0.0
    latency: Latency | None = None
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
    before = running.books()
    closed, cpu = _timed(
        pids,
        lambda mark: closed_loop(
            running.server,
            workload,
            mark,
            connections=plan.connections,
            warm_s=plan.warm_s,
            run_s=plan.closed_s,
        ),
    )
    row.peak_rate = closed.measured / closed.window_s
    row.cpu_us = 1e6 * cpu / closed.measured if closed.measured else math.nan
    row.rate = max(1.0, row.peak_rate / 2)
    paced, cpu = _at_rate(running.server, workload, plan, row.rate, pids)
    row.open_cpu_us = 1e6 * cpu / paced.measured if paced.measured else math.nan
    row.latency = Latency.of(paced.latencies)
    row.rss_mb = rss_mb(pids)
    row.requests = closed.completed + paced.completed
    row.faults = [*closed.faults, *paced.faults]
    if running.process is not None:
        alone, _ = _at_rate(direct, workload, plan, row.rate, [])
        row.added = row.latency - Latency.of(alone.latencies)
        row.added_first_byte = Latency.of(paced.first_bytes) - Latency.of(alone.first_bytes)
    if before is not None:
        row.faults += _audit(running, before, row.requests)
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


def _audit(running: Running, before: Any, requests: int) -> list[str]:
    """The gateway's counters must say exactly what the load generator knows."""
    time.sleep(SETTLE_S)
    after = running.books()
    assert after is not None
    expected = {
        "requests": requests,
        "input_tokens": requests * PROMPT_TOKENS,
        "output_tokens": requests * CHUNKS,
        "cost_usd": requests * (PROMPT_TOKENS * INPUT_USD + CHUNKS * OUTPUT_USD),
    }
    faults = []
    for name, wanted in expected.items():
        told = getattr(after, name) - getattr(before, name)
        if not math.isclose(told, wanted, rel_tol=1e-9):
            faults.append(f"its books say {name} {told:g}, the load generator {wanted:g}")
    return faults
