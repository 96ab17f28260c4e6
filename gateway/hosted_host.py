"""The hosted process: providers with a protocol of their own, through litellm, for all workers of a gateway.

    python -m gateway.hosted_host CONFIG --uds PATH

litellm takes 170 MB and two seconds to import, so it is loaded once, here, and by no worker. The environment is cleaned
before, so that nothing but the config decides where a request goes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import warnings
from pathlib import Path

from backends.hosted.host import HostedHost, HostedModels
from backends.hosted.quiet import clean_environment, load_litellm
from gateway import parent
from gateway.child import BAD_SETTINGS
from protocol.errors import SettingsError
from protocol.settings import load_settings

__all__ = ["main", "serve"]


async def serve(host: HostedHost, uds: Path, supervisor: int) -> None:
    """Serve on the Unix socket `uds` until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    bound = asyncio.create_task(parent.watch(supervisor))
    try:
        async with host.serving(uds):
            await stop.wait()
    finally:
        bound.cancel()


def main() -> int:
    """The process's entry point; returns its exit status."""
    parser = argparse.ArgumentParser(prog="gateway.hosted_host")
    parser.add_argument("config", type=Path)
    parser.add_argument("--base", type=Path, help="what paths in it are relative to; its folder by default")
    parser.add_argument("--uds", type=Path, required=True, help="the Unix socket to serve on")
    arguments = parser.parse_args()
    supervisor = os.getppid()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.simplefilter("ignore")  # litellm's remarks on pydantic: an operator can do nothing about them
    try:
        settings = load_settings(arguments.config, arguments.base)
        deployments = [one for model in settings.models.values() for one in model.hosted or ()]
        clean_environment(os.environ, deployments)
        host = HostedHost(HostedModels(load_litellm(), settings))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_SETTINGS
    asyncio.run(serve(host, arguments.uds, supervisor))
    return 0


if __name__ == "__main__":
    sys.exit(main())
