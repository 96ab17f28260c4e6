"""A strategy behind caches."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gateway.caching.cached import Caches, Later, Semantic, Visitor
from gateway.caching.control import Control
from gateway.caching.identity import identity
from gateway.caching.memory import MemoryStore
from gateway.caching.semantic import SemanticIndex
from protocol import sse
from protocol.chat import ChatRequest
from protocol.errors import NotCached, UpstreamBroken, UpstreamUnavailable
from protocol.run import Answer, Chunk, Event, Run
from protocol.wire import replay
from tests.scripted_run import ScriptedRun, ask, events_of, reply


class Direct:
    """Asks the model `m`; streams its answer as real chunks, several to a piece, when asked to."""

    def __init__(self, *, cut: bool = False) -> None:
        self.cut = cut

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        said = await run.call("m", request.changed(stream=None))
        if not request.stream:
            yield Answer(said)
            return
        pieces = [sse.event(chunk) for chunk in replay(said.body)]
        yield Chunk(pieces[0], said.members)
        if self.cut:
            raise UpstreamBroken("cut")
        yield Chunk(b"".join(pieces[1:]), said.members)


class EmbeddingRun(ScriptedRun):
    """Embeds by table."""

    table: dict[str, Sequence[float]] = {}  # noqa: RUF012 - set by the test

    async def embed(self, name: str, texts: Sequence[str]) -> Any:
        if texts[0] not in self.table:
            raise UpstreamUnavailable("the embedder is restarting")
        return np.array([self.table[text] for text in texts], dtype=np.float32)


class Door:
    """Callers of one cache."""

    def __init__(self, semantic: Semantic | None = None, strategy: Any = None) -> None:
        self.now = 1000.0
        store = MemoryStore(1 << 20, lambda: self.now)
        self.caches = Caches(store, 60.0, lambda: self.now, semantic=semantic)
        self.strategy = strategy or Direct()
        self.run = EmbeddingRun({"m": [reply(str(i)) for i in range(20)]})
        self.headers: dict[str, str] = {}

    async def ask(self, request: ChatRequest, tenant: str = "t", control: bytes = b"") -> list[Event]:
        self.headers = {}
        later: list[Later] = []
        told = Visitor(
            tenant, "/chat/completions", Control.parse(control), self.headers.__setitem__, later.append
        )
        events = await events_of(self.caches.around(self.strategy, told), request, self.run)
        for work in later:
            await work()
        return events

    async def text(self, request: ChatRequest, tenant: str = "t", control: bytes = b"") -> str:
        (event,) = await self.ask(request, tenant, control)
        assert isinstance(event, Answer)
        return event.reply.text


async def test_the_same_is_asked_once() -> None:
    """The second caller of a tenant gets the first one's answer, told so, and its age; another tenant does not."""
    door = Door()
    assert await door.text(ask()) == "0"
    assert door.headers == {"x-chorus-cache": "miss"}
    door.now += 12
    assert await door.text(ask(user="someone else")) == "0"
    assert door.headers == {"x-chorus-cache": "exact", "age": "12"}
    assert await door.text(ask(), tenant="other") == "1"
    assert await door.text(ask(temperature=0)) == "2"
    door.now += 60
    assert await door.text(ask()) == "3"


async def test_streams_are_kept_and_replayed() -> None:
    """What was streamed is kept as a whole answer, and what is kept is told to those who stream."""
    door = Door()
    streamed = await door.ask(ask(stream=True))
    assert all(isinstance(event, Chunk) for event in streamed)
    (kept,) = await door.ask(ask(stream=True))
    assert isinstance(kept, Answer)
    assert kept.reply.text == "0"
    assert kept.reply.members == ("backend-model",)
    assert await door.text(ask()) == "0"
    assert len(door.run.asked) == 1


