"""The load generator: closed loop (as fast as the answers come) and open loop (at a constant rate, whatever
comes).

Latencies of the open loop count from the moment a request was due, not from when a connection was free for
it, so that a gateway that stalls is charged for everybody it kept waiting.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, repeat
from typing import cast

from httptools import HttpResponseParser

from benchmarks.gateway.workload import MODEL, NUMBER, Workload

__all__ = ["Result", "Server", "closed_loop", "open_loop"]

MAX_CONNECTIONS = 512
"""Of the open loop; more requests than that wait, and their waiting counts."""
GIVE_UP_S = 30.0


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go, and the headers they need there."""

    port: int
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    model: str = MODEL
    fresh: bool = False
    """Whether no two requests have the same text."""

    def requests(self, workload: Workload) -> Iterator[bytes]:
        """The bytes of each request, without end."""
        made = self.request(workload)
        if not self.fresh:
            yield from repeat(made)
        before, _, after = made.partition(NUMBER)
        for number in count():
            yield b"%b#%08d%b" % (before, number, after)

    def request(self, workload: Workload) -> bytes:
        """The bytes of one request."""
        body = workload.body(self.model)
        headers = {"host": f"127.0.0.1:{self.port}", "content-type": "application/json", **self.headers}
        lines = [f"POST {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        lines.append(f"content-length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode() + body


@dataclass(slots=True)
class Result:
    """`completed` and `failed` count every request, warm-up included; the rest is of the measured window:
    requests completed in it, its length in seconds, and, sorted, seconds to the last and to the first byte
    of each."""

    completed: int = 0
    failed: int = 0
    measured: int = 0
    window_s: float = 0.0
    latencies: list[float] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


class _Client(asyncio.Protocol):
    """One connection; `done` is called with it after each answer."""

    def __init__(self, done: Callable[[_Client, bool], None], workload: Workload) -> None:
        self._done, self._workload = done, workload
        self._parser = HttpResponseParser(self)
        self._parts: list[bytes] = []
        self.due = self.first = 0.0
        self.busy = False
        self.fault = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, request: bytes, due: float) -> None:
        self.due, self.first, self.busy = due, 0.0, True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()
        self._parts.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        body, self._parts = b"".join(self._parts), []
        self.busy = False
        whole = status == 200 and self._workload.complete(body)
        if not whole:
            self.fault = f"{status} {body[:300]!r}"
        self._done(self, whole)

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.busy, self.fault = False, f"connection lost ({error!r})"
            self._done(self, False)


class _Run:
    """What both loops share: connections, counting, and the window that counts."""

    def __init__(self, server: Server, workload: Workload, mark: Callable[[], None]) -> None:
        self._server, self._workload, self._mark = server, workload, mark
        self.requests = server.requests(workload)
        self.result = Result()
        self.running = True
        self.measuring = False
        self.in_flight = 0
        self._window_began = 0.0

    async def connect(self, done: Callable[[_Client, bool], None]) -> _Client:
        loop = asyncio.get_running_loop()
        made = await loop.create_connection(
            lambda: _Client(done, self._workload), "127.0.0.1", self._server.port
        )
        return made[1]

    def count(self, client: _Client, whole: bool) -> None:
        result = self.result
        self.in_flight -= 1
        if not whole:
            result.failed += 1
            if len(result.faults) < 3:
                result.faults.append(client.fault)
            return
        result.completed += 1
        if self.measuring:
            result.measured += 1
            result.latencies.append(time.perf_counter() - client.due)
            result.first_bytes.append(client.first - client.due)

    async def window(self, warm_s: float, run_s: float) -> None:
        """Let the load warm up, then measure; `mark` is called as the window opens and as it closes."""
        await asyncio.sleep(warm_s)
        gc.collect()
        gc.freeze()
        gc.disable()
        self._mark()
        began, self.measuring = time.perf_counter(), True
        await asyncio.sleep(run_s)
        self.measuring = self.running = False
        self.result.window_s = time.perf_counter() - began
        self._mark()
        gc.enable()
        gc.unfreeze()
        give_up = time.perf_counter() + GIVE_UP_S
        while self.in_flight and time.perf_counter() < give_up:  # noqa: ASYNC110 - nothing to wait on is cheaper
            await asyncio.sleep(0.02)
        if self.in_flight:
            self.result.faults.append(f"{self.in_flight} requests never came back")
            self.result.failed += self.in_flight
        self.result.latencies.sort()
        self.result.first_bytes.sort()


async def closed_loop(
    server: Server,
    workload: Workload,
    mark: Callable[[], None],
    *,
    connections: int,
    warm_s: float,
    run_s: float,
) -> Result:
    """Every connection sends its next request as soon as its last is answered."""
    run = _Run(server, workload, mark)

    def fire(client: _Client) -> None:
        run.in_flight += 1
        client.send(next(run.requests), time.perf_counter())

    def done(client: _Client, whole: bool) -> None:
        run.count(client, whole)
        if run.running and not client.transport.is_closing():
            fire(client)

    clients = [await run.connect(done) for _ in range(connections)]
    for client in clients:
        fire(client)
    await run.window(warm_s, run_s)
    for client in clients:
        client.transport.abort()
    return run.result


async def open_loop(
    server: Server, workload: Workload, mark: Callable[[], None], *, rate: float, warm_s: float, run_s: float
) -> Result:
    """`rate` requests a second fall due, evenly spaced. Each takes a free connection, or opens one, or
    waits."""
    run = _Run(server, workload, mark)
    loop = asyncio.get_running_loop()
    free: list[_Client] = []
    everyone: list[_Client] = []
    waiting: deque[float] = deque()

    def done(client: _Client, whole: bool) -> None:
        run.count(client, whole)
        if client.transport.is_closing():
            everyone.remove(client)
        elif waiting:
            client.send(next(run.requests), waiting.popleft())
        else:
            free.append(client)

    async def grow() -> None:
        client = await run.connect(done)
        everyone.append(client)
        if waiting:
            client.send(next(run.requests), waiting.popleft())
        else:
            free.append(client)

    for _ in range(16):
        await grow()
    growing: set[asyncio.Task[None]] = set()
    timer = _timer(1 / rate)
    began = time.perf_counter()
    fallen_due = 0

    def tick() -> None:
        nonlocal fallen_due
        for _ in range(struct.unpack("Q", os.read(timer, 8))[0]):
            fallen_due += 1
            if not run.running:
                return
            run.in_flight += 1
            due = began + fallen_due / rate
            if free:
                free.pop().send(next(run.requests), due)
                continue
            waiting.append(due)
            if len(everyone) + len(growing) < MAX_CONNECTIONS:
                task = loop.create_task(grow())
                growing.add(task)
                task.add_done_callback(growing.discard)

    loop.add_reader(timer, tick)
    try:
        await run.window(warm_s, run_s)
    finally:
        loop.remove_reader(timer)
        os.close(timer)
    await asyncio.gather(*growing)
    for client in everyone:
        client.transport.abort()
    return run.result


def _timer(interval_s: float) -> int:
    """A file descriptor that becomes readable every `interval_s`: the event loop's own timers know
    milliseconds only."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.timerfd_create(1, os.O_NONBLOCK))  # CLOCK_MONOTONIC
    seconds, nanoseconds = divmod(round(interval_s * 1e9), 10**9)
    spec = struct.pack("4q", seconds, nanoseconds, seconds, nanoseconds)
    if descriptor < 0 or libc.timerfd_settime(descriptor, 0, spec, None) != 0:
        raise OSError(ctypes.get_errno(), "timerfd")
    return descriptor
