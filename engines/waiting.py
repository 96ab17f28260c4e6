"""How OpenMP's threads wait for each other: spinning while the cores are ours, asleep while others use them.

A forward is hundreds of short parallel loops. A thread that spins for a millisecond before it sleeps is there when the
next one begins; but on a core that somebody else wants too it spins while the one it waits for cannot run. Measured
with libiomp5 on two cores, one request, SmolLM2-135M + Gemma-3-270M, median ms of a forward each:

    other processes that compute    spin 1 ms                   sleep at once    libgomp, short spin
    none                            26 + 36                     45 + 47          36 + 43
    one                             49 + 63                     43 + 61          54 + 67
    two                             46 + 62, 600 + 470 at worst 81 + 92          53 + 67

So the loop looks, some times a second, how long its threads stood ready without a core, and chooses. Only libiomp5
can be told while it runs; libgomp keeps what `prepare_environment` chose."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["Waiting", "set_spin"]

TASKS = Path("/proc/self/task")
SPIN_MS = 1
QUIET_S, SHARED_S = 0.25, 1.0
"""Seconds between two looks, while the cores are ours and while they are not."""
BUSY, SHARE = 0.4, 0.1
"""Of the threads that wanted a core for at least BUSY of the time, the models' own, one that stood ready without for
more than SHARE of it has to share it. A thread that serves requests waits as well, but for us."""

Times = Mapping[str, tuple[int, int]]
"""By thread, for how many ns it ran, and for how many it was ready to and did not."""


def set_spin() -> Callable[[int], None] | None:
    """Sets for how many ms the calling thread's team spins; None where nothing can or may: OpenMP is not libiomp5, or
    the environment says how to wait."""
    if "KMP_BLOCKTIME" in os.environ or os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        return None
    if not TASKS.is_dir():
        return None
    found: Callable[[int], None] | None = getattr(ctypes.CDLL(None), "kmp_set_blocktime", None)
    return found


def times() -> dict[str, tuple[int, int]]:
    """Of this process's threads."""
    found = {}
    for task in TASKS.iterdir():
        try:
            ran, waited, *_ = (task / "schedstat").read_text(encoding="ascii").split()
        except (OSError, ValueError):  # it ended meanwhile, or this kernel does not count
            continue
        found[task.name] = int(ran), int(waited)
    return found


class Waiting:
    """The choice of one loop; only the thread that runs the models may call `look`."""

    def __init__(
        self,
        spin: Callable[[int], None] | None,
        times: Callable[[], Times] = times,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spin, self._times, self._clock = spin, times, clock
        self._before: Times = {}
        self._looked = self._next = clock()
        self.spins: bool | None = None
        """What was chosen last; None before."""

    def look(self) -> None:
        """Choose anew, where it is time. Until it is known, and where the kernel does not tell: as if cores were
        shared."""
        if self._spin is None or (now := self._clock()) < self._next:
            return
        times, elapsed = self._times(), 1e9 * (now - self._looked)
        known = self._before.keys() & times.keys()
        spins = bool(known) and not any(
            waited > SHARE * elapsed and ran + waited > BUSY * elapsed
            for ran, waited in (_since(self._before[task], times[task]) for task in known)
        )
        if spins is not self.spins:
            self._spin(SPIN_MS if spins else 0)
            self.spins = spins
        self._before, self._looked = times, now
        self._next = now + (QUIET_S if spins or not known else SHARED_S)


def _since(before: tuple[int, int], now: tuple[int, int]) -> tuple[int, int]:
    return now[0] - before[0], now[1] - before[1]
