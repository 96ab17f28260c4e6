"""A model as the gateway asks it: its deployments, its name in errors, its price."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import cached_property
from typing import Any

from backends.attempts import Attempts, Calling
from backends.balancer import Balancer, Rule, Seat, Turn
from backends.http1 import HeaderBlock, header_block
from backends.openai_http import Deployment, UpstreamStream
from backends.passing import Outgoing, Passed
from backends.prefix import prompt_prefix
from backends.pricing import (
    BYTES_PER_TOKEN,
    Share,
    dearest_usd,
    seen_shares,
    shares,
    text_tokens,
    usage_bound,
)
from backends.retrying import Retrying
from protocol.errors import UpstreamError
from protocol.run import Sink
from protocol.settings import Hedge
from protocol.usage import NOTHING, Price
from protocol.value import value
from protocol.wire import DEADLINE_HEADER

__all__ = ["HELD_BYTES", "HELD_EVENTS", "Completed", "Model", "ModelStream"]

HELD_EVENTS = 64
HELD_BYTES = 256 * 1024
HELD_S = 5.0
"""How much of a stream is held back until its first words, so that one that fails before them can be asked
again of somebody else, unseen: events, bytes, and seconds in which it sends events without words."""


@value
class Completed:
    """A complete answer: parsed, its bytes while they may be passed on as they are, and who spent what."""

    body: Mapping[str, Any]
    raw: bytes | None
    shares: tuple[Share, ...]


class ModelStream:
    """A streamed answer that has begun. `held` is its beginning; what follows is had once, from `rest` or by `pour`.
    Once it has ended, or was left, `shares` say who spent what; `usage_event` is what was reported.

    Have it to its end, or `abort` it. Raises `UpstreamError`.
    """

    def __init__(self, model: Model, upstream: UpstreamStream, turn: Turn, body: Mapping[str, Any]) -> None:
        self._model, self._upstream, self._turn, self._body = model, upstream, turn, body
        self.held = b""

    async def hold(self) -> None:
        """Read until the answer has begun, or as much as may be held. Raises `UpstreamError`."""
        loop, held = asyncio.get_running_loop(), []
        size, began = 0, None
        upstream = self._upstream
        while data := await upstream.read():
            held.append(data)
            size += len(data)
            began = began or loop.time()
            if upstream.tap.begun or upstream.tap.passed >= HELD_EVENTS or size >= HELD_BYTES:
                break
            if loop.time() - began > HELD_S:
                break
        self.held = b"".join(held)
        self._turn.began(loop.time())

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """All of it, in pieces of whole events."""
        yield self.held
        async with aclosing(self.rest()) as rest:
            async for data in rest:
                yield data

    async def rest(self) -> AsyncGenerator[bytes, None]:
        """What follows, whole events, as they come."""
        with self._judged():
            while data := await self._upstream.read():
                yield data

    async def pour(self, sink: Sink) -> None:
        """Write what follows to `sink` as it comes."""
        with self._judged():
            await self._upstream.pour(sink)

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Having the rest of the stream, which is the deployment's success or failure."""
        try:
            yield
            self._turn.succeeded(
                asyncio.get_running_loop().time(), sum(share.usage.completion_tokens for share in self.shares)
            )
        except UpstreamError as error:
            self._turn.failed(asyncio.get_running_loop().time(), error)
            raise
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the connection unless the answer has ended by itself; safe to repeat."""
        self._upstream.abort()
        self._turn.release()
        self._model.left()

    @property
    def left_out(self) -> list[str]:
        """Members that a fusion's engine host said in the answer's head to be left out; its words, unchecked."""
        return self._upstream.left_out

    @property
    def usage_event(self) -> Mapping[str, Any] | None:
        """The upstream's closing event, parsed; None when it reported no usage (yet)."""
        event = self._upstream.tap.usage_event
        return None if event is None else {key: value for key, value in event.items() if key != "chorus"}

    @property
    def shares(self) -> tuple[Share, ...]:
        """What was reported; else an estimate by what was seen: a token an event, or more in larger ones."""
        tap = self._upstream.tap
        seen = max(tap.words, round(tap.seen_bytes / BYTES_PER_TOKEN))
        return self._model.shares(tap.usage_event or {}, self._body, seen)


