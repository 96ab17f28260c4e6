"""What is left to do for the cache when a request has been answered and settled, beside all requests."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

__all__ = ["Keeping"]

MOST = 256
"""Answers on their way into the store at once. Beyond, answers are not kept: the store is slower than the models."""

FINISH_S = 1.0


class Keeping:
    """Answers on their way into a store. Nobody waits for them but `finish`."""

    def __init__(self) -> None:
        self._under_way: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Have an answer kept soon; or not at all."""
        if len(self._under_way) >= MOST:
            work.close()
            return
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def finish(self) -> None:
        """Wait for what has begun, for `FINISH_S` seconds."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=FINISH_S)
            for task in late:
                task.cancel()
