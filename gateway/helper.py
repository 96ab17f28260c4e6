"""A helper process: one model server for all workers of a gateway, which the supervisor starts and outlives.

    python -m gateway.NAME CONFIG [--base DIR] --uds PATH

It serves on a Unix socket until SIGTERM, or until its supervisor is gone.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from gateway import parent
from gateway.child import BAD_SETTINGS
from protocol.errors import SettingsError
from protocol.settings import Settings, load_settings

__all__ = ["Serve", "run"]

Serve = Callable[[Path], Coroutine[Any, Any, None]]
"""Serves on the Unix socket it is given, until SIGTERM."""


def run(name: str, prepare: Callable[[Settings], Serve]) -> int:
    """The process's life; returns its exit status. `prepare` loads what the settings name and may raise
    `SettingsError`."""
    parser = argparse.ArgumentParser(prog=f"gateway.{name}")
    parser.add_argument("config", type=Path)
    parser.add_argument("--base", type=Path, help="what paths in it are relative to; its folder by default")
    parser.add_argument("--uds", type=Path, required=True, help="the Unix socket to serve on")
    arguments = parser.parse_args()
    supervisor = os.getppid()
    try:
        serve = prepare(load_settings(arguments.config, arguments.base))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return BAD_SETTINGS
    asyncio.run(_bound(serve(arguments.uds), supervisor))
    return 0


async def _bound(serving: Coroutine[Any, Any, None], supervisor: int) -> None:
    bound = asyncio.create_task(parent.watch(supervisor))
    try:
        await serving
    finally:
        bound.cancel()
