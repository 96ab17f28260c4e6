"""`Run` against real backends.

One tree of calls has one deadline, one money budget, one trace and one limit of calls; strategies called by
strategies get a run of their own one level deeper that shares all of these. Every call is awaited inside the
request's task, so that cancelling the task ends the whole tree, and leaving the run closes whatever upstream
stream is still open.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from backends.attempts import Calling
from backends.model import Completed, Model, ModelStream
from backends.passing import Outgoing, Passed
from backends.pricing import Share
from gateway.catalogue import Catalogue
from gateway.deadline import Deadline
from protocol.again import Again
from protocol.chat import ChatRequest
from protocol.errors import (
    BudgetExceeded,
    ChorusError,
    DeadlineExceeded,
    MethodError,
    ModelNotFound,
    UpstreamError,
)
from protocol.run import Answer, Call, Chunk, Deciding, Event, Onward, Reply, Strategy, Trace
from protocol.tracing import Watch
from protocol.usage import Usage
from protocol.value import value

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Limits", "LiveRun", "open_run"]

_BOUNDED_BY: Mapping[str, tuple[str, ...]] = {
    "/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/completions": ("max_tokens",),
    "/responses": ("max_output_tokens",),
}
"""Surface → the fields that bound an answer; of those of Messages the bound is required."""


@value
class Limits:
    """What one call tree may use: seconds, US dollars (None: no bound), calls, and levels of strategies."""

    deadline_s: float
    budget_usd: float | None = None
    max_calls: int = 64
    max_depth: int = 4
    caps: Mapping[str, int] = field(default_factory=dict)
    """Model → the most tokens its answer may have where the request does not say; sent along."""

    def late(self) -> DeadlineExceeded:
        """What is raised when the time is over."""
        return DeadlineExceeded(
            f"The answer was not complete within the deadline of {self.deadline_s:g} s.",
            param="chorus.deadline_ms",
        )

    def capped(self, name: str, body: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """`body`, to be sent to `path`, with a bound on the answer of the model `name`, where it has none and one
        is set."""
        if (cap := self.caps.get(name)) is None or (fields := _BOUNDED_BY.get(path)) is None:
            return body
        for bound in fields:
            if body.get(bound):
                return body
        return {**body, fields[0]: cap}


class _Tree:
    """What all runs of one request share."""

    __slots__ = (
        "began", "calls_made", "catalogue", "deadline", "limits", "path", "reserved_usd", "session", "streams", "tail",
        "trace",
    )  # fmt: skip

    def __init__(
        self, catalogue: Catalogue, limits: Limits, path: str, session: str | None, trace: Trace
    ) -> None:
        self.catalogue, self.limits, self.path = catalogue, limits, path
        self.session, self.trace = session, trace
        self.began = asyncio.get_running_loop().time()
        self.deadline = Deadline(self.began + limits.deadline_s, limits.late)
        self.calls_made, self.reserved_usd = 0, 0.0
        self.streams: set[ModelStream] = set()
        self.tail: Mapping[str, Any] | None = None


@dataclass(slots=True)
class _Account:
    """US dollars spent by one strategy and all it called."""

    payer: _Account | None = None
    spent_usd: float = 0.0

    def spend(self, usd: float) -> None:
        self.spent_usd += usd
        if self.payer is not None:
            self.payer.spend(usd)


class open_run:  # noqa: N801 - used like a function
    """The run of one request, to be used inside this context. `path` is the surface its models are asked on;
    requests of one `session` keep to one deployment of a model; `watch` is told of every asking.

    Leaving it closes what is still open. Raises `DeadlineExceeded` when the deadline ended what was done
    inside.
    """

    __slots__ = ("_tree",)

    def __init__(
        self,
        catalogue: Catalogue,
        limits: Limits,
        *,
        path: str = "/chat/completions",
        session: str | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._tree = _Tree(catalogue, limits, path, session, Trace(watch=watch))

    async def __aenter__(self) -> LiveRun:
        tree = self._tree
        tree.deadline.start()
        return LiveRun(tree, tree.trace, _Account())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for stream in self._tree.streams:
            stream.abort()
        self._tree.deadline.close(kind)


class LiveRun:
    """A strategy's capability to call models and other strategies; made by `open_run`."""

    def __init__(self, tree: _Tree, trace: Trace, account: _Account, depth: int = 0) -> None:
        self._tree, self._trace, self._account, self._depth = tree, trace, account, depth

    @property
    def trace(self) -> Trace:
        return self._trace

    @property
    def limits(self) -> Limits:
        """What the whole call tree may use."""
        return self._tree.limits

    @property
    def remaining_s(self) -> float:
        return self._tree.deadline.due - asyncio.get_running_loop().time()

    @property
    def remaining_usd(self) -> float:
        budget = self._tree.limits.budget_usd
        return float("inf") if budget is None else budget - self.trace.cost_usd - self._tree.reserved_usd

    @property
    def tail(self) -> Mapping[str, Any] | None:
        """The event with which the last relayed stream reported its usage; None when it reported none."""
        return self._tree.tail

    @property
    def begun_without(self) -> list[str]:
        """Members that engine hosts leave out of the streams under way, from their beginning."""
        return [name for stream in self._tree.streams for name in stream.left_out]

    def lacks(self, names: Sequence[str], request: ChatRequest) -> list[str | None]:
        return self._tree.catalogue.lacks(names, request.body)

    async def decide(self, strategy: Strategy, request: ChatRequest) -> str | None:
        """Who would answer, as far as that is decided before any model is asked: routers are followed down to a model,
        or a strategy that decides as it answers. None where `strategy` is such a one itself."""
        if not isinstance(strategy, Deciding):
            return None
        chosen = await strategy.decide(request, self)
        further = self._tree.catalogue.strategies.get(chosen)
        if further is None:
            return chosen
        return await self._deeper(chosen, self._account).decide(further, request) or chosen

    async def call(self, name: str, request: ChatRequest) -> Reply:
        whole = request.changed(stream=None, stream_options=None) if request.stream else request
        if (strategy := self._tree.catalogue.strategies.get(name)) is not None:
            account = _Account(self._account)
            async with aclosing(cast(Any, strategy.answer(whole, self._deeper(name, account)))) as events:
                async for event in events:
                    if isinstance(event, Answer):
                        return replace(event.reply, cost_usd=account.spent_usd)
            raise MethodError(f"The strategy {name!r} gave no complete answer.")
        failed: UpstreamError | None = None
        for model in self._chain(name):
            try:
                body = self._tree.catalogue.sent(model.name, whole)
                return await self._reply(model, body, first=failed is None)
            except (UpstreamError, _Unaffordable) as error:
                failed = _next_or_raise(error, failed)
        assert failed is not None
        raise failed

    async def relay(self, name: str, request: ChatRequest) -> AsyncIterator[Event]:
        if (strategy := self._tree.catalogue.strategies.get(name)) is not None:
            async with aclosing(
                cast(Any, strategy.answer(request, self._deeper(name, self._account)))
            ) as events:
                async for event in events:
                    yield event
        elif request.stream:
            async with aclosing(self._chunks(name, request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        else:
            yield Answer(await self.call(name, request))

    async def gather(self, calls: Sequence[tuple[str, ChatRequest]]) -> list[Reply | ChorusError]:
        async def attempt(name: str, request: ChatRequest) -> Reply | ChorusError:
            try:
                return await self.call(name, request)
            except ChorusError as error:
                return error

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(attempt(name, request)) for name, request in calls]
        return [task.result() for task in tasks]

    async def embed(self, name: str, texts: Sequence[str]) -> NDArray[np.float32]:
        import numpy as np  # a worker that never routes by embedding need not load it

        model = self._model(name)
        body = {"input": list(texts), "encoding_format": "base64"}
        with self._accounted(model, body, embedding=True) as paid:
            with self._tree.deadline:
                completed = await model.call("/embeddings", body, paid.calling)
            paid.settle(completed.shares)
        rows = [_vector(row["embedding"]) for row in completed.body["data"]]
        vectors = np.stack(rows).astype(np.float32, copy=False)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    @asynccontextmanager
    async def passing(
        self, name: str, body: Mapping[str, Any], outgoing: Callable[[str], Outgoing]
    ) -> AsyncIterator[Passed]:
        """A call whose answer is passed on in the backend's own words. `body` is what its cost is judged by before
        it is made; what it spent is settled on leaving, from the answer's `usage`."""
        model = self._model(name)
        with self._accounted(model, body) as paid:
            with self._tree.deadline:
                passed = await model.forward(outgoing, model.prepared(paid.calling, body))
            try:
                yield passed
            except UpstreamError as error:
                passed.failed = error
                raise
            finally:
                passed.abort()
                paid.settle(model.shares({"usage": passed.usage.wire()}, body, 0))

    async def _reply(self, model: Model, body: Mapping[str, Any], *, first: bool) -> Reply:
        body = self._tree.limits.capped(model.name, body, self._tree.path)
        with self._accounted(model, body, first=first) as paid:
            with self._tree.deadline:
                completed: Completed = await model.call(self._tree.path, body, paid.calling)
            paid.answer = completed.body
            cost_usd = paid.settle(completed.shares)
        return Reply(completed.body, model.members, completed.raw, cost_usd, paid.elapsed_s)

    async def _chunks(self, name: str, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """The events of the first stream that begins, of `name` or a fallback of it. One that has begun is
        never replaced: the caller has seen a part of it."""
        failed: UpstreamError | None = None
        for model in self._chain(name):
            begun = False
            try:
                body = self._tree.catalogue.sent(model.name, request)
                async with aclosing(self._stream(model, body, first=failed is None)) as chunks:
                    async for chunk in chunks:
                        begun = True
                        yield chunk
                return
            except (UpstreamError, _Unaffordable) as error:
                if begun:
                    raise
                failed = _next_or_raise(error, failed)
        assert failed is not None
        raise failed

    async def _stream(
        self, model: Model, body: Mapping[str, Any], *, first: bool
    ) -> AsyncGenerator[Chunk, None]:
        """The events of `model`'s stream; what it spent is settled when it ends, however it ends."""
        tree = self._tree
        body = tree.limits.capped(model.name, body, tree.path)
        with self._accounted(model, body, first=first) as paid:
            with self._tree.deadline:
                stream = await model.stream(tree.path, body, paid.calling)
            paid.streamed = True
            tree.streams.add(stream)
            onward = Onward()
            try:
                yield Chunk(stream.held, model.members, onward)
                if onward.sink is not None:
                    await stream.pour(onward.sink)
                else:
                    async with aclosing(stream.rest()) as rest:
                        async for data in rest:
                            yield Chunk(data, model.members)
                tree.tail = stream.usage_event
            finally:
                stream.abort()
                tree.streams.discard(stream)
                paid.answer = stream.usage_event
                paid.settle(stream.shares)

    def _chain(self, name: str) -> Iterator[Model]:
        """The model `name`, then its fallbacks. Vectors of another model would mean something else: embeddings
        have none."""
        model = self._model(name)
        yield model
        if self._tree.path != "/embeddings":
            yield from map(self._model, model.fallbacks)

    def _model(self, name: str) -> Model:
        try:
            return self._tree.catalogue.models[name]
        except KeyError:
            raise ModelNotFound(name, self._tree.catalogue.names) from None

    def _deeper(self, name: str, account: _Account) -> LiveRun:
        """The run of the strategy `name`, called by this one."""
        if self._depth >= self._tree.limits.max_depth:
            raise MethodError(
                f"{name!r} is nested deeper than server.max_depth = {self._tree.limits.max_depth} strategies."
            )
        return LiveRun(self._tree, self._trace.nested(name), account, self._depth + 1)

    def _accounted(
        self, model: Model, body: Mapping[str, Any], *, embedding: bool = False, first: bool = True
    ) -> _Payment:
        """One call of the tree, admitted; the context in which it is made. Raises `BudgetExceeded`, for a fallback (not
        `first`) `_Unaffordable`."""
        tree = self._tree
        reserved_usd = self._reserve(model, body, first)
        if tree.calls_made >= tree.limits.max_calls:
            raise (MethodError if first else _Unaffordable)(
                f"A request may make no more than server.max_calls = {tree.limits.max_calls} calls."
            )
        tree.calls_made += 1
        tree.reserved_usd += reserved_usd
        return _Payment(tree, self._account, model, body, reserved_usd, self._trace, embedding, first)

    def _reserve(self, model: Model, body: Mapping[str, Any], first: bool) -> float:
        """The most the call may cost, in US dollars, to be held until it is known. Raises `BudgetExceeded`."""
        budget_usd = self._tree.limits.budget_usd
        if budget_usd is None:
            return 0.0
        most_usd, left_usd = model.reserve_usd(body), self.remaining_usd
        if left_usd <= 0 or most_usd > left_usd:
            raise (BudgetExceeded if first else _Unaffordable)(
                f"A call to {model.name!r} may cost up to {most_usd:.9f} USD; of chorus.max_cost_usd = "
                f"{budget_usd:.9f}, {max(0.0, left_usd):.9f} USD are left.",
                param="chorus.max_cost_usd",
            )
        return most_usd


class _Payment:
    """The context of one call, on leaving which it is recorded with its outcome and what it cost. A call that fails
    before `settle` cost nothing that was reported."""

    __slots__ = (
        "_account", "_body", "_by", "_embedding", "_first", "_model", "_reserved_usd", "_started", "_tree",
        "answer", "calling", "shares", "streamed",
    )  # fmt: skip

    def __init__(
        self,
        tree: _Tree,
        account: _Account,
        model: Model,
        body: Mapping[str, Any],
        reserved_usd: float,
        by: Trace,
        embedding: bool,
        first: bool,
    ) -> None:
        self._tree, self._account, self._model, self._body = tree, account, model, body
        self._reserved_usd, self._by, self._embedding, self._first = reserved_usd, by, embedding, first
        self.calling = Calling(tree.deadline.due, tree.session, watch=tree.trace.watch)
        self.shares: tuple[Share, ...] = ()
        self.answer: Mapping[str, Any] | None = None
        self.streamed = False
        self._started = asyncio.get_running_loop().time()

    @property
    def elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started

    def settle(self, shares: tuple[Share, ...]) -> float:
        """It spent this; returns US dollars."""
        self.shares = shares
        return sum(share.cost_usd for share in shares)

    def __enter__(self) -> _Payment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        outcome = "ok" if error is None else "cancelled"
        if isinstance(error, ChorusError):
            outcome = error.outcome
        tree, calling, took_s = self._tree, self.calling, self.elapsed_s
        tree.reserved_usd -= self._reserved_usd
        made, hedges = len(calling.attempts), calling.hedges
        tree.calls_made += max(0, made - 1)
        book = tree.trace.embeddings if self._embedding else tree.trace.calls
        booked = len(book)
        for share in self.shares or (Share(self._model.name, Usage(), 0.0),):
            self._book(book, share, took_s, outcome, max(1, made - hedges), getattr(error, "cause", ""))
        if hedges:
            for share in self._model.hedge_shares(self._body) * hedges:
                self._book(book, replace(share, estimated=True), took_s, "hedged", 1)
        if tree.trace.watch is not None:
            tree.trace.watch.asked(
                self._model.name,
                self._by.level,
                "/embeddings" if self._embedding else tree.path,
                took_s,
                outcome,
                calling.attempts,
                book[booked:],
                self._body,
                self.answer,
                streamed=self.streamed,
                fallback=not self._first,
            )

    def _book(
        self, book: list[Call], share: Share, took_s: float, outcome: str, attempts: int, cause: str = ""
    ) -> None:
        spent = (share.model, share.usage, share.cost_usd, took_s, outcome, attempts, share.estimated)
        book.append(Call(*spent, self._started - self._tree.began, self._by.asker, share.told, cause))
        self._account.spend(share.cost_usd)


class _Unaffordable(BudgetExceeded):
    """There is no money, or no call, left for a fallback: the failure that called for it is what the caller is told."""


def _next_or_raise(error: UpstreamError | _Unaffordable, failed: UpstreamError | None) -> UpstreamError:
    """The failure to tell the caller, should the next fallback fail too: the first one's, for that is the model
    asked for. Raises what no fallback can make good."""
    if failed is None:
        assert isinstance(error, UpstreamError)
        if error.again is Again.NEVER:
            raise error
        return error
    failed.exhausted = failed.exhausted or isinstance(error, UpstreamError)
    return failed


def _vector(embedding: str | Sequence[float]) -> NDArray[np.float32]:
    """One embedding off the wire: base64 of little-endian float32, or a list of numbers from a server that
    ignores `encoding_format`."""
    import numpy as np

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)
