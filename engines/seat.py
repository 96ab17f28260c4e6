"""One member's place in its engine, for a text that is tried out before it is kept.

A seat is an engine request that may be told to hold any continuation of its prompt. What it holds already and
is wanted again stays in its KV cache: it goes back to where the two part and computes the rest in one forward.
So drafting, reading another member's words and going on from the one that was kept cost a member what is new to it,
and a seat that nobody asks stalls and costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines.engine import Engine

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Seat", "common_length"]

NOTHING = 2**62
"""In `_fixed`: there is no request, and nothing of one can be kept."""


class Seat:
    """`ask` says what to hold, `wake` sets it going between two steps, `take` has the rows when they are there."""

    def __init__(self, engine: Engine, name: str, prompt: Sequence[int]) -> None:
        self.engine = engine
        self.cached = 0
        """Prompt tokens read from the prefix cache when the seat was first taken."""
        self._name, self._prompt = name, tuple(prompt)
        self._held: list[int] = []
        self._fixed = 0
        """How many of those its present request was given as part of its prompt, which cannot be taken back."""
        self._row: tuple[int, Tensor] | None = None
        """Where a request began anew, the first row of what it then was asked for."""
        self._wanted: tuple[list[int], int] | None = None
        self._asleep = True
        self._starts = 0

    @property
    def name(self) -> str:
        """Id of its engine request, the latest one."""
        return f"{self._name}.{self._starts - 1}" if self._starts > 1 else self._name

    @property
    def started(self) -> bool:
        """Whether it has a request in its engine."""
        return self._starts > 0

    def ask(self, ids: Sequence[int], first: int) -> None:
        """Hold the prompt and `ids`, and give the logits after `ids[:p]` for every p from `first` to the end."""
        self._wanted, self._asleep, self._row = (list(ids), first), True, None

    def wake(self) -> None:
        """Begin with what was asked. Call between two steps."""
        if self._wanted is None or not self._asleep:
            return
        self._asleep = False
        ids, first = self._wanted
        behind = len(self._prompt)
        common = common_length(self._held, ids)
        # What precedes the first row wanted is computed again, since a row belongs to the token before it.
        has = self._row is not None and self._row[0] == first
        kept = min(common, first if has else first - 1)
        if self.started and common >= self._fixed and self.engine.rewind(self.name, behind + kept):
            self.engine.watch(self.name, range(behind + first + has, behind + len(ids)))
            self.engine.feed(self.name, ids[max(kept, self._fixed) :])
            self._held = ids
            return
        if self.started:
            self.engine.abort([self.name])
        self._starts += 1
        self._held, self._fixed = ids[:first], first
        self.engine.add_forced(self.name, [*self._prompt, *self._held])

    def give_up(self) -> bool:
        """Free what it holds in its engine, where nobody asks anything of it; False where there is nothing to free. It
        begins anew when it is asked again. Call between two steps."""
        if not self.started or self._wanted is not None or self._fixed == NOTHING:
            return False
        self.engine.abort([self.name])
        self._held, self._fixed, self._row = [], NOTHING, None
        return True

    def leave(self) -> None:
        """Want nothing more, and free what it holds; `ask` takes the place anew. Call between two steps."""
        self._wanted = None
        self.give_up()

    def take(self, row: Tensor) -> list[Tensor] | None:
        """Given the row its request stands at, the rows asked for; None where there is no news, or more to be
        computed. They are views that die with the step."""
        if self._wanted is None or self._asleep:
            return None
        if self._starts == 1:
            self.cached = max(self.cached, min(len(self._prompt), self.engine.cached(self.name)))
        ids, first = self._wanted
        behind = len(self._prompt)
        seen = self.engine.seen(self.name)
        if len(self._held) < len(ids):  # it began anew, and stands at the first row
            self._row, self._asleep = (first, row.clone()), True
            return None
        known = [] if self._row is None else [self._row[1]]
        if len(seen) < len(ids) - first - len(known):
            # It was preempted, and found some of its tokens in the prefix cache: once more.
            self._row, self._asleep = None, True
            return None
        self._wanted = self._row = None
        return [*known, *(seen[behind + p] for p in range(first + len(known), len(ids))), row]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
