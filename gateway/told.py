"""Answers on a surface that has words of its own: chat's answer, told by a `Telling`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from backends.pricing import estimated_tokens
from gateway import explanation
from gateway.catalogue import Target
from gateway.exchange import Exchange
from gateway.run import LiveRun
from protocol import sse
from protocol.chat import ChatRequest
from protocol.errors import MethodError, UpstreamBroken
from protocol.run import Chunk, Event, Reply
from protocol.telling import Telling
from protocol.wire import replay

__all__ = ["Told", "count"]


@dataclass(frozen=True, slots=True)
class Told:
    """The counterpart of the plain relay; `telling` holds how far a stream has been told."""

    telling: Telling

    async def whole(
        self, request: ChatRequest, reply: Reply, target: Target, run: LiveRun, exchange: Exchange
    ) -> None:
        """A complete answer to a caller who does not stream."""
        summed = {"usage": run.trace.usage.wire()} if run.trace.composed else {}
        with _blamed_on_the_backend():
            body = self.telling.whole({**reply.body, **summed})
        body |= self._explained(request, reply.members, target, run)
        await exchange.send_bytes(
            orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY),
            headers=explanation.headers(target.label, reply.members, run.trace),
        )

    async def replay(
        self, request: ChatRequest, reply: Reply, target: Target, run: LiveRun, exchange: Exchange
    ) -> None:
        """A complete answer to a caller who streams."""
        with _blamed_on_the_backend():
            told = [self.telling.chunk(chunk) for chunk in replay(reply.body)]
        last = self.telling.end(run.trace.usage, self._explained(request, reply.members, target, run))
        await exchange.start_stream(explanation.stream_headers(target.label, reply.members, run.trace))
        await exchange.end_stream(*told, last)

    async def relay(
        self,
        request: ChatRequest,
        first: Chunk,
        events: AsyncIterator[Event],
        target: Target,
        run: LiveRun,
        exchange: Exchange,
    ) -> None:
        """A stream, told chunk by chunk."""
        told = self._chunk(first)
        await exchange.start_stream(
            explanation.stream_headers(target.label, first.members, run.trace, run.begun_without)
        )
        await exchange.send_event(told)
        async for event in events:
            if not isinstance(event, Chunk):
                raise MethodError(f"The strategy {target.label!r} mixed chunks with a complete answer.")
            if told := self._chunk(event):
                await exchange.send_event(told)
        extra = self._explained(request, first.members, target, run)
        await exchange.end_stream(self.telling.end(run.trace.usage, extra))

    def _chunk(self, chunk: Chunk) -> bytes:
        return b"".join(map(self._event, sse.EventSplitter().feed(chunk.data)))

    def _event(self, event: bytes) -> bytes:
        payload = sse.event_data(event)
        if not payload:
            return sse.KEEP_ALIVE  # a comment: the connection's affair, not the answer's
        with _blamed_on_the_backend():
            return self.telling.chunk(orjson.loads(payload))

    def _explained(
        self, request: ChatRequest, members: tuple[str, ...], target: Target, run: LiveRun
    ) -> Mapping[str, Any]:
        if not request.options.explain:
            return {}
        return {"chorus": explanation.explain(target.label, members, run.trace)}


@contextmanager
def _blamed_on_the_backend() -> Iterator[None]:
    """What cannot be translated is not in the shape of chat completions."""
    try:
        yield
    except (orjson.JSONDecodeError, AttributeError, KeyError, IndexError, TypeError, ValueError):
        raise UpstreamBroken("The backend sent what is no chat completion.") from None


async def count(telling: Telling, exchange: Exchange) -> None:
    """Tell about how many tokens a prompt has, where no backend can say."""
    tokens = estimated_tokens(telling.request.body)
    await exchange.send_bytes(
        orjson.dumps({"input_tokens": tokens}), headers={"x-chorus-token-count": "estimated"}
    )