async def test_control() -> None:
    """`no-cache` asks anew and keeps, `no-store` does neither, `max-age` bounds age, `only-if-cached` asks nobody."""
    door = Door()
    with pytest.raises(NotCached):
        await door.text(ask(), control=b"only-if-cached")
    assert await door.text(ask(), control=b"no-store") == "0"
    assert await door.text(ask()) == "1"
    assert await door.text(ask(), control=b"no-cache") == "2"
    assert await door.text(ask(), control=b"only-if-cached") == "2"
    assert await door.text(ask(), control=b"no-store") == "3"
    door.now += 30
    assert await door.text(ask(), control=b"max-age=30") == "2"
    assert await door.text(ask(), control=b"max-age=29") == "4"
    with pytest.raises(NotCached):
        await door.text(ask(web_search_options={"search_context_size": "low"}), control=b"only-if-cached")


@pytest.mark.parametrize("kept", [b"{", b"null", b"{}", b'{"at": 1, "body": {}}'])
async def test_what_cannot_be_read_is_not_there(kept: bytes) -> None:
    """Another version's entry in a shared store, or somebody else's, fails no request."""
    door = Door()
    await door.caches.store.put(identity(ask(), "t", "/chat/completions").exact, kept, 60.0)
    assert await door.text(ask()) == "0"
    assert await door.text(ask()) == "0"
    assert len(door.run.asked) == 1


@pytest.mark.parametrize(
    "said",
    [reply("cut", finish_reason="length"), reply("", finish_reason="content_filter"), reply(choices=0)],
)
async def test_what_is_not_worth_keeping(said: Any) -> None:
    """An answer that did not end by itself is not given again."""
    door = Door()
    door.run = EmbeddingRun({"m": [said, reply("whole")]})
    await door.ask(ask())
    assert await door.text(ask()) == "whole"


async def test_a_stream_that_broke_is_not_kept() -> None:
    """Half an answer is nobody's answer; nor is one whose reader left."""
    door = Door(strategy=Direct(cut=True))
    with pytest.raises(UpstreamBroken):
        await door.ask(ask(stream=True))
    door.strategy = Direct()
    later: list[Later] = []
    visitor = Visitor("t", "/chat/completions", Control(), lambda name, value: None, later.append)
    left: Any = door.caches.around(door.strategy, visitor).answer(ask(stream=True), door.run)
    await anext(left)
    await left.aclose()
    assert later == []
    assert await door.text(ask()) == "2"


async def test_live_requests_pass() -> None:
    """A web search is made each time, and says nothing of caches."""
    door = Door()
    assert await door.text(ask(web_search_options={"x": 1})) == "0"
    assert await door.text(ask(web_search_options={"x": 1})) == "1"
    assert door.headers == {}


async def test_nearly_the_same() -> None:
    """An ask that means the same gets the answer, unless it is guarded, too far, or behind another wall; without the
    embedder models are asked."""
    door = Door(Semantic(SemanticIndex(0.9, 100), "e"))
    door.run.table = {
        "turn 2FA on": [1, 0],
        "please turn 2FA on": [0.95, 0.3122499],
        "turn 2FA off": [1, 0],
        "what is 2FA": [0, 1],
    }
    assert await door.text(ask("turn 2FA on")) == "0"
    assert await door.text(ask("please turn 2FA on")) == "0"
    assert door.headers["x-chorus-cache"] == "semantic"
    assert door.run.trace.decision["similarity"] == 0.95
    assert await door.text(ask("turn 2FA off")) == "1"
    assert await door.text(ask("what is 2FA")) == "2"
    assert await door.text(ask("please turn 2FA on"), tenant="other") == "3"
    assert await door.text(ask("please turn 2FA on", temperature=0)) == "4"
    assert await door.text(ask("unknown to the embedder")) == "5"
    door.now += 60
    assert await door.text(ask("please turn 2FA on")) == "6"


async def test_costs_nothing() -> None:
    """An answer from a cache makes no call."""
    door = Door()
    await door.text(ask())
    door.run = replace(door.run, trace=type(door.run.trace)(), asked=[])
    await door.text(ask())
    assert door.run.trace.calls == []
    assert door.run.trace.decision == {"cache": "exact"}
