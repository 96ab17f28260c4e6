"""Asks that mean the same, behind the same wall: by the embedder's cosine, past the guard."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gateway.caching.guard import conflicting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

__all__ = ["Near", "SemanticIndex"]


@dataclass(frozen=True, slots=True)
class Near:
    """An ask that was answered before: where its answer is kept, and how alike it is (cosine)."""

    name: str
    similarity: float


class SemanticIndex:
    """At most `capacity` asks, the oldest going first. Nothing is ever compared across walls."""

    def __init__(self, threshold: float, capacity: int) -> None:
        self._threshold, self._capacity = threshold, capacity
        self._walls: dict[str, _Asks] = {}
        self._order: OrderedDict[tuple[str, str], None] = OrderedDict()

    def find(self, wall: str, words: str, vector: Vector) -> Near | None:
        """The nearest ask at or above the threshold whose words do not turn the meaning round. `vector`: of unit
        length, shape (dimensions,)."""
        asks = self._walls.get(wall)
        if asks is None:
            return None
        similar = asks.vectors @ vector
        for i in np.argsort(-similar):
            if similar[i] < self._threshold:
                return None
            if not conflicting(words, asks.words[i]):
                return Near(asks.names[i], float(similar[i]))
        return None

    def add(self, wall: str, name: str, words: str, vector: Vector) -> None:
        """Remember that the ask is answered under `name`."""
        self.forget(wall, name)
        self._walls.setdefault(wall, _Asks(len(vector))).add(name, words, vector)
        self._order[wall, name] = None
        while len(self._order) > self._capacity:
            self.forget(*next(iter(self._order)))

    def forget(self, wall: str, name: str) -> None:
        """The answer is not kept any more."""
        if (wall, name) in self._order:
            del self._order[wall, name]
            self._walls[wall].remove(name)
            if not self._walls[wall].names:
                del self._walls[wall]


class _Asks:
    """The asks behind one wall; `names` and `words` stand in the order of the rows of `vectors`."""

    def __init__(self, dimensions: int) -> None:
        self.names: list[str] = []
        self.words: list[str] = []
        self._rows = np.empty((4, dimensions), dtype=np.float32)

    @property
    def vectors(self) -> NDArray[np.float32]:
        return self._rows[: len(self.names)]

    def add(self, name: str, words: str, vector: Vector) -> None:
        at = len(self.names)
        if at == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[at] = vector
        self.names.append(name)
        self.words.append(words)

    def remove(self, name: str) -> None:
        at = self.names.index(name)
        self._rows[at] = self._rows[len(self.names) - 1]
        self.names[at], self.words[at] = self.names[-1], self.words[-1]
        del self.names[-1], self.words[-1]
