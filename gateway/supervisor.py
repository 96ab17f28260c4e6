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
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import multiprocess

from backends.openai_http import Deployment
from engines import preload
from engines.weights import Terminal, WeightsError, ensure
from gateway import control
from gateway.admin import admin_server
from gateway.admin_api import AdminApi
from gateway.child import Child, Program, first_of
from gateway.config_source import ConfigSource
from gateway.ledger.rolling_up import RollingUp
from gateway.local_weights import wanted
from gateway.open_door import OPEN, anybody_may_ask
from gateway.open_files import ENOUGH, raise_limit
from gateway.ports import bind
from gateway.prices import UNPRICED, unpriced
from gateway.ready_line import ready_line
from gateway.reloadable import REPLACEABLE
from gateway.reloader import Helper, InForce, Reloader
from gateway.run_dir import MULTIPROC_DIR, RunDir
from gateway.service_manager import given_listener, notify
from protocol.errors import SettingsError
from protocol.log_pipe import LogPipe, start_logging
from protocol.settings import OpenAIModel, ServerSettings, Settings

__all__ = ["serve"]

log = logging.getLogger("chorus.supervisor")

BACKLOG = 2048
WORKER_GRACE_S = 5.0
"""How much longer than its answers a worker may take to end."""
HELPER_GRACE_S = 10.0
HELPER_START_S = 120.0


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
    files = raise_limit()
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
        try:
            ensure(wanted(settings), progress=Terminal())
        except WeightsError as error:
            raise SettingsError(str(error)) from error
        public.listen(BACKLOG)
        host, port = public.getsockname()[:2]  # a given listener's are its own
        server = server.model_copy(update={"host": host, "port": port})
        source = ConfigSource(config)
        pipe = start_logging(settings, "supervisor")
        _warn(settings, files, host)
        try:
            return asyncio.run(
                _Supervisor(settings, server, source, run_dir, metrics, pipe).run(public, admin)
            )
        finally:
            pipe.close()


def _warn(settings: Settings, files: int, host: str) -> None:
    """Tell what works, and an operator would rather know. `files`: how many may be open; `host` is listened on."""
    if anybody_may_ask(settings, host):
        log.warning("whoever reaches %s may ask models: there is no key. %s", host, OPEN)
    if files < ENOUGH:
        log.warning(
            "only %d files may be open, two a request in flight: raise the hard limit "
            "(LimitNOFILE= in the systemd unit, --ulimit nofile= of the container)",
            files,
        )
    for name in unpriced(settings):
        log.warning("models.%s has no price and none is known: %s", name, UNPRICED.format(name=name))


