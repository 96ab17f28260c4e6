"""Texts of concurrent requests embedded together.

A batch costs little more than its longest text, so whatever arrives within a short window shares one; the
window only opens when nothing is running, and while a batch runs the next one gathers by itself. Vectors are
cached: routers see the same questions again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from protocol.errors import UpstreamUnavailable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EmbeddingBatches", "Vector"]

Vector = tuple["NDArray[np.float32]", int]
"""An embedding, shape (dimensions,), and the tokens that were read for it."""

EmbedCounted = Callable[[Sequence[str]], tuple["NDArray[np.float32]", "NDArray[np.int64]"]]

WINDOW_S = 0.002
CACHED = 4096
MAX_WAITING = 16_384


class EmbeddingBatches:
    """`embed` maps texts to (vectors, token counts); it runs in a thread, one batch of at most `max_batch` at
    a time.

    `run` must be running as a task for `embed_all` to make progress.
    """

    def __init__(
        self, embed: EmbedCounted, *, max_batch: int, window_s: float = WINDOW_S, cached: int = CACHED
    ) -> None:
        self._embed, self._max_batch, self._window_s = embed, max_batch, window_s
        self._cache: OrderedDict[str, Vector] = OrderedDict()
        self._cached = cached
        self._waiting: OrderedDict[str, asyncio.Future[Vector]] = OrderedDict()
        self._arrived = asyncio.Event()

    async def embed_all(self, texts: Sequence[str]) -> list[Vector]:
        """The vectors of `texts`, in order. Raises `UpstreamUnavailable` when too many texts wait already."""
        known = {text: vector for text in texts if (vector := self._recall(text)) is not None}
        awaited = {text: self._enqueue(text) for text in texts if text not in known}
        for text, future in awaited.items():
            # Shielded, because another request may wait for the same text.
            known[text] = await asyncio.shield(future)
        return [known[text] for text in texts]

    async def run(self) -> None:
        """Embed what arrives, batch by batch, until cancelled."""
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._window_s)
            while self._waiting:
                size = min(self._max_batch, len(self._waiting))
                await self._embed_batch(dict(self._waiting.popitem(last=False) for _ in range(size)))
            self._arrived.clear()

    async def _embed_batch(self, batch: dict[str, asyncio.Future[Vector]]) -> None:
        try:
            vectors, tokens = await asyncio.to_thread(self._embed, list(batch))
        except Exception as error:  # noqa: BLE001 - it goes to the callers; the next batch may be fine
            for future in batch.values():
                future.set_exception(error)
            return
        for (text, future), vector, count in zip(batch.items(), vectors, tokens, strict=True):
            self._remember(text, (vector, int(count)))
            future.set_result((vector, int(count)))

    def _enqueue(self, text: str) -> asyncio.Future[Vector]:
        if text not in self._waiting:
            if len(self._waiting) >= MAX_WAITING:
                raise UpstreamUnavailable("Too many texts are waiting to be embedded.")
            self._waiting[text] = asyncio.get_running_loop().create_future()
            self._arrived.set()
        return self._waiting[text]

    def _recall(self, text: str) -> Vector | None:
        if text in self._cache:
            self._cache.move_to_end(text)
        return self._cache.get(text)

    def _remember(self, text: str, vector: Vector) -> None:
        self._cache[text] = vector
        if len(self._cache) > self._cached:
            self._cache.popitem(last=False)
