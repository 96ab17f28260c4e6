"""The engine host's metrics, for the page that the admin port shows of a whole gateway."""

from __future__ import annotations

from pathlib import Path

import aiohttp

__all__ = ["engine_metrics"]

PATIENCE_S = 1.0
"""A host that is loading, or in a long step, has none at the moment: the page must not wait for it."""


async def engine_metrics(uds: Path | None) -> bytes:
    """What the host on this socket exposes; nothing without a host, or while it does not answer."""
    if uds is None:
        return b""
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(uds)), timeout=timeout) as session,
            session.get("http://engines/metrics") as told,
        ):
            return await told.read() if told.status == 200 else b""
    except (aiohttp.ClientError, OSError, TimeoutError):
        return b""
