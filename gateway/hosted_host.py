"""The hosted process: providers with a protocol of their own, through litellm, for all workers of a gateway.

    python -m gateway.hosted_host CONFIG --uds PATH

litellm takes 170 MB and two seconds to import, so it is loaded once, here, and by no worker. The environment is cleaned
before, so that nothing but the config decides where a request goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path

from backends.hosted.host import HostedHost, HostedModels
from backends.hosted.quiet import clean_environment, load_litellm
from gateway import helper
from protocol.settings import Settings

__all__ = ["main", "serve"]


async def serve(host: HostedHost, uds: Path) -> None:
    """Serve on the Unix socket `uds` until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with host.serving(uds):
        await stop.wait()


def _prepare(settings: Settings) -> helper.Serve:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    warnings.simplefilter("ignore")  # litellm's remarks on pydantic: an operator can do nothing about them
    deployments = [one for model in settings.models.values() for one in model.hosted or ()]
    clean_environment(os.environ, deployments)
    return partial(serve, HostedHost(HostedModels(load_litellm(), settings)))


def main() -> int:
    """The process's entry point; returns its exit status."""
    return helper.run("hosted_host", _prepare)


if __name__ == "__main__":
    sys.exit(main())
