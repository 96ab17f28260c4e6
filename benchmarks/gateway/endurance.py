"""What a gateway holds: memory over very many requests and streams, and a thousand streams that say nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import uvloop

from benchmarks.gateway.load import Server, closed_loop
from benchmarks.gateway.measure import audit, settled
from benchmarks.gateway.processes import rss_mb
from benchmarks.gateway.targets import Running
from benchmarks.gateway.workload import IDLE, WORKLOADS, Workload

__all__ = ["Endurance", "endure"]

SAMPLES = 10
IDLE_STREAMS = 1000


@dataclass(slots=True)
class Endurance:
    """Resident memory in MB: after a warm-up of a sixth of the load and at ten points of the rest, of whole answers and
    of streams; and what the idle streams add."""

    requests: int = 0
    streams: int = 0
    requests_mb: list[float] = field(default_factory=list)
    streams_mb: list[float] = field(default_factory=list)
    idle_streams: int = 0
    idle_mb: float = 0.0
    faults: list[str] = field(default_factory=list)


def endure(running: Running, requests: int, streams: int) -> Endurance:
    """Let it answer so many `requests` and `streams`, then hold `IDLE_STREAMS`."""
    assert running.process is not None
    pids = running.process.tree()
    told = Endurance()
    before = settled(running)
    stream = next(workload for workload in WORKLOADS if workload.stream)
    told.requests = _load(running, WORKLOADS[0], requests, told.requests_mb, pids, told.faults)
    told.streams = _load(running, stream, streams, told.streams_mb, pids, told.faults)
    told.faults += audit(running, before, told.requests + told.streams)
    empty = rss_mb(pids)
    told.idle_streams, held = _run(lambda: _idle(running.server, pids))
    told.idle_mb = held - empty
    return told


def _load(
    running: Running,
    workload: Workload,
    wanted: int,
    samples: list[float],
    pids: list[int],
    faults: list[str],
) -> int:
    """Answer at least `wanted` requests, in slices; memory is looked at after each."""
    done = 0
    while done < wanted:
        result = _run(
            lambda: closed_loop(running.server, workload, lambda: None, connections=32, warm_s=0.1, run_s=1.0)
        )
        done += result.completed
        faults += result.faults
        if done > wanted * (len(samples) + 2) / (SAMPLES + 2):
            samples.append(round(rss_mb(pids), 2))
        if result.failed:
            break
    return done


async def _idle(server: Server, pids: list[int]) -> tuple[int, float]:
    """How many streams began and are silent, and the memory that the gateway has meanwhile."""
    writers = []
    request = server.request(IDLE)
    for _ in range(IDLE_STREAMS):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request)
        writers.append((reader, writer))
    begun = 0
    for reader, _ in writers:
        async with asyncio.timeout(30):
            begun += b"tok " in await reader.readuntil(b"tok ")
    await asyncio.sleep(1.0)
    held = rss_mb(pids)
    for _, writer in writers:
        writer.close()
    await asyncio.sleep(0.5)
    return begun, held


def _run(make: Callable[[], Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(make())
