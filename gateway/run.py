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
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from backends.attempts import Calling
from backends.model import Completed, Model, ModelStream
from backends.passing import Outgoing, Passed
from backends.pricing import Share
from gateway.catalogue import Catalogue
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
from protocol.run import Answer, Call, Chunk, Deciding, Event, Reply, Strategy, Trace
from protocol.tracing import Watch
from protocol.usage import Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Limits", "LiveRun", "open_run"]

GRACE_S = 0.25
"""After a call was stopped by the deadline, how long a strategy has to hand over an answer it already
holds."""


_BOUNDED_BY: Mapping[str, tuple[str, ...]] = {
    "/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/completions": ("max_tokens",),
    "/responses": ("max_output_tokens",),
}
"""Surface → the fields that bound an answer; of those of Messages the bound is required."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call tree may use: seconds, US dollars (None: no bound), calls, and levels of strategies."""

    deadline_s: float
    budget_usd: float | None = None
    max_calls: int = 64
    max_depth: int = 4
    caps: Mapping[str, int] = field(default_factory=dict)
    """Model → the most tokens its answer may have where the request does not say; sent along."""

    def capped(self, name: str, body: Mapping[str, Any], path: str) -> Mapping[str, Any]:
        """`body`, to be sent to `path`, with a bound on the answer of the model `name`, where it has none and one
        is set."""
        cap, fields = self.caps.get(name), _BOUNDED_BY.get(path)
        if cap is None or fields is None or any(body.get(field) for field in fields):
            return body
        return {**body, fields[0]: cap}


@dataclass(slots=True)
class _Tree:
    """What all runs of one request share. `deadline`: on the event loop's clock."""

    catalogue: Catalogue
    limits: Limits
    path: str
    deadline: float
    session: str | None = None
    trace: Trace = field(default_factory=Trace)
    calls_made: int = 0
    reserved_usd: float = 0.0
    streams: set[ModelStream] = field(default_factory=set)
    tail: Mapping[str, Any] | None = None

    def late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"The answer was not complete within the deadline of {self.limits.deadline_s:g} s.",
            param="chorus.deadline_ms",
        )


@dataclass(slots=True)
class _Account:
    """US dollars spent by one strategy and all it called."""

    payer: _Account | None = None
    spent_usd: float = 0.0

    def spend(self, usd: float) -> None:
        self.spent_usd += usd
        if self.payer is not None:
            self.payer.spend(usd)


@asynccontextmanager
async def open_run(
    catalogue: Catalogue,
    limits: Limits,
    *,
    path: str = "/chat/completions",
    session: str | None = None,
    watch: Watch | None = None,
) -> AsyncIterator[LiveRun]:
    """The run of one request, to be used inside this context. `path` is the surface its models are asked on;
    requests of one `session` keep to one deployment of a model; `watch` is told of every asking.

    Leaving it closes what is still open. Raises `DeadlineExceeded` when the deadline ended what was done
    inside.
    """
    tree = _Tree(catalogue, limits, path, asyncio.get_running_loop().time() + limits.deadline_s, session)
    tree.trace.watch = watch
    try:
        async with asyncio.timeout_at(tree.deadline + GRACE_S) as timer:
            yield LiveRun(tree, tree.trace, _Account())
    except TimeoutError:
        if timer.expired():
            raise tree.late() from None
        raise
    finally:
        for stream in tree.streams:
            stream.abort()


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
        return self._tree.deadline - asyncio.get_running_loop().time()

    @property
    def remaining_usd(self) -> float:
        budget = self._tree.limits.budget_usd
        return float("inf") if budget is None else budget - self.trace.cost_usd - self._tree.reserved_usd

    @property
    def tail(self) -> Mapping[str, Any] | None:
        """The event with which the last relayed stream reported its usage; None when it reported none."""
        return self._tree.tail

    def lacks(self, name: str, request: ChatRequest) -> str | None:
        return self._tree.catalogue.lacks(name, request.body)

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
                return await self._reply(model, whole.body, first=failed is None)
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
            async with self._in_time():
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
            async with self._in_time():
                passed = await model.forward(outgoing, paid.calling)
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
            async with self._in_time():
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
                async with aclosing(self._stream(model, request.body, first=failed is None)) as chunks:
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
            async with self._in_time():
                stream = await model.stream(tree.path, body, paid.calling)
            paid.streamed = True
            tree.streams.add(stream)
            try:
                async with aclosing(cast(Any, stream.__aiter__())) as events:
                    async for data in events:
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

    @contextmanager
    def _accounted(
        self, model: Model, body: Mapping[str, Any], *, embedding: bool = False, first: bool = True
    ) -> Iterator[_Payment]:
        """One call of the tree: admitted first, then recorded with its outcome and what it cost. Raises
        `BudgetExceeded`, for a fallback (not `first`) `_Unaffordable`."""
        tree = self._tree
        reserved_usd = self._reserve(model, body, first)
        if tree.calls_made >= tree.limits.max_calls:
            raise (MethodError if first else _Unaffordable)(
                f"A request may make no more than server.max_calls = {tree.limits.max_calls} calls."
            )
        tree.calls_made += 1
        tree.reserved_usd += reserved_usd
        watch = tree.trace.watch
        calling = Calling(tree.deadline, tree.session, watch=watch)
        payment = _Payment(asyncio.get_running_loop().time(), calling)
        outcome = "cancelled"
        try:
            yield payment
            outcome = "ok"
        except ChorusError as error:
            outcome = error.outcome
            raise
        finally:
            tree.reserved_usd -= reserved_usd
            took_s = payment.elapsed_s
            tree.calls_made += max(0, len(calling.attempts) - 1)
            attempts = max(1, len(calling.attempts) - calling.hedges)
            book = tree.trace.embeddings if embedding else tree.trace.calls
            booked = len(book)
            for share in payment.shares or (Share(model.name, Usage(), 0.0),):
                book.append(
                    Call(share.model, share.usage, share.cost_usd, took_s, outcome, attempts, share.estimated)
                )
                self._account.spend(share.cost_usd)
            for share in model.hedge_shares(body) * calling.hedges:
                book.append(Call(share.model, share.usage, share.cost_usd, took_s, "hedged", estimated=True))
                self._account.spend(share.cost_usd)
            if watch is not None:
                watch.asked(
                    model.name,
                    self._trace.level,
                    "/embeddings" if embedding else tree.path,
                    took_s,
                    outcome,
                    calling.attempts,
                    book[booked:],
                    body,
                    payment.answer,
                    streamed=payment.streamed,
                    fallback=not first,
                )

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

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Ends what it wraps at the tree's deadline. Raises `DeadlineExceeded`."""
        try:
            async with asyncio.timeout_at(self._tree.deadline) as timer:
                yield
        except TimeoutError:
            if timer.expired():
                raise self._tree.late() from None
            raise


@dataclass(slots=True)
class _Payment:
    """What a call turned out to cost; a call that fails before `settle` cost nothing that was reported."""

    started: float
    calling: Calling
    shares: tuple[Share, ...] = ()
    answer: Mapping[str, Any] | None = None
    streamed: bool = False

    @property
    def elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self.started

    def settle(self, shares: tuple[Share, ...]) -> float:
        self.shares = shares
        return sum(share.cost_usd for share in shares)


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
