"""When OpenMP's threads spin, and when they sleep."""

from __future__ import annotations

import pytest

from engines import waiting
from engines.waiting import Waiting


class Machine:
    """A clock, and threads that wait as they are told; what was set, in order."""

    def __init__(self) -> None:
        self.now, self.told = 100.0, list[int]()
        self.times = {"1": (0, 0), "2": (0, 0)}

    def pass_time(self, seconds: float, waited: float, thread: str = "2", ran: float | None = None) -> None:
        """During which a thread stood ready for `waited` seconds, and ran in the others."""
        self.now += seconds
        before = self.times[thread]
        ran = seconds - waited if ran is None else ran
        self.times = {**self.times, thread: (before[0] + round(ran * 1e9), before[1] + round(waited * 1e9))}


def test_it_spins_while_the_cores_are_its_own() -> None:
    """Asleep until it is known; spinning while no thread waits for a core; asleep again while one does, and for longer
    than it takes to notice."""
    machine = Machine()
    loop = Waiting(machine.told.append, lambda: machine.times, lambda: machine.now)
    loop.look()
    assert machine.told == [0]
    machine.pass_time(0.3, waited=0.001)
    loop.look()
    assert machine.told == [0, 1]
    machine.pass_time(0.1, waited=0.1)
    loop.look()  # not yet: a look costs time
    assert machine.told == [0, 1]
    machine.pass_time(0.2, waited=0.1)
    loop.look()
    assert machine.told == [0, 1, 0]
    machine.pass_time(0.5, waited=0.0)
    loop.look()
    assert machine.told == [0, 1, 0]
    machine.pass_time(0.6, waited=0.0)
    loop.look()
    assert machine.told == [0, 1, 0, 1]


def test_others_threads_of_the_process_may_wait() -> None:
    """One that serves requests works little and waits for the models' threads: that is no reason to sleep."""
    machine = Machine()
    loop = Waiting(machine.told.append, lambda: machine.times, lambda: machine.now)
    loop.look()
    machine.pass_time(1.0, waited=0.3, thread="1", ran=0.05)
    loop.look()
    assert machine.told == [0, 1]
    machine.pass_time(1.0, waited=0.5, thread="1", ran=0.05)  # it wants much, and does not get it
    loop.look()
    assert machine.told == [0, 1, 0]


def test_threads_come_and_go() -> None:
    """A thread that began since the last look tells nothing yet; without any that is known, the cores count as
    shared."""
    machine = Machine()
    loop = Waiting(machine.told.append, lambda: machine.times, lambda: machine.now)
    loop.look()
    machine.now += 1
    machine.times = {"2": (0, 0), "3": (0, 10**9)}
    loop.look()
    assert loop.spins
    machine.now += 1
    machine.times = {"4": (0, 0)}
    loop.look()
    assert not loop.spins


def test_what_the_environment_says_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user said how to wait, or another OpenMP is loaded, nothing is set."""
    monkeypatch.setenv("KMP_BLOCKTIME", "5")
    assert waiting.set_spin() is None
    monkeypatch.delenv("KMP_BLOCKTIME")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert waiting.set_spin() is None
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(waiting.ctypes, "CDLL", lambda name: object())
    assert waiting.set_spin() is None
    Waiting(None).look()


def test_the_kernel_tells_of_this_process() -> None:
    """Nanoseconds of every thread, where the kernel counts them."""
    assert all(ran >= 0 and waited >= 0 for ran, waited in waiting.times().values())
