"""A model as the gateway asks it: its deployments in turn, its name in errors, its price."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from backends.openai_http import Deployment, UpstreamStream
from backends.passing import Outgoing, Passed
from backends.pricing import Share, estimate_usd, shares
from backends.upstream_errors import NotConnected
from protocol.usage import Price, Usage

__all__ = ["Completed", "Model", "ModelStream"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Completed:
    """A complete answer: parsed, its bytes while they may be passed on as they are, and who spent what."""

    body: Mapping[str, Any]
    raw: bytes | None
    shares: tuple[Share, ...]


class ModelStream:
    """A streamed answer. Once iterated to its end, `shares` say who spent what and `usage_event` what was
    reported."""

    def __init__(self, upstream: UpstreamStream, name: str, prices: Mapping[str, Price]) -> None:
        self._upstream, self._name, self._prices = upstream, name, prices
        self.abort = upstream.abort

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._upstream.__aiter__()

    @property
    def usage_event(self) -> Mapping[str, Any] | None:
        """The upstream's closing event, parsed; None when it reported no usage (yet)."""
        event = self._upstream.usage_event
        return None if event is None else {key: value for key, value in event.items() if key != "chorus"}

    @property
    def shares(self) -> tuple[Share, ...]:
        return shares(self._upstream.usage_event or {}, self._name, self._prices)


class Model:
    """`name` with its `deployments`. `members` are the models whose words its answers hold: itself, or, for a
    fusion, the engine models that decode together; `prices` holds a price for each member that has one."""

    def __init__(
        self,
        name: str,
        deployments: Sequence[Deployment],
        *,
        members: tuple[str, ...] = (),
        prices: Mapping[str, Price],
        local: str | None = None,
    ) -> None:
        self.name, self.deployments = name, tuple(deployments)
        self.members = members or (name,)
        self._fused = bool(members)
        self.local = local
        """Which of our own processes serves it ("engines", "embedder"), or None."""
        self._prices = prices
        self._turn = count()

    async def call(self, path: str, body: Mapping[str, Any]) -> Completed:
        """Ask for a complete answer. Raises `UpstreamError`."""
        parsed, raw = await self._in_turn(lambda deployment: deployment.call(path, body))
        spent = shares(parsed, self.name, self._prices)
        if self._fused:
            parsed.pop("chorus", None)
            return Completed(parsed, None, spent)
        return Completed(parsed, raw, spent)

    async def stream(self, path: str, body: Mapping[str, Any]) -> ModelStream:
        """Ask for a streamed answer; returns once it has begun. Raises `UpstreamError`."""
        upstream = await self._in_turn(lambda deployment: deployment.stream(path, body))
        return ModelStream(upstream, self.name, self._prices)

    @property
    def endpoints(self) -> frozenset[str]:
        """What every deployment of it has."""
        return frozenset.intersection(*(deployment.endpoints for deployment in self.deployments))

    async def forward(self, outgoing: Callable[[str], Outgoing]) -> Passed:
        """Ask for what is passed on as it is; `outgoing` is given the model's name there. Raises `UpstreamError`."""
        return await self._in_turn(lambda deployment: deployment.forward(outgoing(deployment.model)))

    def shares(self, usage: Usage) -> tuple[Share, ...]:
        """Who spent what in a call that reported `usage`."""
        return shares({"usage": usage.wire()}, self.name, self._prices)

    def estimate_usd(self, body: Mapping[str, Any]) -> float:
        """What a call with `body` may cost, in US dollars; 0 where nothing is known."""
        return estimate_usd(body, self.members, self._prices)

    async def close(self) -> None:
        """Close the connections of every deployment."""
        for deployment in self.deployments:
            await deployment.close()

    async def _in_turn(self, ask: Callable[[Deployment], Awaitable[T]]) -> T:
        """Ask the next deployment, and one more when the first was not even reached."""
        turn = next(self._turn)
        try:
            return await ask(self.deployments[turn % len(self.deployments)])
        except NotConnected:
            return await ask(self.deployments[(turn + 1) % len(self.deployments)])
