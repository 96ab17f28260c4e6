"""One call to a model as attempts at its deployments: the one place where a call is tried again.

Choose a deployment (`balancer`), ask it, and when it fails decide (`retrying`) whether, when and whom to ask
next. With hedging, a second deployment is asked when the first one is slow; the first answer counts and the
other call is cancelled. Limits of ours are waited for briefly; open breakers are not, for then there is
nobody to wait for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from backends.balancer import Balancer, Full, Turn
from backends.http1 import header_block
from backends.retrying import Retrying
from protocol.errors import UpstreamBusy, UpstreamError, UpstreamUnavailable
from protocol.tracing import Attempt, Watch

__all__ = ["LONGEST_QUEUE_S", "Attempt", "Attempts", "Calling"]

T = TypeVar("T")

LONGEST_QUEUE_S = 5.0
"""How long a call waits for room within the configured limits, in seconds."""


@dataclass(slots=True)
class Calling:
    """What a call is given, and what it leaves: the `attempts` made, in the order they began.

    `deadline`: on the loop's clock; `session`: calls of one session go to one deployment; `tokens`: about how
    many it will use; `watch`: who is told of it, and so names each attempt to its upstream.
    """

    deadline: float = float("inf")
    session: str | None = None
    tokens: float = 0.0
    attempts: list[Attempt] = field(default_factory=list)
    watch: Watch | None = None

    def begin(self, turn: Turn) -> Attempt:
        """An attempt begins."""
        attempt = Attempt(turn.index)
        self.attempts.append(attempt)
        if self.watch is not None:
            turn.headers = header_block(self.watch.headers(attempt))
        return attempt

    @property
    def hedges(self) -> int:
        """Attempts that were given up because another one answered first."""
        return sum(attempt.outcome == "hedged" for attempt in self.attempts)


class Attempts:
    """Calls to the model `name` over `balancer`'s deployments. `hedge_after_s` None: never hedge."""

    def __init__(
        self, name: str, balancer: Balancer, retrying: Retrying, *, hedge_after_s: float | None = None
    ) -> None:
        self._name, self._balancer, self._retrying = name, balancer, retrying
        self._hedge_after_s = hedge_after_s if len(balancer.seats) > 1 else None
        self._queue: deque[asyncio.Future[None]] = deque()

    async def make(
        self,
        ask: Callable[[Turn], Awaitable[T]],
        calling: Calling,
        *,
        drop: Callable[[T], None],
        hedge: bool = False,
    ) -> T:
        """Ask until there is an answer, or no sense in asking; `drop` gets an answer that came second. Raises the
        last attempt's `UpstreamError`."""
        loop = asyncio.get_running_loop()
        self._retrying.called(loop.time())
        tried: set[int] = set()
        made = 0
        failed: UpstreamError | None = None
        while True:
            found = self._choose(loop.time(), calling, tried)
            try:
                turn = found if isinstance(found, Turn) else await self._turn(found, calling, tried)
            except UpstreamError as nobody:
                raise failed or nobody from None
            made += 1
            tried.add(turn.index)
            try:
                if hedge and self._hedge_after_s is not None and made == 1:
                    return await self._hedged(ask, turn, calling, tried, drop)
                return await self._one(ask, turn, calling)
            except UpstreamError as error:
                now = loop.time()
                wait_s = self._retrying.wait_s(
                    error,
                    now,
                    attempts=made,
                    others=self._balancer.untried(now, tried),
                    left_s=calling.deadline - now,
                )
                error.exhausted = made > 1 or wait_s is not None
                if wait_s is None:
                    raise
                failed = error
            if wait_s:
                await asyncio.sleep(wait_s)

    def left(self) -> None:
        """A call has ended: who waits longest for room may look again."""
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    async def _one(self, ask: Callable[[Turn], Awaitable[T]], turn: Turn, calling: Calling) -> T:
        """One attempt, judged by how it ended."""
        attempt = calling.begin(turn)
        try:
            answer = await ask(turn)
        except UpstreamError as error:
            turn.failed(asyncio.get_running_loop().time(), error)
            attempt.end(error.code or error.type)
            self.left()
            raise
        except BaseException:
            attempt.end("cancelled")
            turn.release()
            self.left()
            raise
        attempt.end("ok")
        return answer

    async def _hedged(
        self,
        ask: Callable[[Turn], Awaitable[T]],
        turn: Turn,
        calling: Calling,
        tried: set[int],
        drop: Callable[[T], None],
    ) -> T:
        """The answer of the first attempt, or of a second one begun `hedge_after_s` later."""
        tasks = [asyncio.create_task(self._one(ask, turn, calling))]
        winner: asyncio.Task[T] | None = None
        try:
            await asyncio.wait(tasks, timeout=self._hedge_after_s)
            if not tasks[0].done() and (second := self._second(calling, tried)) is not None:
                tasks.append(asyncio.create_task(self._one(ask, second, calling)))
            winner = await _first_answer(tasks)
            return winner.result()
        finally:
            for attempt in calling.attempts:
                attempt.end("hedged")  # those that have not ended
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            for task in tasks:
                if task is not winner and not task.cancelled() and task.exception() is None:
                    drop(task.result())

    def _second(self, calling: Calling, tried: set[int]) -> Turn | None:
        """A turn at another deployment, where there is one with room and the retry budget allows it."""
        now = asyncio.get_running_loop().time()
        if not self._balancer.untried(now, tried) or not self._retrying.draw(now):
            return None
        found = self._choose(now, calling, tried)
        if not isinstance(found, Turn):
            return None
        tried.add(found.index)
        return found

    def _choose(self, now: float, calling: Calling, tried: set[int]) -> Turn | Full:
        return self._balancer.choose(now, tokens=calling.tokens, tried=tried, session=calling.session)

    async def _turn(self, found: Turn | Full, calling: Calling, tried: set[int]) -> Turn:
        """A turn at a deployment, waiting for room where that helps. Raises `UpstreamBusy` or
        `UpstreamUnavailable` when there is none in time."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        until = min(now + LONGEST_QUEUE_S, calling.deadline)
        while not isinstance(found, Turn):
            if not found.limits or now >= until or (found.at is not None and found.at > until):
                raise self._refusal(found, now)
            await self._room(found, min(until, found.at or until) - now)
            now = loop.time()
            found = self._choose(now, calling, tried)
        return found

    async def _room(self, full: Full, wait_s: float) -> None:
        """Wait until a call ends, or `wait_s` seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=wait_s)
        except BaseException:
            if waiter.done():
                self.left()  # the news was for somebody who goes on
            raise
        finally:
            waiter.cancel()

    def _refusal(self, full: Full, now: float) -> UpstreamError:
        wait_s = max(0.1, 1.0 if full.at is None else full.at - now)
        if full.limits:
            return UpstreamBusy(
                f"Every deployment of {self._name!r} is at its configured limit.", retry_after_s=wait_s
            )
        return UpstreamUnavailable(
            f"Every deployment of {self._name!r} has failed lately and is left alone for a while.",
            retry_after_s=wait_s,
        )


async def _first_answer(tasks: Sequence[asyncio.Task[Any]]) -> asyncio.Task[Any]:
    """The first task that succeeds, or, when none does, the last that fails."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not pending or task.exception() is None:
                return task
