"""Estimates of single queries, as a running gateway asks for them: in time, and each text only once."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from protocol.errors import ChorusError
from protocol.routing import Estimate, Explaining, Queries, Router
from protocol.run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = tuple[NDArray[np.float64], NDArray[np.float64]]

__all__ = ["Estimator", "Remembered"]

MOST_AT_ONCE = 64
"""Queries that a router computes together; a burst of more waits for the next time."""
REMEMBERED = 4096
"""Texts whose estimates are kept, a row of two numbers a model each; and choices made by them."""

Key = TypeVar("Key")
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """The `most` values that were put or asked for last."""

    def __init__(self, most: int = REMEMBERED) -> None:
        self._most = most
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        """What was put there, if it is remembered."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        return None

    def put(self, key: Key, value: Value) -> None:
        """Remember it in the place of the one that was asked for least recently."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Queries of one request, and where their estimate will be."""

    queries: Queries
    estimate: asyncio.Future[Estimate]


@dataclass(slots=True)
class Estimator:
    """`router`, fed with embeddings by the model `embedder` (None: it reads the texts themselves), which must come
    within `deadline_s` seconds. `threaded`: the router computes for tens of milliseconds, which are not the event
    loop's; queries that come meanwhile are computed together, next.

    What a text was estimated at is remembered by a digest of it, for as long as this object lives: it has one
    artefact, and `Router.estimate` gives the same for the same text.
    """

    router: Router
    embedder: str | None
    deadline_s: float = 0.5
    threaded: bool = False
    _models: tuple[str, ...] = ()
    _rows: Remembered[bytes, Rows] = field(default_factory=lambda: Remembered())
    _vectors: Remembered[bytes, NDArray[np.float32]] = field(default_factory=lambda: Remembered())
    """The embeddings too, where the router can say what it rests on: they are paid once."""
    _burst: list[_Waiting] = field(default_factory=list)
    _computing: asyncio.Task[None] | None = None

    def digests(self, texts: Sequence[str]) -> tuple[bytes, ...]:
        """What `texts` are remembered by."""
        return tuple(
            hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest() for text in texts
        )

    async def of(self, texts: Sequence[str], digests: Sequence[bytes], run: Run) -> Estimate:
        """The estimates of `texts`, which have these digests, a row each. Raises `TimeoutError`, `ChorusError`."""
        found = {digest: rows for digest in digests if (rows := self._rows.get(digest)) is not None}
        unknown = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in found}
        if unknown:
            async with asyncio.timeout(min(self.deadline_s, run.remaining_s)):
                queries = await self._queries(list(unknown.values()), run)
                if queries.embeddings is not None and isinstance(self.router, Explaining):
                    for digest, vector in zip(unknown, queries.embeddings, strict=True):
                        self._vectors.put(digest, vector)
                estimate = await self._estimated(queries)
            self._models = estimate.models
            for digest, rows in zip(
                unknown, zip(estimate.quality, estimate.cost_usd, strict=True), strict=True
            ):
                found[digest] = rows
                self._rows.put(digest, rows)
        quality, cost = zip(*(found[digest] for digest in digests), strict=True)
        return Estimate(self._models, np.stack(quality), np.stack(cost))

    async def reasons(self, text: str, run: Run) -> Mapping[str, Any]:
        """What the estimate of `text` rests on; nothing where the router cannot say, or the embedder not in time."""
        if not isinstance(self.router, Explaining):
            return {}
        if (vector := self._vectors.get(*self.digests([text]))) is not None:
            return self.router.reasons(Queries([text], vector[None]))
        try:
            async with asyncio.timeout(min(self.deadline_s, run.remaining_s)):
                return self.router.reasons(await self._queries([text], run))
        except (ChorusError, TimeoutError):
            return {}

    async def _estimated(self, queries: Queries) -> Estimate:
        if not self.threaded:
            return self.router.estimate(queries)
        waiting = _Waiting(queries, asyncio.get_running_loop().create_future())
        self._burst.append(waiting)
        if self._computing is None or self._computing.done():
            self._computing = asyncio.create_task(self._compute())
        return await waiting.estimate

    async def _compute(self) -> None:
        """Estimate for all who wait, and for those who come meanwhile."""
        while self._burst:
            now, self._burst = self._burst[:MOST_AT_ONCE], self._burst[MOST_AT_ONCE:]
            now = [waiting for waiting in now if not waiting.estimate.done()]  # some were too late
            if not now:
                continue
            try:
                whole = await asyncio.to_thread(
                    self.router.estimate, _together([each.queries for each in now])
                )
            except Exception as error:  # noqa: BLE001 - it is theirs who wait
                for waiting in now:
                    if not waiting.estimate.done():
                        waiting.estimate.set_exception(error)
                continue
            start = 0
            for waiting in now:
                rows = slice(start, start := start + len(waiting.queries))
                if not waiting.estimate.done():
                    waiting.estimate.set_result(
                        Estimate(whole.models, whole.quality[rows], whole.cost_usd[rows])
                    )

    async def _queries(self, texts: list[str], run: Run) -> Queries:
        return Queries(texts, None if self.embedder is None else await run.embed(self.embedder, texts))


def _together(several: Sequence[Queries]) -> Queries:
    texts = [text for queries in several for text in queries.texts]
    vectors = [queries.embeddings for queries in several if queries.embeddings is not None]
    return Queries(texts, np.concatenate(vectors) if vectors else None)
