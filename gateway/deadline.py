"""The deadline of a call tree: one timer, however many calls the tree makes.

    at `due`               every call that is being waited for, in whichever task, is stopped, and its strategy told by
                           `DeadlineExceeded`; it may still hand over an answer it holds, but make no further call
    `GRACE_S` later        so is whatever the request's own task does

To stop is to cancel. As `asyncio.timeout` does, an own cancellation is told apart from everybody else's by the count
that tasks keep of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

__all__ = ["GRACE_S", "Deadline"]

GRACE_S = 0.25
"""After a call was stopped by the deadline, how long a strategy has to hand over an answer it already holds."""


class Deadline:
    """Used as a context around each wait for a call. `due`: on the event loop's clock; `late` makes the error."""

    __slots__ = ("_before", "_ended", "_late", "_over", "_owner", "_stopped", "_timer", "_waiting", "due")

    def __init__(self, due: float, late: Callable[[], Exception]) -> None:
        self.due, self._late = due, late
        self._waiting: dict[asyncio.Task[object], int] = {}  # with how many cancellations each began to wait
        self._stopped: set[asyncio.Task[object]] = set()
        self._over = self._ended = False

    def start(self) -> None:
        """Begin; the task that runs is the request's own."""
        loop = asyncio.get_running_loop()
        self._owner = _task()
        self._before = self._owner.cancelling()
        self._timer = loop.call_at(self.due, self._ring)

    def close(self, kind: type[BaseException] | None) -> None:
        """The request's own task is done, by an exception of this `kind`. Raises when the deadline ended it."""
        self._timer.cancel()
        if self._ended and self._owner.uncancel() <= self._before and kind is asyncio.CancelledError:
            raise self._late() from None

    def __enter__(self) -> None:
        if self._over:
            raise self._late()
        task = _task()
        self._waiting[task] = task.cancelling()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        task = _task()
        before = self._waiting.pop(task)
        if task in self._stopped:
            self._stopped.discard(task)
            if task.uncancel() <= before and kind is asyncio.CancelledError:
                raise self._late() from None

    def _ring(self) -> None:
        self._over = True
        for task in self._waiting:
            self._stopped.add(task)
            task.cancel()
        self._timer = asyncio.get_running_loop().call_later(GRACE_S, self._end)

    def _end(self) -> None:
        self._ended = True
        self._owner.cancel()


def _task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task
