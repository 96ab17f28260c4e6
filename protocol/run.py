"""`Strategy` and `Run`: what decides, and the capability it decides with.

A strategy asks `run` for calls and reads only what comes back. Live, `run` reaches backends; in replay it reads an
outcome table; in a test, a list. Deadlines, budgets, retries, accounting and cancellation live behind `run`, once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from protocol.chat import ChatRequest
from protocol.errors import ChorusError
from protocol.tracing import Watch
from protocol.usage import NOTHING, Usage
from protocol.value import value
from protocol.wire import reply_text, token_logprobs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Answer",
    "Call",
    "Chunk",
    "Deciding",
    "Event",
    "Onward",
    "Reply",
    "Run",
    "Sink",
    "Strategy",
    "Trace",
]


@value
class Reply:
    """A complete answer.

    `body` is a `chat.completion`; `members` the configured names of the models whose words it holds; `raw` the
    backend's own bytes while nothing was changed. `cost_usd` (US dollars) and `latency_s` (seconds) are this call's.
    """

    body: Mapping[str, Any]
    members: tuple[str, ...]
    raw: bytes | None = None
    cost_usd: float = 0.0
    latency_s: float = 0.0

    @property
    def text(self) -> str:
        return reply_text(self.body)

    @property
    def usage(self) -> Usage:
        return Usage.parse(self.body.get("usage"))

    def paid_with(self, others: Sequence[Reply]) -> Reply:
        """The same reply with usage, cost and time of `others`, which were asked before it, added."""
        if not others:
            return self
        usage = sum((other.usage for other in others), self.usage)
        return replace(
            self,
            body={**self.body, "usage": usage.wire()},
            raw=None,
            cost_usd=self.cost_usd + sum(other.cost_usd for other in others),
            latency_s=self.latency_s + sum(other.latency_s for other in others),
        )

    @property
    def token_logprobs(self) -> list[float]:
        """Natural-log probability of every generated token; empty when none were asked for or sent."""
        return token_logprobs(self.body)


@value
class Answer:
    """A strategy's complete answer: a stream of one piece."""

    reply: Reply


class Sink(Protocol):
    """What a stream is written to. `write` never waits; whoever writes much waits in `drain` while it is `full`."""

    @property
    def full(self) -> bool:
        """Whether its reader is slower than its writer."""
        ...

    def write(self, data: bytes) -> None:
        """Take a part of the stream."""
        ...

    async def drain(self) -> None:
        """Wait until there is room again."""
        ...


@dataclass(slots=True)
class Onward:
    """The rest of a stream that a chunk began, for whoever would only write it on: to set `sink` before asking for the
    next event has everything that follows written there, and the iteration then brings no more, and ends, or raises,
    as it would have. So a chunk that is passed on untouched spares every strategy in between the rest of its stream."""

    sink: Sink | None = None


@value
class Chunk:
    """One or more whole server-sent events of an answer being streamed: bytes as they came, neither usage nor `[DONE]`
    among them. Whoever changes what comes after it makes a chunk of their own, without `onward`."""

    data: bytes
    members: tuple[str, ...]
    onward: Onward | None = field(default=None, compare=False, repr=False)


Event = Answer | Chunk


@value
class Call:
    """One call of the tree as it was made and paid. `outcome` is "ok" or an error's code.

    `attempts` counts how often a deployment was asked for it. `estimated`: the backend did not report what it spent
    (a cut stream, say), and `usage` was estimated from what was sent and seen. `began_s`: seconds after the call tree
    began. `asker`: the strategy that asked, where one strategy had asked another, else "". `told`: what the engines of
    a fusion say of its text, on the first member's row. `cause`: why it failed, for the log alone.
    """

    model: str
    usage: Usage
    cost_usd: float
    latency_s: float
    outcome: str = "ok"
    attempts: int = 1
    estimated: bool = False
    began_s: float = 0.0
    asker: str = ""
    told: Mapping[str, Any] = field(default_factory=dict, hash=False)
    cause: str = ""

    def wire(self) -> dict[str, Any]:
        """The call as a row of the explanation's table."""
        row: dict[str, Any] = {
            "model": self.model,
            "prompt_tokens": self.usage.prompt_tokens,
            "completion_tokens": self.usage.completion_tokens,
            "cost_usd": round(self.cost_usd, 12),
            "latency_ms": round(self.latency_s * 1000, 3),
            "outcome": self.outcome,
        }
        if self.attempts != 1:
            row["attempts"] = self.attempts
        if self.estimated:
            row["estimated"] = True
        return {**row, **self.told}


