"""What the supervisor tells a worker while both run: JSON lines over a Unix socket of the run directory.

    {"do": "prepare", "config": "/run/…yaml", "sockets": {…}}   →  {} or {"refused": "why"}
    {"do": "commit", "restart_needed": 0}                       →  {}      what was prepared last comes into force
    {"do": "count", "outcome": "refused"}                       →  {}      for the metric
    {"do": "older"}                                             →  {"older": 0}   generations that still answer
    {"do": "leave"}                                             →  {}      `/readyz` says 503 from now on

A worker that is asked to prepare changes nothing that is in force; so all can be asked before any is changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

__all__ = ["WorkerAway", "ask", "listening"]

ANSWER_S = 120.0
"""An artefact of many megabytes takes a while to load."""

Order = Mapping[str, Any]
Handler = Callable[[Order], Awaitable[dict[str, Any]]]


class WorkerAway(Exception):
    """The worker does not listen, or went away without an answer."""


async def ask(path: Path, order: Order) -> dict[str, Any]:
    """The answer of the worker that listens at `path`. Raises `WorkerAway`."""
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(orjson.dumps(order) + b"\n")
                answer = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError) as error:
        raise WorkerAway(f"no answer: {type(error).__name__}") from error
    if not answer:
        raise WorkerAway("it went away")
    told: dict[str, Any] = orjson.loads(answer)
    return told


@asynccontextmanager
async def listening(path: Path, handler: Handler) -> AsyncIterator[None]:
    """Listen at `path`; one order a connection. Only the supervisor's user can reach the socket."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            if line:
                writer.write(orjson.dumps(await handler(orjson.loads(line))) + b"\n")
                await writer.drain()
        except ConnectionError:
            pass  # the supervisor is gone, and we shall be soon
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, str(path))
    try:
        yield
    finally:
        server.close()
