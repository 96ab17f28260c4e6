"""A strategy behind caches: what was answered before is answered again, what was not is kept for the next."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, cast

import orjson

from gateway.caching.control import Control
from gateway.caching.identity import Identity, identity
from gateway.caching.keeping import Keeping
from protocol import sse
from protocol.chat import ChatRequest
from protocol.errors import ChorusError, NotCached
from protocol.features import Feature, first_lacking
from protocol.run import Answer, Event, Reply, Run, Strategy
from protocol.wire import assembled

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gateway.caching.semantic import SemanticIndex

    Vector = NDArray[np.float32]

__all__ = ["MOST_BYTES", "AnswerStore", "Caches", "Later", "Semantic", "Visitor"]

Later = Callable[[], Coroutine[Any, Any, None]]
LARGEST_STREAM = 1 << 20
"""Bytes of a stream that are held to keep its answer; of a longer one none are."""
MOST_BYTES = 768
"""The longest ask that is compared. Embedders read a few hundred tokens and no more: of longer asks that begin alike
they would not see the difference (benchmarks/semantic_cache.py: 93 % of a table of long prompts were mistaken)."""
LIVE: tuple[Feature, ...] = ("web search", "audio output", "other modalities")
"""What asks for more than words, or for today's: such answers are not kept."""
WHOLE = ("stop", "tool_calls", "function_call")
"""Why an answer that is worth keeping ended: by itself."""


class AnswerStore(Protocol):
    """Where answers are kept. No method fails: an answer that cannot be had is not there."""

    async def get(self, name: str) -> bytes | None: ...

    async def put(self, name: str, value: bytes, ttl_s: float) -> None: ...

    async def open(self) -> None:
        """Reach what it is kept in, before the first request."""
        ...

    async def close(self) -> None:
        """Let go of what it holds open."""
        ...