class _Supervisor:
    """The processes, and what they are told (it is the reloader's `Processes`)."""

    def __init__(
        self,
        settings: Settings,
        server: ServerSettings,
        source: ConfigSource,
        run_dir: RunDir,
        metrics: Path,
        pipe: LogPipe,
    ) -> None:
        self._settings, self._server, self._source = settings, server, source
        self._run_dir, self._metrics, self._pipe = run_dir, metrics, pipe
        self._stop, self._at_once = asyncio.Event(), asyncio.Event()
        self._workers: list[Child] = []
        self._helpers: dict[str, Child] = {}
        self._sockets = run_dir.sockets()
        self._replaced = 0
        self._keeping: dict[asyncio.Task[None], Child] = {}
        self._reloader = Reloader(source, source.read(), run_dir, self)

    async def run(self, public: socket.socket, admin: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._reloader.ask)
        config = self._reloader.boot_path
        self._helpers = {
            name: Child(self._helper(name, self._sockets[name], config), self._pipe.relay)
            for name in _helper_names(self._settings)
        }
        self._workers = [
            Child(self._worker(i, public), self._pipe.relay) for i in range(self._server.workers)
        ]
        for child in (*self._workers, *self._helpers.values()):
            self._keep(child)
        reloading: asyncio.Task[None] | None = None
        rolling_up = RollingUp.of(self._settings)
        own = rolling_up.exposition if rolling_up is not None else bytes
        try:
            async with admin_server(
                admin, self.status, self._metrics, self._admin_api(), self._engine_socket, own
            ):
                await self._until_ready()
                if not self._stop.is_set():
                    self._say_ready()
                    notify(os.environ, "READY=1")
                    reloading = asyncio.create_task(self._reloader.run())
                    if rolling_up is not None:
                        rolling_up.start()
                await self._stop.wait()
                notify(os.environ, "STOPPING=1")
                if reloading is not None:
                    reloading.cancel()
                await self._drain(public)
        finally:
            # In order: what answers the workers ends after them, also when we leave by an error.
            await _stop_all(self._workers, 0.0)
            if reloading is not None:
                await asyncio.gather(reloading, return_exceptions=True)
            if rolling_up is not None:
                await asyncio.to_thread(rolling_up.close)
            grace_s = 0.0 if self._at_once.is_set() else HELPER_GRACE_S
            await _stop_all(list(self._keeping.values()), grace_s)
            await asyncio.gather(*self._keeping)
        return 0

    def _engine_socket(self) -> Path | None:
        """Where the engine host is asked, if there is one."""
        return self._sockets["engines"] if "engines" in self._helpers else None

    async def _drain(self, public: socket.socket) -> None:
        """Say that we leave, go on accepting while load balancers learn of it, then let answers end; all this for as
        long as the settings say, and until a second signal."""
        server = self._reloader.in_force.settings.server
        orders = [self._run_dir.orders(worker.program.name) for worker in self._workers]
        leaving = [control.ask(path, {"do": "leave"}) for path in orders]
        await first_of(asyncio.gather(*leaving, return_exceptions=True), self._at_once.wait())
        if server.unready_s:
            await first_of(asyncio.sleep(server.unready_s), self._at_once.wait())
        # Nobody accepts any more: who connects now is refused, or waits for our successor where a service
        # manager holds the socket, instead of waiting here for nothing.
        public.close()
        await first_of(_stop_all(self._workers, server.drain_s + WORKER_GRACE_S), self._at_once.wait())

    def _say_ready(self) -> None:
        told = ready_line(self._settings, self._server)
        if self._pipe.json:  # where machines read, there is nobody to paste a line for
            log.info("%s", told.partition("\n")[0])
        else:
            sys.stdout.write(told + "\n")
            sys.stdout.flush()

    def _told_to_stop(self) -> None:
        if self._stop.is_set():
            log.warning("told to stop again: what is being answered is cut off")
            self._at_once.set()
        self._stop.set()

    def status(self) -> dict[str, Any]:
        """What `/readyz` tells: every component's state; "ready" while some worker and every helper is; and the config
        in force."""
        helpers = self._helpers.values()
        components = {child.program.name: child.report() for child in (*self._workers, *helpers)}
        ready = any(child.state == "ready" for child in self._workers)
        ready = ready and all(child.state == "ready" for child in helpers)
        word = "draining" if self._stop.is_set() else "ready" if ready else "not ready"
        return {"status": word, "components": components, "config": self._reloader.report()}

    def _admin_api(self) -> AdminApi | None:
        """None where nothing can be kept: then there are no keys to administer either."""
        try:
            return AdminApi(
                self._settings,
                server=self._server,
                in_force=lambda: self._reloader.in_force.settings,
                status=self.status,
                metrics=self._metrics,
            )
        except SettingsError as error:
            log.warning("no admin API: %s", error)
            return None

    # ------------------------------------------------------------------------------------------------------
    # what the reloader asks for

    @property
    def workers(self) -> Sequence[Child]:
        return self._workers

    def sockets(self) -> dict[str, Path]:
        return dict(self._sockets)

    async def next_helper(self, name: str, settings: Settings, config: Path) -> Helper | None:
        if not REPLACEABLE[name](settings):
            return None
        try:
            await asyncio.to_thread(ensure, wanted(settings), progress=Terminal())
        except WeightsError as error:
            raise SettingsError(str(error)) from error
        self._replaced += 1
        uds = self._run_dir.socket(name, self._replaced)
        child = Child(self._helper(name, uds, config), self._pipe.relay)
        self._keep(child)
        try:
            async with asyncio.timeout(HELPER_START_S):
                await child.first_ready.wait()
        except BaseException as error:
            await child.stop(0.0)
            if isinstance(error, TimeoutError):
                raise SettingsError(f"The {name} process did not start with the new config.") from None
            raise
        if child.state == "failed":
            raise SettingsError(f"The {name} process cannot start with the new config; it says why above.")
        return Helper(child, uds)

    def take_over(self, in_force: InForce) -> None:
        self._pipe.learn(in_force.settings)
        for number, worker in enumerate(self._workers):
            worker.program = replace(worker.program, argv=self._worker_argv(number))
        for name in REPLACEABLE:
            if (helper := self._helpers.get(name)) is not None:
                argv = self._helper_argv(name, self._sockets[name], in_force.path)
                helper.program = replace(helper.program, argv=argv)

    def replace_helper(self, name: str, helper: Helper | None) -> Child | None:
        old = self._helpers.pop(name, None)
        if helper is not None:
            self._helpers[name], self._sockets[name] = helper.child, helper.uds
        return old

    # ------------------------------------------------------------------------------------------------------
    # what runs

    def _keep(self, child: Child) -> None:
        task = asyncio.create_task(child.keep())
        self._keeping[task] = child
        task.add_done_callback(self._keeping.pop)

    async def _until_ready(self) -> None:
        """Wait for every child, or for the order to stop. Raises `SettingsError` when a child refuses the
        config."""
        stopped = asyncio.create_task(self._stop.wait())
        children = [*self._workers, *self._helpers.values()]
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

    def _helper(self, name: str, uds: Path, config: Path) -> Program:
        probe = Deployment(name, OpenAIModel(base_url=f"unix://{uds}", model=name))

        async def healthy() -> bool:
            return await probe.healthy()

        return Program(
            name,
            self._helper_argv(name, uds, config),
            healthy,
            environ=preload.environment(os.environ) if name == "engines" else {},
            ended=lambda pid: uds.unlink(missing_ok=True),
            closed=probe.close,
        )

    def _helper_argv(self, name: str, uds: Path, config: Path) -> tuple[str, ...]:
        module = {
            "engines": "engines", "embedder": "gateway.embedder_host", "hosted": "gateway.hosted_host"
        }[name]  # fmt: skip
        base = ("--base", str(self._source.base))
        return (sys.executable, "-m", module, str(config), *base, "--uds", str(uds))

    def _worker(self, number: int, public: socket.socket) -> Program:
        name = f"worker-{number}"
        mark, orders = self._run_dir.ready_mark(name), self._run_dir.orders(name)
        self._public_fd = public.fileno()

        async def ready() -> bool:
            return mark.exists()

        def ended(pid: int) -> None:
            mark.unlink(missing_ok=True)
            orders.unlink(missing_ok=True)
            multiprocess.mark_process_dead(pid, path=str(self._metrics))  # type: ignore[no-untyped-call]

        environ = {MULTIPROC_DIR: str(self._metrics)}
        fds = (self._public_fd,)
        return Program(name, self._worker_argv(number), ready, environ=environ, pass_fds=fds, ended=ended)

    def _worker_argv(self, number: int) -> tuple[str, ...]:
        in_force = self._reloader.in_force
        sockets = {name: str(path) for name, path in self._sockets.items()}
        told = {
            "--boot": str(self._reloader.boot_path),
            "--base": str(self._source.base),
            "--fd": str(self._public_fd),
            "--run-dir": str(self._run_dir.path),
            "--name": f"worker-{number}",
            "--workers": str(self._server.workers),
            "--sockets": json.dumps(sockets),
            "--restart-needed": str(len(in_force.restart_needed)),
        }
        options = (each for option in told.items() for each in option)
        return (sys.executable, "-m", "gateway.worker", str(in_force.path), *options)


def _helper_names(settings: Settings) -> Iterator[str]:
    """The helper processes that the config's models need."""
    if any(model.engine for model in settings.models.values()):
        yield "engines"
    if any(model.embedder for model in settings.models.values()):
        yield "embedder"
    if any(model.hosted for model in settings.models.values()):
        yield "hosted"


async def _stop_all(children: Iterable[Child], grace_s: float) -> None:
    await asyncio.gather(*(child.stop(grace_s) for child in children))
