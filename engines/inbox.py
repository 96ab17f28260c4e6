"""What a step loop hears between two steps: requests that begin or are dropped, news for them, and the end."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from engines.generation import Generation, Sink

__all__ = ["Begin", "Inbox", "Item", "News"]


@dataclass(frozen=True, slots=True)
class Begin:
    """A request comes in; its events go to `sink`."""

    generation: Generation
    sink: Sink


@dataclass(frozen=True, slots=True)
class News:
    """What was done aside for a request is done, or failed."""

    id: str
    outcome: Future[Any]


Item = Begin | News | str | None
"""A string is the id of a request to drop, None the end of the loop."""


class Inbox:
    """Of a host that is one process. `put` may be called from any thread, the rest is the loop's."""

    alone = True
    """Whether no other process takes the same steps."""
    leads = True
    """Whether what is to be done aside is done here."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.now = time.monotonic()
        """When the last items were taken, on the clock `time.monotonic`."""

    def open(self, lost: Callable[[BaseException], None]) -> None:
        """Before engines are loaded. `lost` is to be told, from any thread, when the steps cannot go on."""

    def close(self) -> None:
        """After the loop has ended, or broken."""

    def put(self, item: Item) -> None:
        """Have the loop hear of it before its next step."""
        self._waiting.put(item)

    def take(self, *, block: bool) -> Sequence[Item]:
        """All that came, in order; `block` waits for at least one. Nothing comes behind the end."""
        found: list[Item] = []
        while not (found and found[-1] is None):
            try:
                found.append(self._waiting.get(block=block and not found))
            except queue.Empty:
                break
        self.now = time.monotonic()
        return found

    def left(self) -> list[Item]:
        """What nobody will take any more."""
        found = []
        while not self._waiting.empty():
            found.append(self._waiting.get())
        return found

    def agree(self, step: object) -> None:
        """Note what was chosen in a step: plain values. Processes that take the same steps compare it."""
