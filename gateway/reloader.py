"""A changed config brought into force while Chorus serves: all workers or none.

read      the file, and all that it names; what cannot be read or is no config is refused
keep      what needs a restart (gateway/reloadable.py), and say so
helpers   other embedding models, or hosted providers, get a process of their own beside the old one
prepare   every worker makes its next generation and says whether it could
commit    every worker lets it answer what comes from then on; a worker that starts later starts with it
retire    the old helper ends when no generation of before asks it any more
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gateway import control
from gateway.child import Child
from gateway.config_source import Config, ConfigSource
from gateway.reloadable import REPLACEABLE, effective
from gateway.run_dir import RunDir
from protocol.errors import SettingsError
from protocol.settings import Settings

__all__ = ["Helper", "InForce", "Processes", "Reloader"]

log = logging.getLogger("chorus.gateway")

LOOK_S = 1.0
"""How often the files are looked at. A change is taken up when they have stayed as they are for as long."""
RETIRE_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class InForce:
    """The config in force: its copy in the run directory, what of the file needs a restart, and since when."""

    digest: str
    path: Path
    settings: Settings
    restart_needed: tuple[str, ...]
    since: float


@dataclass(frozen=True, slots=True)
class Helper:
    """A helper process and the socket it serves on."""

    child: Child
    uds: Path


class Processes(Protocol):
    """What a reload needs of the supervisor."""

    @property
    def workers(self) -> Sequence[Child]: ...

    def sockets(self) -> dict[str, Path]:
        """Where our own processes serve."""

    async def next_helper(self, name: str, settings: Settings, config: Path) -> Helper | None:
        """A ready process of the kind `name` for `settings`; None when they need none. Raises `SettingsError`."""

    def take_over(self, in_force: InForce) -> None:
        """Processes that start from now on start with the config in force."""

    def replace_helper(self, name: str, helper: Helper | None) -> Child | None:
        """Let it take the place of the one that is returned, which still runs."""


class _NobodyThere(Exception):
    """No worker can say whether a config is good."""


class Reloader:
    """Reloads `source` into `processes`; `boot` is what they started with."""

    def __init__(self, source: ConfigSource, boot: Config, run_dir: RunDir, processes: Processes) -> None:
        self._source, self._boot, self._run_dir, self._processes = source, boot.settings, run_dir, processes
        path = self._kept(boot)
        self.in_force = InForce(boot.digest, path, boot.settings, (), time.time())
        self.boot_path = path
        self._refused_at: float | None = None
        self._asked = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()

    def ask(self) -> None:
        """Reload soon, whether or not anything seems to have changed."""
        self._asked.set()

    def report(self) -> dict[str, Any]:
        """For `/readyz`: JSON values, no secrets."""
        told = self.in_force
        return {
            "digest": told.digest,
            "since": round(told.since, 3),
            "age_s": round(time.time() - told.since, 1),
            "restart_needed": list(told.restart_needed),
            "refused_at": self._refused_at,
        }

    async def run(self) -> None:
        """Until cancelled: reload when asked, and when a change has settled."""
        # Settling: what changed since the start's own reading has not been seen.
        seen, settling = await asyncio.to_thread(self._source.glance), True
        try:
            while True:
                asked = await self._wait()
                now = await asyncio.to_thread(self._source.glance)
                changed, seen = now != seen, now
                watched = self.in_force.settings.server.watch_config
                due = asked or (watched and settling and not changed)
                settling = (changed or settling) and not due
                if due and not await self._reload(asked):
                    settling = True  # again, when there is somebody
                    await asyncio.sleep(LOOK_S)
                    if asked:
                        self.ask()
                await self._catch_up()
        finally:
            for task in self._retiring:
                task.cancel()
            await asyncio.gather(*self._retiring, return_exceptions=True)

    async def _wait(self) -> bool:
        """Whether a reload was asked for within the next second."""
        try:
            async with asyncio.timeout(LOOK_S):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _reload(self, asked: bool) -> bool:
        """Try once; False when nobody was there to try it on."""
        anew: dict[str, Helper | None] = {}
        path: Path | None = None
        try:
            wanted = await asyncio.to_thread(self._source.read)
            if wanted.digest == self.in_force.digest:
                if asked:
                    log.info("the config has not changed")
                return True
            settings, kept = effective(self._boot, wanted.settings)
            path = self._kept(wanted)
            for name, models in REPLACEABLE.items():
                if models(settings) != models(self.in_force.settings):
                    anew[name] = await self._processes.next_helper(name, settings, path)
            sockets = self._processes.sockets() | {name: one.uds for name, one in anew.items() if one}
            ready = await self._prepared(path, sockets)
        except SettingsError as error:
            await self._abandon(anew, path)
            self._refused_at = time.time()
            await self._count("refused")
            log.warning("the new config is refused, and the old one stays in force: %s", error.message)
            return True
        except _NobodyThere:
            await self._abandon(anew, path)
            return False
        before = self.in_force
        self.in_force = InForce(wanted.digest, path, settings, kept, time.time())
        self._refused_at = None
        old = [self._processes.replace_helper(name, helper) for name, helper in anew.items()]
        self._processes.take_over(self.in_force)
        await asyncio.gather(*(self._commit(worker) for worker in ready))
        if before.path not in (self.boot_path, path):
            before.path.unlink(missing_ok=True)
        await self._count("applied")
        log.info("a new config is in force (%s)", wanted.digest[:12])
        if kept:
            log.warning("needs a restart: %s", ", ".join(kept))
        for child in filter(None, old):
            task = asyncio.create_task(self._retire(child))
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)
        return True

    async def _prepared(self, path: Path, sockets: Mapping[str, Path]) -> list[Child]:
        """The workers that could make it. Raises `SettingsError` when one could not, `_NobodyThere`."""
        order = {
            "do": "prepare",
            "config": str(path),
            "sockets": {name: str(each) for name, each in sockets.items()},
        }
        workers = [worker for worker in self._processes.workers if worker.state == "ready"]
        answers = await asyncio.gather(*(self._ask(worker, order) for worker in workers))
        for answer in answers:
            if answer is not None and "refused" in answer:
                raise SettingsError(answer["refused"])
        ready = [worker for worker, answer in zip(workers, answers, strict=True) if answer is not None]
        if not ready:
            raise _NobodyThere
        return ready

    async def _commit(self, worker: Child) -> None:
        await self._ask(worker, {"do": "commit", "restart_needed": len(self.in_force.restart_needed)})

    async def _catch_up(self) -> None:
        """A worker that was starting during a reload may serve the config of before."""
        for worker in self._processes.workers:
            mark = self._run_dir.ready_mark(worker.program.name)
            try:
                behind = mark.read_text() not in ("", self.in_force.digest)
            except OSError:
                continue
            if behind and worker.state == "ready":
                order = {"do": "prepare", "config": str(self.in_force.path)}
                sockets = {name: str(path) for name, path in self._processes.sockets().items()}
                answer = await self._ask(worker, {**order, "sockets": sockets})
                if answer is not None and "refused" not in answer:
                    await self._commit(worker)

    async def _retire(self, helper: Child) -> None:
        """End the old helper once nobody asks it any more, or after the time that answers may take to drain."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self.in_force.settings.server.drain_s
        while loop.time() < until:
            answers = [await self._ask(worker, {"do": "older"}) for worker in self._processes.workers]
            if not any(answer and answer["older"] for answer in answers):
                break
            await asyncio.sleep(RETIRE_POLL_S)
        await helper.stop(10.0)

    async def _abandon(self, anew: Mapping[str, Helper | None], path: Path | None) -> None:
        for helper in filter(None, anew.values()):
            await helper.child.stop(0.0)
        if path is not None and path not in (self.boot_path, self.in_force.path):
            path.unlink(missing_ok=True)  # noqa: ASYNC240 - one name in a folder of our own

    async def _count(self, outcome: str) -> None:
        """One worker counts for all: the metrics of all are added up."""
        for worker in self._processes.workers:
            if await self._ask(worker, {"do": "count", "outcome": outcome}) is not None:
                return

    async def _ask(self, worker: Child, order: control.Order) -> dict[str, Any] | None:
        """The worker's answer; None when it is away: then it starts anew, with the config in force."""
        try:
            return await control.ask(self._run_dir.orders(worker.program.name), order)
        except control.WorkerAway:
            return None

    def _kept(self, config: Config) -> Path:
        """A copy that nobody changes while processes read it."""
        path = self._run_dir.config(config.digest)
        path.write_text(config.text, encoding="utf-8")
        return path
