"""`chorus serve`: the process that owns the ports and keeps the others alive.

    supervisor ── admin server (probes, merged metrics, status)
       ├── worker-0 … worker-N   the gateway, all accepting on one inherited socket
       ├── engines               the engine host, when the config has engine models
       ├── embedder              when it has embedding models of our own
       └── hosted                when it has models of providers that do not speak OpenAI's protocol

It imports neither torch nor a model. A child that ends is started again; the others go on meanwhile. When it
is told to stop, workers finish their answers before what answers them is stopped.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from prometheus_client import multiprocess

from backends.openai_http import Deployment
from engines.weights import Terminal, WeightsError, ensure
from gateway.admin import admin_server
from gateway.admin_api import AdminApi
from gateway.child import Child, Program
from gateway.local_weights import wanted
from gateway.ports import bind
from gateway.prices import UNPRICED, unpriced
from gateway.ready_line import ready_line
from gateway.run_dir import MULTIPROC_DIR, RunDir
from gateway.service_manager import given_listener, notify
from protocol.errors import SettingsError
from protocol.settings import OpenAIModel, ServerSettings, Settings

__all__ = ["serve"]

BACKLOG = 2048
DRAIN_S = 30
"""How long answers may go on after SIGTERM."""
WORKER_GRACE_S = DRAIN_S + 5.0
HELPER_GRACE_S = 10.0


def serve(
    settings: Settings,
    config: Path,
    *,
    host: str | None = None,
    port: int | None = None,
    workers: int | None = None,
    admin_port: int | None = None,
) -> int:
    """Serve `settings`, read from `config`, until SIGTERM or ctrl-C; returns the exit status.

    The keyword arguments override `settings.server`. Raises `SettingsError`, with the remedy, for what only
    the operator can mend: a taken port, weights that cannot be had, a config that a child refuses.
    """
    server = settings.server
    server = server.model_copy(
        update={
            "host": host or server.host,
            "port": port or server.port,
            "workers": workers or server.workers,
            "admin_port": admin_port or server.admin_port,
        }
    )
    with (
        given_listener(os.environ, os.getpid()) or bind(server.host, server.port, "--port") as public,
        bind(server.admin_host, server.admin_port, "--admin-port") as admin,
        RunDir.fresh() as (run_dir, metrics),
    ):
        for name in unpriced(settings):
            sys.stderr.write(
                f"chorus: models.{name} has no price and none is known: {UNPRICED.format(name=name)}\n"
            )
        try:
            ensure(wanted(settings), progress=Terminal())
        except WeightsError as error:
            raise SettingsError(str(error)) from error
        public.listen(BACKLOG)
        host, port = public.getsockname()[:2]  # a given listener's are its own
        server = server.model_copy(update={"host": host, "port": port})
        return asyncio.run(_Supervisor(settings, server, config, run_dir, metrics).run(public, admin))


class _Supervisor:
    def __init__(
        self, settings: Settings, server: ServerSettings, config: Path, run_dir: RunDir, metrics: Path
    ) -> None:
        self._settings, self._server, self._config = settings, server, config
        self._run_dir, self._metrics = run_dir, metrics
        self._stop = asyncio.Event()
        self._workers: list[Child] = []
        self._helpers: list[Child] = []

    async def run(self, public: socket.socket, admin: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        probes = {name: self._probe(name) for name in _helper_names(self._settings)}
        self._helpers = [Child(self._helper(name, probe.healthy)) for name, probe in probes.items()]
        self._workers = [Child(self._worker(i, public)) for i in range(self._server.workers)]
        keeping = [asyncio.create_task(child.keep()) for child in (*self._workers, *self._helpers)]
        try:
            async with admin_server(admin, self.status, self._metrics, _admin_api(self._settings)):
                await self._until_ready()
                if not self._stop.is_set():
                    sys.stdout.write(ready_line(self._settings, self._server) + "\n")
                    sys.stdout.flush()
                    notify(os.environ, "READY=1")
                await self._stop.wait()
                notify(os.environ, "STOPPING=1")
                # Nobody accepts any more: who connects now is refused, or waits for our successor where a service
                # manager holds the socket, instead of waiting here for nothing.
                public.close()
                await _stop_all(self._workers, WORKER_GRACE_S)
        finally:
            # In order: what answers the workers ends after them, also when we leave by an error.
            await _stop_all(self._workers, 0.0)
            await _stop_all(self._helpers, HELPER_GRACE_S)
            await asyncio.gather(*keeping)
            for probe in probes.values():
                await probe.close()
        return 0

    def status(self) -> dict[str, Any]:
        """What `/readyz` tells: every component's state; "ready" while some worker and every helper is."""
        components = {child.program.name: child.report() for child in (*self._workers, *self._helpers)}
        ready = any(child.state == "ready" for child in self._workers)
        ready = ready and all(child.state == "ready" for child in self._helpers)
        word = "draining" if self._stop.is_set() else "ready" if ready else "not ready"
        return {"status": word, "components": components}

    async def _until_ready(self) -> None:
        """Wait for every child, or for the order to stop. Raises `SettingsError` when a child refuses the
        config."""
        stopped = asyncio.create_task(self._stop.wait())
        children = [*self._workers, *self._helpers]
        waits = {asyncio.create_task(child.first_ready.wait()) for child in children}
        while waits and not stopped.done():
            await asyncio.wait({*waits, stopped}, return_when=asyncio.FIRST_COMPLETED)
            waits = {wait for wait in waits if not wait.done()}
            for child in children:
                if child.state == "failed":
                    raise SettingsError(
                        f"{child.program.name} cannot start with this config; it says why above."
                    )
        for task in (*waits, stopped):
            task.cancel()

    def _probe(self, name: str) -> Deployment:
        return Deployment(name, OpenAIModel(base_url=f"unix://{self._run_dir.socket(name)}", model=name))

    def _helper(self, name: str, probe: Callable[[], Awaitable[bool]]) -> Program:
        module = {
            "engines": "engines", "embedder": "gateway.embedder_host", "hosted": "gateway.hosted_host"
        }[name]  # fmt: skip
        uds = self._run_dir.socket(name)
        argv = (sys.executable, "-m", module, str(self._config), "--uds", str(uds))
        return Program(name, argv, probe, ended=lambda pid: uds.unlink(missing_ok=True))

    def _worker(self, number: int, public: socket.socket) -> Program:
        name = f"worker-{number}"
        mark = self._run_dir.ready_mark(name)

        async def ready() -> bool:
            return mark.exists()

        def ended(pid: int) -> None:
            mark.unlink(missing_ok=True)
            multiprocess.mark_process_dead(pid, path=str(self._metrics))  # type: ignore[no-untyped-call]

        argv = (
            *(sys.executable, "-m", "gateway.worker", str(self._config)),
            *(
                "--fd",
                str(public.fileno()),
                "--run-dir",
                str(self._run_dir.path),
                "--name",
                name,
                "--drain-s",
                str(DRAIN_S),
            ),
        )
        environ = {MULTIPROC_DIR: str(self._metrics)}
        return Program(name, argv, ready, environ=environ, pass_fds=(public.fileno(),), ended=ended)


def _admin_api(settings: Settings) -> AdminApi | None:
    """None where nothing can be kept: then there are no keys to administer either."""
    try:
        return AdminApi(settings)
    except SettingsError as error:
        sys.stderr.write(f"chorus: no admin API: {error}\n")
        return None


def _helper_names(settings: Settings) -> Iterator[str]:
    """The helper processes that the config's models need."""
    if any(model.engine for model in settings.models.values()):
        yield "engines"
    if any(model.embedder for model in settings.models.values()):
        yield "embedder"
    if any(model.hosted for model in settings.models.values()):
        yield "hosted"


async def _stop_all(children: list[Child], grace_s: float) -> None:
    await asyncio.gather(*(child.stop(grace_s) for child in children))