@dataclass(slots=True)
class Trace:
    """What a request's call tree did: the calls in the order they ended, and the facts each decision rested on.

    `embeddings` are calls to embedding models. They cost money, but their tokens are not part of `usage`, which says
    what the answering models read and wrote, so that a routed answer keeps the usage its backend reported.
    """

    calls: list[Call] = field(default_factory=list)
    embeddings: list[Call] = field(default_factory=list)
    decision: dict[str, Any] = field(default_factory=dict)
    watch: Watch | None = None
    level: int = 0
    """Which of the strategies at work this is the trace of, in `watch.levels`."""
    asker: str = ""
    """The strategy it is the trace of; "" for the request's own."""

    def note(self, **facts: Any) -> None:
        """Record facts of the decision (JSON values), shown when the caller asks to `explain`."""
        self.decision.update(facts)

    def nested(self, strategy: str) -> Trace:
        """The trace of a strategy that this one asks: the same books, and facts of its own in `decision["nested"]`."""
        inner = Trace(self.calls, self.embeddings, {"strategy": strategy}, self.watch, asker=strategy)
        self.decision.setdefault("nested", []).append(inner.decision)
        if self.watch is not None:
            inner.level = self.watch.level(strategy, self.level, inner.decision)
        return inner

    @property
    def usage(self) -> Usage:
        """Tokens of all calls together, as the backends reported them: estimates are charged, never told as usage."""
        return sum((call.usage for call in self.calls if not call.estimated), Usage())

    @property
    def composed(self) -> bool:
        """Whether more than one call reported usage, so that no backend's own report is the whole."""
        return (
            len(self.calls) > 1
            and sum(not call.estimated and call.usage != NOTHING for call in self.calls) > 1
        )

    @property
    def used_tokens(self) -> int:
        """Tokens read and written by all calls together, embeddings and estimates included."""
        used = 0
        for calls in (self.calls, self.embeddings):
            for call in calls:
                used += call.usage.prompt_tokens + call.usage.completion_tokens
        return used

    @property
    def cost_usd(self) -> float:
        """US dollars spent by all calls together, embeddings included."""
        spent = 0.0
        for call in self.calls:
            spent += call.cost_usd
        for call in self.embeddings:
            spent += call.cost_usd
        return spent


class Run(Protocol):
    """The capability a strategy is given for one request. `name`s are configured models or strategies."""

    @property
    def trace(self) -> Trace: ...

    @property
    def remaining_s(self) -> float:
        """Seconds until the deadline of the whole call tree."""
        ...

    @property
    def remaining_usd(self) -> float:
        """US dollars the call tree may still spend; infinity without a budget."""
        ...

    def lacks(self, names: Sequence[str], request: ChatRequest) -> list[str | None]:
        """Of each name the first thing that `request` needs and it is known not to have: a feature, or context."""
        ...

    async def call(self, name: str, request: ChatRequest) -> Reply:
        """Ask `name` and wait for its complete answer. Raises `ChorusError`."""
        ...

    def relay(self, name: str, request: ChatRequest) -> AsyncIterator[Event]:
        """Answer with what `name` says: streamed bytes when the caller streams, else one `Answer`."""
        ...

    async def gather(self, calls: Sequence[tuple[str, ChatRequest]]) -> list[Reply | ChorusError]:
        """Make the calls at once; results stand in the order asked, a failed call as its error."""
        ...

    async def embed(self, name: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length embeddings, shape (n_texts, dimensions), of `texts` by the embedding model `name`."""
        ...


class Strategy(Protocol):
    """A virtual model. Laws: no socket, no clock of its own; it yields either chunks only or exactly one answer."""

    def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]: ...


@runtime_checkable
class Deciding(Protocol):
    """A strategy that decides who answers before any model is asked."""

    async def decide(self, request: ChatRequest, run: Run) -> str:
        """The name of who shall answer; why is noted in the trace. Raises `ChorusError`."""
        ...
