"""One child process kept alive: started, probed, restarted with a growing pause, stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from gateway import parent

__all__ = ["BAD_SETTINGS", "Child", "Program", "first_of", "pause_s"]

log = logging.getLogger("chorus.supervisor")

BAD_SETTINGS = 2
"""The exit status with which a child says that trying again cannot help: the config is wrong."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
HEALTHY_S = 60.0
"""A child that was ready this long starts over with the shortest pause."""
STARTING_POLL_S, POLL_S = 0.1, 1.0

State = Literal["starting", "ready", "unresponsive", "restarting", "failed", "stopped"]


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Program:
    """What to run. `probe` says whether it is ready; `ended` is told the process id after each end; `closed` is awaited
    when there will be no other."""

    name: str
    argv: Sequence[str]
    probe: Callable[[], Awaitable[bool]]
    environ: Mapping[str, str] = field(default_factory=dict)
    pass_fds: tuple[int, ...] = ()
    ended: Callable[[int], None] = lambda pid: None
    closed: Callable[[], Awaitable[None]] = _nothing


def pause_s(failures: int) -> float:
    """Seconds to wait before the next start after `failures` in a row: doubling, bounded."""
    return float(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 16)))


class Child:
    """Keeps `program` running while `keep` runs. `state` and `reason` say how it fares; `relay` is given its name and
    each line that it prints."""

    def __init__(self, program: Program, relay: Callable[[str, bytes], None]) -> None:
        self.program, self._relay = program, relay
        self.state: State = "starting"
        self.reason = ""
        self.restarts = 0
        self.first_ready = asyncio.Event()
        """Set when it was ready for the first time, or has failed for good."""
        self._process: Process | None = None
        self._ready_at: float | None = None
        self._stopping = False
        self._ended = asyncio.Event()

    def report(self) -> dict[str, Any]:
        """The state as JSON values."""
        pid = self._process.pid if self._process and self._process.returncode is None else None
        return {"state": self.state, "reason": self.reason, "restarts": self.restarts, "pid": pid}

    async def keep(self) -> None:
        """Run it, again and again, until stopped or its config turns out to be wrong."""
        failures = 0
        while not self._stopping:
            ready_s = await self._run_once()
            if self._stopping or self.state == "failed":
                break
            failures = 0 if ready_s > HEALTHY_S else failures + 1
            wait_s = pause_s(failures - 1)
            self.state, self.restarts = "restarting", self.restarts + 1
            log.warning("%s: %s; starting it again in %g s", self.program.name, self.reason, wait_s)
            await first_of(self._ended.wait(), asyncio.sleep(wait_s))
        if self.state != "failed":
            self.state = "stopped"
        await self.program.closed()

    async def stop(self, grace_s: float) -> None:
        """End it: SIGTERM, and SIGKILL after `grace_s` seconds."""
        self._stopping = True
        self._ended.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            log.warning("%s: did not end within %g s and is killed", self.program.name, grace_s)
            process.kill()
            await process.wait()

    async def _run_once(self) -> float:
        """One life of the process; returns the seconds for which it was ready."""
        loop = asyncio.get_running_loop()
        self.state, self._ready_at = "starting", None
        self._process = process = await asyncio.create_subprocess_exec(
            *self.program.argv,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.program.environ},
            pass_fds=self.program.pass_fds,
            start_new_session=True,  # ctrl-C is for the supervisor, who ends its children in order
            preexec_fn=parent.dies_with(os.getpid()),
        )
        if self._stopping:
            process.kill()
        log = asyncio.create_task(self._relay_log(process))
        watch = asyncio.create_task(self._watch())
        status = await process.wait()
        watch.cancel()
        await log
        self.program.ended(process.pid)
        self.reason = _ending(status)
        if status == BAD_SETTINGS and not self.first_ready.is_set():
            self.state = "failed"
            self.first_ready.set()
        return 0.0 if self._ready_at is None else loop.time() - self._ready_at

    async def _watch(self) -> None:
        """Follow the probe for as long as the process lives."""
        while True:
            if await self.program.probe():
                if self._ready_at is None:
                    self._ready_at = asyncio.get_running_loop().time()
                self.state, self.reason = "ready", ""
                self.first_ready.set()
            elif self.state == "ready":
                self.state, self.reason = "unresponsive", "it runs but does not answer its probe"
            await asyncio.sleep(STARTING_POLL_S if self._ready_at is None else POLL_S)

    async def _relay_log(self, process: Process) -> None:
        """What it prints, line by line."""
        assert process.stdout is not None
        rest = b""
        while data := await process.stdout.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._relay(self.program.name, line)
        if rest:
            self._relay(self.program.name, rest)


def _ending(status: int) -> str:
    if status < 0:
        return f"it was ended by {signal.Signals(-status).name}"
    return f"it exited with status {status}"


async def first_of(*awaitables: Awaitable[Any]) -> None:
    """Wait until one of them is done; the others are cancelled."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
