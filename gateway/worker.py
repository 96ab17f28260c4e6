"""One gateway worker: serves the application on a socket it inherits. Started by the supervisor.

python -m gateway.worker CONFIG --fd N --run-dir DIR --name NAME --drain-s SECONDS
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import socket
import sys
from pathlib import Path

import uvicorn

from gateway import parent
from gateway.app import Gateway, make_app
from gateway.http_server import HttpServer
from gateway.run_dir import RunDir
from protocol.errors import SettingsError
from protocol.settings import load_settings

__all__ = ["main", "serve"]


GARBAGE = 10_000
"""Objects that may be born, beyond those that died, before the collector looks at the young ones; Python's own
default is 700, which a dozen requests under way exceed."""


class _Server(uvicorn.Server):
    """Leaves a mark while it accepts requests."""

    def __init__(self, config: uvicorn.Config, ready: Path) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _spare_what_stays()
            self._ready.touch()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ready.unlink(missing_ok=True)
        await super().shutdown(sockets)


def _spare_what_stays() -> None:
    """Have the garbage collector look at what requests leave behind, and not, again and again, at the modules and
    settings that stay; and less often, for requests leave hardly any cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 10, 20)


async def serve(app: Gateway, listener: socket.socket, *, ready: Path, drain_s: int, supervisor: int) -> None:
    """Serve until SIGTERM; then finish what is being answered. The file `ready` exists while requests are
    accepted."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        server_header=False,
        http=HttpServer,
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=drain_s,
    )
    bound = asyncio.create_task(parent.watch(supervisor))
    try:
        await _Server(config, ready).serve(sockets=[listener])
    finally:
        bound.cancel()


def main() -> int:
    """The process's entry point; returns its exit status."""
    parser = argparse.ArgumentParser(prog="gateway.worker")
    parser.add_argument("config", type=Path)
    parser.add_argument("--fd", type=int, required=True, help="a listening socket")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--drain-s", type=int, required=True, help="how long answers may go on after SIGTERM")
    arguments = parser.parse_args()
    supervisor = os.getppid()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run_dir = RunDir(arguments.run_dir)
    try:
        app = make_app(load_settings(arguments.config), run_dir.sockets())
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    listener = socket.socket(fileno=arguments.fd)
    ready = run_dir.ready_mark(arguments.name)
    with asyncio.Runner(loop_factory=_loop) as runner:
        runner.run(serve(app, listener, ready=ready, drain_s=arguments.drain_s, supervisor=supervisor))
    return 0


def _loop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


if __name__ == "__main__":
    sys.exit(main())