class Model:
    """`name` with its `deployments`. `members` are the models whose words its answers hold: itself, or, for a
    fusion, the engine models that decode together; `prices` holds a price for each member that has one.

    `seats` are what the balancer knows of each deployment; `output_cap` tokens bound an answer whose caller
    set no bound; `fallbacks` are the models to ask when this one fails; `prefix_bytes` of a prompt decide who is asked,
    with the rule "prefix". `made_of`: two models made of equal things are interchangeable.
    """

    def __init__(
        self,
        name: str,
        deployments: Sequence[Deployment],
        *,
        members: tuple[str, ...] = (),
        prices: Mapping[str, Price],
        local: str | None = None,
        seats: Sequence[Seat] = (),
        rule: Rule = "fastest",
        retrying: Retrying | None = None,
        hedge: Hedge | None = None,
        fallbacks: tuple[str, ...] = (),
        output_cap: int | None = None,
        prefix_bytes: int | None = None,
        made_of: object = None,
    ) -> None:
        self.name, self.deployments = name, tuple(deployments)
        self.members = members or (name,)
        self._fused = bool(members)
        self.local = local
        """Which of our own processes serves it ("engines", "embedder"), or None."""
        self.fallbacks, self.made_of = fallbacks, made_of
        self._prefix_bytes = prefix_bytes if len(self.deployments) > 1 else None
        self._prices, self._output_cap = prices, output_cap
        self._read_usd, self._written_usd = dearest_usd(self.members, prices)
        self._hedge = hedge if len(self.deployments) > 1 else None
        self.seats = tuple(seats) or tuple(Seat() for _ in self.deployments)
        self.retrying = retrying or Retrying()
        self._metered = any(seat.tokens for seat in self.seats)
        self._attempts = Attempts(
            name,
            Balancer(self.seats, rule),
            self.retrying,
            hedge_after_s=hedge.after_s if hedge else None,
        )

    async def call(self, path: str, body: Mapping[str, Any], calling: Calling | None = None) -> Completed:
        """Ask for a complete answer. Raises `UpstreamError`."""

        async def ask(turn: Turn) -> Completed:
            parsed, raw = await self.deployments[turn.index].call(path, body, self._headers(turn, calling))
            spent = self._reported(parsed) or self._seen(body, text_tokens(parsed))
            now = asyncio.get_running_loop().time()
            turn.began(now)
            turn.succeeded(now, sum(share.usage.completion_tokens for share in spent))
            self.left()
            if self._fused:
                parsed.pop("chorus", None)
                return Completed(parsed, None, spent)
            return Completed(parsed, raw, spent)

        return await self._attempts.make(
            ask, self.prepared(calling, body), drop=_nothing, hedge=self._may_hedge(body)
        )

    async def stream(self, path: str, body: Mapping[str, Any], calling: Calling | None = None) -> ModelStream:
        """Ask for a streamed answer; returns once its first words have come. Raises `UpstreamError`."""

        async def ask(turn: Turn) -> ModelStream:
            upstream = await self.deployments[turn.index].stream(path, body, self._headers(turn, calling))
            stream = ModelStream(self, upstream, turn, body)
            try:
                await stream.hold()
            except BaseException:
                upstream.abort()
                raise
            return stream

        return await self._attempts.make(
            ask, self.prepared(calling, body), drop=ModelStream.abort, hedge=self._may_hedge(body)
        )

    @cached_property
    def endpoints(self) -> frozenset[str]:
        """What every deployment of it has."""
        return frozenset.intersection(*(deployment.endpoints for deployment in self.deployments))

    async def forward(self, outgoing: Callable[[str], Outgoing], calling: Calling | None = None) -> Passed:
        """Ask for what is passed on as it is; `outgoing` is given the model's name there. Raises `UpstreamError`."""

        async def ask(turn: Turn) -> Passed:
            deployment = self.deployments[turn.index]
            passed = await deployment.forward(outgoing(deployment.model), turn.headers)
            turn.began(asyncio.get_running_loop().time())

            def ended(passed: Passed) -> None:
                now = asyncio.get_running_loop().time()
                if passed.failed is not None:
                    turn.failed(now, passed.failed)
                elif passed.whole:
                    turn.succeeded(now, passed.usage.completion_tokens)
                turn.release()
                self.left()

            passed.ended = ended
            return passed

        return await self._attempts.make(ask, calling or Calling(), drop=Passed.abort)

    def shares(
        self, reported: Mapping[str, Any], body: Mapping[str, Any], seen_tokens: int
    ) -> tuple[Share, ...]:
        """Who spent what in a call with `body`: as `reported`, else by the `seen_tokens` of the answer."""
        return self._reported(reported) or self._seen(body, seen_tokens)

    def _reported(self, reported: Mapping[str, Any]) -> tuple[Share, ...]:
        """Nothing where nothing is reported."""
        told = shares(reported, self.name, self._prices)
        for share in told:
            if share.usage != NOTHING:
                return told
        return ()

    def _seen(self, body: Mapping[str, Any], tokens: int) -> tuple[Share, ...]:
        return seen_shares(body, tokens, self.members, self._prices)

    def hedge_shares(self, body: Mapping[str, Any]) -> tuple[Share, ...]:
        """What a call costs that was dropped because another one answered first: its prompt was read."""
        return seen_shares(body, 0, self.members, self._prices)

    def reserve_usd(self, body: Mapping[str, Any]) -> float:
        """The most a call with `body` may cost, a hedged one included, in US dollars; see `usage_bound`."""
        usd = self._most_usd(body)
        return 2 * usd if self._may_hedge(body) else usd

    def left(self) -> None:
        """A call has ended, so that there may be room for one that waits."""
        self._attempts.left()

    def follow(self, before: Model) -> None:
        """Take the place of `before`: who waits there for room is told when a call ends here."""
        self._attempts.follow(before._attempts)

    async def close(self) -> None:
        """Close the connections of every deployment."""
        for deployment in self.deployments:
            await deployment.close()

    def _most_usd(self, body: Mapping[str, Any]) -> float:
        """The most an attempt at a call with `body` may cost, in US dollars."""
        most = usage_bound(body, self._output_cap)
        return most.prompt_tokens * self._read_usd + most.completion_tokens * self._written_usd

    def _may_hedge(self, body: Mapping[str, Any]) -> bool:
        return self._hedge is not None and self._most_usd(body) <= self._hedge.max_cost_usd

    def _headers(self, turn: Turn, calling: Calling | None) -> HeaderBlock:
        """Those of the attempt; several engines that write one text are told as well how long the caller waits."""
        if not self._fused or calling is None or calling.deadline == math.inf:
            return turn.headers
        left_ms = max(0, int(1000 * (calling.deadline - asyncio.get_running_loop().time())))
        return HeaderBlock(turn.headers + header_block({DEADLINE_HEADER: str(left_ms)}))

    def prepared(self, calling: Calling | None, body: Mapping[str, Any]) -> Calling:
        """`calling` with what of `body` the balancer goes by."""
        calling = calling or Calling()
        if self._metered:
            calling.tokens = usage_bound(body, None).prompt_tokens
        if self._prefix_bytes is not None and calling.session is None:
            calling.prefix = prompt_prefix(body, self._prefix_bytes)
        return calling


def _nothing(answer: object) -> None:
    """An answer that came second holds nothing open."""
