"""When OpenMP's threads spin, and when they sleep."""

from __future__ import annotations

import pytest

from engines import waiting
from engines.waiting import Waiting


class Machine:
    """A clock, and threads that wait as they are told; what was set, in order."""

    def __init__(self) -> None:
        self.now, self.told = 100.0, list[int]()
        self.waited = {"1": 0, "2": 0}

    def pass_time(self, seconds: float, waited: float) -> None:
        """During which the second thread stood ready for `waited` seconds."""
        self.now += seconds
        self.waited = {**self.waited, "2": self.waited["2"] + round(waited * 1e9)}


def test_it_spins_while_the_cores_are_its_own() -> None:
    """Asleep until it is known; spinning while no thread waits for a core; asleep again while one does, and for longer
    than it takes to notice."""
    machine = Machine()
    loop = Waiting(machine.told.append, lambda: machine.waited, lambda: machine.now)
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


def test_threads_come_and_go() -> None:
    """A thread that began since the last look tells nothing yet; without any that is known, the cores count as
    shared."""
    machine = Machine()
    loop = Waiting(machine.told.append, lambda: machine.waited, lambda: machine.now)
    loop.look()
    machine.now += 1
    machine.waited = {"2": 0, "3": 10**9}
    loop.look()
    assert loop.spins
    machine.now += 1
    machine.waited = {"4": 0}
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
    assert all(ns >= 0 for ns in waiting.waits().values())
