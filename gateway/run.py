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

from backends.model import Model, ModelStream
from backends.passing import Outgoing, Passed
from backends.pricing import Share
from gateway.catalogue import Catalogue
from protocol.chat import ChatRequest
from protocol.errors import (
    BudgetExceeded,
    ChorusError,
    DeadlineExceeded,
    MethodError,
    ModelNotFound,
)
from protocol.run import Answer, Call, Chunk, Event, Reply, Trace
from protocol.usage import Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Limits", "LiveRun", "open_run"]

GRACE_S = 0.25
"""After a call was stopped by the deadline, how long a strategy has to hand over an answer it already
holds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call tree may use: seconds, US dollars (None: no bound), calls, and levels of strategies."""

    deadline_s: float
    budget_usd: float | None = None
    max_calls: int = 64
    max_depth: int = 4


@dataclass(slots=True)
class _Tree:
    """What all runs of one request share. `deadline`: on the event loop's clock."""

    catalogue: Catalogue
    limits: Limits
    path: str
    deadline: float
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
    catalogue: Catalogue, limits: Limits, *, path: str = "/chat/completions"
) -> AsyncIterator[LiveRun]:
    """The run of one request, to be used inside this context. `path` is the surface its models are asked on.

    Leaving it closes what is still open. Raises `DeadlineExceeded` when the deadline ended what was done
    inside.
    """
    tree = _Tree(catalogue, limits, path, asyncio.get_running_loop().time() + limits.deadline_s)
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

    async def call(self, name: str, request: ChatRequest) -> Reply:
        whole = request.changed(stream=None, stream_options=None) if request.stream else request
        if (strategy := self._tree.catalogue.strategies.get(name)) is not None:
            account = _Account(self._account)
            async with aclosing(cast(Any, strategy.answer(whole, self._deeper(name, account)))) as events:
                async for event in events:
                    if isinstance(event, Answer):
                        return replace(event.reply, cost_usd=account.spent_usd)
            raise MethodError(f"The strategy {name!r} gave no complete answer.")
        model = self._model(name)
        with self._accounted(model, whole.body) as paid:
            async with self._in_time():
                completed = await model.call(self._tree.path, whole.body)
            cost_usd = paid.settle(completed.shares)
        return Reply(completed.body, model.members, completed.raw, cost_usd, paid.elapsed_s)

    async def relay(self, name: str, request: ChatRequest) -> AsyncIterator[Event]:
        if (strategy := self._tree.catalogue.strategies.get(name)) is not None:
            async with aclosing(
                cast(Any, strategy.answer(request, self._deeper(name, self._account)))
            ) as events:
                async for event in events:
                    yield event
        elif request.stream:
            async with aclosing(self._chunks(self._model(name), request)) as chunks:
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
                completed = await model.call("/embeddings", body)
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
                passed = await model.forward(outgoing)
            try:
                yield passed
            finally:
                passed.abort()
                paid.settle(model.shares(passed.usage))

    async def _chunks(self, model: Model, request: ChatRequest) -> AsyncGenerator[Chunk, None]:
        """The events of `model`'s stream; what it spent is settled when it ends, however it ends."""
        tree = self._tree
        with self._accounted(model, request.body) as paid:
            async with self._in_time():
                stream = await model.stream(tree.path, request.body)
            tree.streams.add(stream)
            try:
                async with aclosing(cast(Any, stream.__aiter__())) as events:
                    async for data in events:
                        yield Chunk(data, model.members)
                tree.tail = stream.usage_event
                paid.settle(stream.shares)
            finally:
                stream.abort()
                tree.streams.discard(stream)

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
        self, model: Model, body: Mapping[str, Any], *, embedding: bool = False
    ) -> Iterator[_Payment]:
        """One call of the tree: admitted first, then recorded with its outcome and what it cost."""
        tree = self._tree
        estimate_usd = self._affordable_usd(model, body)
        if tree.calls_made >= tree.limits.max_calls:
            raise MethodError(
                f"A request may make no more than server.max_calls = {tree.limits.max_calls} calls."
            )
        tree.calls_made += 1
        tree.reserved_usd += estimate_usd
        payment = _Payment(asyncio.get_running_loop().time())
        outcome = "cancelled"
        try:
            yield payment
            outcome = "ok"
        except ChorusError as error:
            outcome = error.outcome
            raise
        finally:
            tree.reserved_usd -= estimate_usd
            book = tree.trace.embeddings if embedding else tree.trace.calls
            for share in payment.shares or (Share(model.name, Usage(), 0.0),):
                book.append(Call(share.model, share.usage, share.cost_usd, payment.elapsed_s, outcome))
                self._account.spend(share.cost_usd)

    def _affordable_usd(self, model: Model, body: Mapping[str, Any]) -> float:
        """What the call may cost, in US dollars, to be held until it is known. Raises `BudgetExceeded`."""
        budget_usd = self._tree.limits.budget_usd
        if budget_usd is None:
            return 0.0
        estimate_usd, left_usd = model.estimate_usd(body), self.remaining_usd
        if left_usd <= 0 or estimate_usd > left_usd:
            raise BudgetExceeded(
                f"A call to {model.name!r} costs about {estimate_usd:.9f} USD; of chorus.max_cost_usd = "
                f"{budget_usd:.9f}, {max(0.0, left_usd):.9f} USD are left.",
                param="chorus.max_cost_usd",
            )
        return estimate_usd

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
    shares: tuple[Share, ...] = ()

    @property
    def elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self.started

    def settle(self, shares: tuple[Share, ...]) -> float:
        self.shares = shares
        return sum(share.cost_usd for share in shares)


def _vector(embedding: str | Sequence[float]) -> NDArray[np.float32]:
    """One embedding off the wire: base64 of little-endian float32, or a list of numbers from a server that
    ignores `encoding_format`."""
    import numpy as np

    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding), dtype="<f4")
    return np.asarray(embedding, dtype=np.float32)