@dataclass(frozen=True, slots=True)
class Semantic:
    """Asks compared by the embedding model `embedder`."""

    index: SemanticIndex
    embedder: str

    async def vector(self, words: str | None, run: Run) -> Vector | None:
        """The embedding of `words`; None where they cannot be compared, or the embedder does not answer, for the models
        may."""
        if words is None or len(words.encode("utf-8", "replace")) > MOST_BYTES:
            return None
        try:
            return cast("Vector", (await run.embed(self.embedder, [words]))[0])
        except ChorusError:
            return None


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks: `tenant` shares answers with itself only; `control` is what the request says about caches; `tell` adds
    a header to its answer; `later` takes what is to be done once the request is settled, and does it or not."""

    tenant: str
    surface: str
    control: Control
    tell: Callable[[str, str], None]
    later: Callable[[Later], None]


@dataclass(frozen=True, slots=True)
class Caches:
    """The answers of `names` (None: of all) kept in `store` for `ttl_s` seconds; `semantic` finds those of nearly the
    same asks. `now`: seconds since the epoch, by which answers age. `keeping` has those that are being kept."""

    store: AnswerStore
    ttl_s: float
    now: Callable[[], float]
    names: frozenset[str] | None = None
    semantic: Semantic | None = None
    keeping: Keeping = field(default_factory=Keeping)

    def concern(self, name: str) -> bool:
        """Whether answers of the model or strategy `name` are kept."""
        return self.names is None or name in self.names

    def around(self, strategy: Strategy, visitor: Visitor) -> Strategy:
        """`strategy`, asked for one request of `visitor` only where no answer is kept."""
        return _Cached(self, strategy, visitor)

    async def find(self, name: str, most_s: float) -> _Kept | None:
        """The answer kept under `name`, unless it is older than `most_s` seconds."""
        raw = await self.store.get(name)
        if raw is None:
            return None
        try:
            kept = _Kept.parse(raw, self.now())
        except (orjson.JSONDecodeError, KeyError, TypeError):
            return None  # of another version, or not ours
        return kept if kept.age_s <= most_s else None


@dataclass(frozen=True, slots=True)
class _Kept:
    """An answer as it was given, `age_s` seconds ago."""

    reply: Reply
    age_s: float

    @classmethod
    def parse(cls, raw: bytes, now: float) -> _Kept:
        told = orjson.loads(raw)
        body = told["body"]
        return cls(Reply(body, tuple(told["members"]), orjson.dumps(body)), max(0.0, now - told["at"]))


@dataclass(frozen=True, slots=True)
class _Cached:
    """One request's strategy. A caller who streams gets a kept answer as a stream; a stream is kept as an answer."""

    caches: Caches
    strategy: Strategy
    visitor: Visitor

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        caches, visitor = self.caches, self.visitor
        if first_lacking(request.body, LIVE) is not None:
            if visitor.control.only:
                raise _not_cached()
            async with aclosing(cast(Any, self.strategy.answer(request, run))) as events:
                async for event in events:
                    yield event
            return
        same = identity(request, visitor.tenant, visitor.surface)
        kept = await caches.find(same.exact, visitor.control.max_age_s) if visitor.control.read else None
        if kept is not None:
            yield self._told(kept, run, "exact")
            return
        vector = await caches.semantic.vector(same.words, run) if caches.semantic else None
        if vector is not None and visitor.control.read and (kept := await self._near(same, vector, run)):
            yield self._told(kept, run, "semantic")
            return
        if visitor.control.only:
            raise _not_cached()
        self._tell(run, "miss")
        async with aclosing(cast(Any, self._recorded(request, run, same, vector))) as events:
            async for event in events:
                yield event

    async def _recorded(
        self, request: ChatRequest, run: Run, same: Identity, vector: Vector | None
    ) -> AsyncIterator[Event]:
        """What the strategy answers; to be kept once it has ended well."""

        def keep(reply: Callable[[], Reply | None]) -> None:
            self.visitor.later(lambda: self._keep(reply(), run, same, vector))

        held = bytearray()
        members: tuple[str, ...] = ()
        async with aclosing(cast(Any, self.strategy.answer(request, run))) as events:
            async for event in events:
                if isinstance(event, Answer):
                    try:
                        yield event
                    finally:  # it is whole, and nobody comes back for more
                        keep(partial(getattr, event, "reply"))
                    return
                if len(held) <= LARGEST_STREAM:
                    held += event.data
                members = event.members
                yield replace(event, onward=None)  # what follows comes past here too
        if len(held) <= LARGEST_STREAM:
            keep(lambda: _assembled(bytes(held), members, run))

    async def _keep(self, reply: Reply | None, run: Run, same: Identity, vector: Vector | None) -> None:
        caches = self.caches
        if reply is None or not self.visitor.control.write or not _worth_keeping(reply):
            return
        body = {**reply.body, "usage": run.trace.usage.wire()} if run.trace.composed else reply.body
        raw = orjson.dumps(
            {"at": caches.now(), "members": reply.members, "body": body}, option=orjson.OPT_SERIALIZE_NUMPY
        )
        await caches.store.put(same.exact, raw, caches.ttl_s)
        if caches.semantic is not None and vector is not None and same.words is not None:
            caches.semantic.index.add(same.wall, same.exact, same.words, vector)

    async def _near(self, same: Identity, vector: Vector, run: Run) -> _Kept | None:
        """The answer to an ask that means the same."""
        assert self.caches.semantic is not None
        index = self.caches.semantic.index
        near = index.find(same.wall, same.words or "", vector)
        if near is None:
            return None
        kept = await self.caches.find(near.name, self.visitor.control.max_age_s)
        if kept is None:
            index.forget(same.wall, near.name)
        else:
            run.trace.note(similarity=round(near.similarity, 4))
        return kept

    def _told(self, kept: _Kept, run: Run, how: str) -> Answer:
        self._tell(run, how)
        self.visitor.tell("age", str(int(kept.age_s)))
        return Answer(kept.reply)

    def _tell(self, run: Run, how: str) -> None:
        run.trace.note(cache=how)
        self.visitor.tell("x-chorus-cache", how)


def _not_cached() -> NotCached:
    return NotCached("No answer to this request is kept, and `only-if-cached` forbids to ask a model.")


def _assembled(stream: bytes, members: tuple[str, ...], run: Run) -> Reply | None:
    """The whole answer of a stream; None where it is none that we can read."""
    try:
        events = map(sse.event_data, sse.EventSplitter().feed(stream))
        body = assembled([orjson.loads(payload) for payload in events if payload], run.trace.usage)
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return None
    return None if body is None else Reply(body, members)


def _worth_keeping(reply: Reply) -> bool:
    choices = reply.body.get("choices") or ()
    return bool(choices) and all(choice.get("finish_reason") in WHOLE for choice in choices)
