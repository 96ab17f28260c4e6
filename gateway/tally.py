"""Counting that costs next to nothing per request, handed on to prometheus-client a few times a second.

With several workers every value of prometheus-client is a number in a file that all of a boot share, and each
increment of one looks up its labels, asks whether the process has forked, and writes to the file. A tally adds up in
plain numbers, and `flush` hands on what came since: to the file, and so to whoever merges the workers' files. What a
process that is killed loses is what came after its last flush.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Counter, Histogram

__all__ = ["Count", "Spread"]

Labels = tuple[str, ...]


class Count:
    """Adds up for a `counter`, by its labels."""

    __slots__ = ("_counter", "_new")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._new: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """Count `amount`."""
        self._new[labels] = self._new.get(labels, 0.0) + amount

    def flush(self) -> None:
        """Hand on what came since the last time."""
        new, self._new = self._new, {}
        for labels, amount in new.items():
            self._counter.labels(*labels).inc(amount)


class Spread:
    """Counts observations for a `histogram` whose buckets end at `bounds`, by its labels."""

    __slots__ = ("_bounds", "_histogram", "_new")

    def __init__(self, histogram: Histogram, bounds: Sequence[float]) -> None:
        self._histogram, self._bounds = histogram, tuple(bounds)
        self._new: dict[Labels, list[float]] = {}

    def add(self, labels: Labels, value: float) -> None:
        """Count one observation."""
        new = self._new.get(labels)
        if new is None:  # a number for each bucket, one for what is beyond them, and the sum
            new = self._new[labels] = [0.0] * (len(self._bounds) + 2)
        new[bisect_left(self._bounds, value)] += 1.0
        new[-1] += value

    def flush(self) -> None:
        """Hand on what came since the last time."""
        new, self._new = self._new, {}
        for labels, (*counts, total) in new.items():
            # prometheus-client has no public way to take over observations that are counted already.
            child = self._histogram.labels(*labels)
            for bucket, count in zip(child._buckets, counts, strict=True):  # noqa: SLF001
                if count:
                    bucket.inc(count)
            child._sum.inc(total)  # noqa: SLF001
