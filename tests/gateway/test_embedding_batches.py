"""Texts of concurrent requests embedded together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from gateway.embedding_batches import MAX_WAITING, EmbeddingBatches
from protocol.errors import MethodError, UpstreamUnavailable


class Lengths:
    """Embeds a text as its length, and remembers the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> tuple[Any, Any]:
        self.batches.append(list(texts))
        if "bad" in texts:
            raise MethodError("no")
        lengths = np.array([[len(text)] for text in texts], dtype=np.float32)
        return lengths, lengths[:, 0].astype(np.int64)


@asynccontextmanager
async def running(embed: Callable[..., Any], **options: Any) -> AsyncIterator[EmbeddingBatches]:
    batches = EmbeddingBatches(embed, **{"max_batch": 8, **options})
    task = asyncio.create_task(batches.run())
    try:
        yield batches
    finally:
        task.cancel()


async def test_order_and_duplicates() -> None:
    """Vectors stand in the order of the texts; a text that comes twice is embedded once."""
    embed = Lengths()
    async with running(embed) as batches:
        told = await batches.embed_all(["aaa", "b", "aaa"])
    assert [(vector.tolist(), tokens) for vector, tokens in told] == [([3.0], 3), ([1.0], 1), ([3.0], 3)]
    assert embed.batches == [["aaa", "b"]]


async def test_concurrent_requests_share_a_batch() -> None:
    """Requests that arrive together are embedded together, up to the batch size."""
    embed = Lengths()
    async with running(embed, window_s=0.05) as batches:
        await asyncio.gather(*(batches.embed_all(["x" * i]) for i in range(1, 11)))
    assert [len(batch) for batch in embed.batches] == [8, 2]


async def test_cache() -> None:
    """What was embedded is not embedded again, until newer texts have pushed it out."""
    embed = Lengths()
    async with running(embed, cached=2) as batches:
        for text in ("a", "bb", "a", "ccc", "a", "bb"):
            await batches.embed_all([text])
    assert embed.batches == [["a"], ["bb"], ["ccc"], ["bb"]]


async def test_a_failed_batch_fails_alone() -> None:
    """An error reaches those whose batch it was; the next batch works."""
    async with running(Lengths()) as batches:
        with pytest.raises(MethodError):
            await batches.embed_all(["bad"])
        assert await batches.embed_all(["good"])


async def test_a_caller_who_leaves_harms_nobody() -> None:
    """Two callers wait for one text; one leaves, the other gets it."""
    async with running(Lengths(), window_s=0.05) as batches:
        leaving = asyncio.create_task(batches.embed_all(["x"]))
        staying = asyncio.create_task(batches.embed_all(["x"]))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying


async def test_too_many_wait() -> None:
    """The queue is bounded; the error says to come back."""
    batches = EmbeddingBatches(Lengths(), max_batch=8)
    with pytest.raises(UpstreamUnavailable):
        await batches.embed_all([str(i) for i in range(MAX_WAITING + 1)])
