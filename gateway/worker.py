"""One gateway worker: serves the application on a socket it inherits. Started by the supervisor.

python -m gateway.worker CONFIG --boot CONFIG --base DIR --fd N --run-dir DIR --name NAME --workers N
    --sockets JSON [--restart-needed N]

CONFIG is the config in force, under its digest's name; the one of `--boot` is what Chorus was started with, which
decides what cannot be reloaded.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import socket
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import uvicorn

from gateway import control, parent
from gateway.app import Gateway, make_app
from gateway.child import BAD_SETTINGS
from gateway.generation import Generation
from gateway.http_server import HttpServer
from gateway.public_tls import PublicTls, server_context
from gateway.reloadable import effective
from gateway.run_dir import RunDir
from protocol.errors import SettingsError
from protocol.log_pipe import start_logging
from protocol.settings import Settings, load_settings

__all__ = ["Worker", "main", "serve"]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a commit brings into force."""

    digest: str
    generation: Generation
    tls: ssl.SSLContext | None


class Worker:
    """`app` with its TLS, and how the supervisor changes both. `boot` decides what cannot be reloaded, `base` is what
    paths in configs are relative to; the file `ready` tells the digest of the config in force while requests are
    accepted."""

    def __init__(self, app: Gateway, settings: Settings, boot: Settings, base: Path, ready: Path) -> None:
        self.app, self._boot, self._base, self._ready = app, boot, base, ready
        self.drain_s = settings.server.drain_s
        self.tls = None if settings.server.tls is None else PublicTls(server_context(settings.server.tls))
        self._digest = ""
        self._prepared: _Prepared | None = None

    def serves(self, digest: str, restart_needed: int) -> None:
        """The config with this `digest` is in force."""
        self._digest = digest
        self.app.telemetry.config_is(digest, time.time(), restart_needed)

    def accepts(self, yes: bool) -> None:
        """Leave, or remove, the mark that requests are accepted."""
        if yes:
            self._ready.write_text(self._digest)
        else:
            self._ready.unlink(missing_ok=True)

    async def obey(self, order: control.Order) -> dict[str, Any]:
        """Carry out an `order` of the supervisor's."""
        match order["do"]:
            case "prepare":
                return await self._prepare(Path(order["config"]), order["sockets"])
            case "commit":
                self._commit(order["restart_needed"])
            case "count":
                self.app.telemetry.reloaded(order["outcome"])
            case "older":
                return {"older": self.app.older}
            case "leave":
                self.app.leaving = True
        return {}

    async def _prepare(self, config: Path, sockets: Mapping[str, str]) -> dict[str, Any]:
        def made() -> _Prepared:
            settings, _ = effective(self._boot, load_settings(config, self._base))
            tls = settings.server.tls
            generation = self.app.prepare(settings, {name: Path(path) for name, path in sockets.items()})
            return _Prepared(config.stem, generation, server_context(tls) if tls else None)

        try:
            # Beside the event loop: artefacts and certificates are read, and answers go on meanwhile.
            self._prepared = await asyncio.to_thread(made)
        except SettingsError as error:
            self._prepared = None
            return {"refused": error.message}
        return {}

    def _commit(self, restart_needed: int) -> None:
        prepared, self._prepared = self._prepared, None
        assert prepared is not None, "nothing was prepared"
        self.app.commit(prepared.generation)
        if self.tls is not None and prepared.tls is not None:
            self.tls.show(prepared.tls)
        self.drain_s = prepared.generation.settings.server.drain_s
        self.serves(prepared.digest, restart_needed)
        if self._ready.exists():
            self.accepts(True)


GARBAGE = 10_000
"""Objects that may be born, beyond those that died, before the collector looks at the young ones; Python's own
default is 700, which a dozen requests under way exceed."""


class _Server(uvicorn.Server):
    """Tells its worker while it accepts requests."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _spare_what_stays()
            self._worker.accepts(True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._worker.accepts(False)
        self.config.timeout_graceful_shutdown = self._worker.drain_s
        await super().shutdown(sockets)


def _spare_what_stays() -> None:
    """Have the garbage collector look at what requests leave behind, and not, again and again, at the modules and
    settings that stay; and less often, for requests leave hardly any cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 10, 20)


async def serve(worker: Worker, listener: socket.socket, *, orders: Path, supervisor: int) -> None:
    """Serve until SIGTERM; then finish what is being answered. Orders of the supervisor come at the Unix socket
    `orders`."""
    config = uvicorn.Config(
        worker.app,
        access_log=False,
        log_config=None,
        server_header=False,
        http=HttpServer,
        ws="none",
        proxy_headers=False,  # whom to believe is in the settings: gateway/generation.py
    )
    config.load()
    config.ssl = worker.tls.listening if worker.tls else None
    bound = asyncio.create_task(parent.watch(supervisor))
    try:
        async with control.listening(orders, worker.obey):
            await _Server(config, worker).serve(sockets=[listener])
    finally:
        bound.cancel()


def main() -> int:
    """The process's entry point; returns its exit status."""
    parser = argparse.ArgumentParser(prog="gateway.worker")
    parser.add_argument("config", type=Path)
    parser.add_argument("--boot", type=Path, required=True, help="the config that Chorus was started with")
    parser.add_argument("--base", type=Path, required=True, help="what paths in the configs are relative to")
    parser.add_argument("--fd", type=int, required=True, help="a listening socket")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument(
        "--workers", type=int, required=True, help="how many there are: limits are shared out"
    )
    parser.add_argument("--sockets", type=orjson.loads, required=True, help="process → its Unix socket; JSON")
    parser.add_argument("--restart-needed", type=int, default=0, help="settings that wait for a restart")
    arguments = parser.parse_args()
    supervisor = os.getppid()
    run_dir = RunDir(arguments.run_dir)
    try:
        boot = load_settings(arguments.boot, arguments.base)
        server = boot.server.model_copy(update={"workers": arguments.workers})
        boot = boot.model_copy(update={"server": server})
        settings, _ = effective(boot, load_settings(arguments.config, arguments.base))
        log = start_logging(settings, arguments.name)
        sockets = {name: Path(path) for name, path in arguments.sockets.items()}
        app = make_app(settings, sockets, log)
        worker = Worker(app, settings, boot, arguments.base, run_dir.ready_mark(arguments.name))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_SETTINGS
    worker.serves(arguments.config.stem, arguments.restart_needed)
    listener = socket.socket(fileno=arguments.fd)
    orders = run_dir.orders(arguments.name)
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(serve(worker, listener, orders=orders, supervisor=supervisor))
    log.close()
    return 0


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    sys.exit(main())
