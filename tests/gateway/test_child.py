"""One child process kept alive."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.child import BAD_SETTINGS, Child, Program, pause_s

SLEEP = "import time; print('hello from the child'); time.sleep(60)"


@pytest.fixture
def printed() -> list[str]:
    """What children of `start` printed, line by line, each with the child's name."""
    return []


@pytest.fixture
async def start(tmp_path: Path, printed: list[str]) -> AsyncIterator[Callable[..., Child]]:
    """Starts a child that runs Python `code` and counts as ready while the file `up` exists; ends it
    afterwards."""
    up = tmp_path / "up"
    children: list[tuple[Child, asyncio.Task[None]]] = []

    async def ready() -> bool:
        return up.exists()

    def make(code: str, *, is_up: bool = True, **fields: Any) -> Child:
        if is_up:
            up.touch()
        program = Program("kid", (sys.executable, "-c", code), ready, **fields)
        child = Child(program, lambda name, line: printed.append(f"{name} | {line.decode()}"))
        children.append((child, asyncio.create_task(child.keep())))
        return child

    yield make
    for child, task in children:
        await child.stop(5)
        await task


@pytest.mark.parametrize(("failures", "pause"), [(0, 0.5), (1, 1.0), (2, 2.0), (6, 30.0), (99, 30.0)])
def test_pauses_grow(failures: int, pause: float) -> None:
    """The pause doubles with each failure in a row, up to half a minute."""
    assert pause_s(failures) == pause


async def test_ready(start: Any, until: Any, tmp_path: Path, printed: list[str]) -> None:
    """A child is starting until its probe succeeds; what it prints is relayed line by line."""
    child = start(SLEEP, is_up=False)
    await until(lambda: "kid | hello from the child" in printed)
    assert child.report()["state"] == "starting"
    assert not child.first_ready.is_set()
    (tmp_path / "up").touch()
    await until(lambda: child.state == "ready")


async def test_restart(start: Any, until: Any) -> None:
    """A killed child is started again, and its report says why and how often."""
    ended: list[int] = []
    child = start(SLEEP, ended=ended.append)
    await child.first_ready.wait()
    pid = child.report()["pid"]
    os.kill(pid, 9)
    await until(lambda: child.state == "restarting")
    assert "SIGKILL" in child.report()["reason"]
    await until(lambda: child.state == "ready")
    assert child.restarts == 1
    assert child.report()["pid"] != pid
    assert ended == [pid]


async def test_unresponsive(start: Any, until: Any, tmp_path: Path) -> None:
    """A child that lives but fails its probe is reported, and not killed."""
    child = start(SLEEP)
    await child.first_ready.wait()
    pid = child.report()["pid"]
    (tmp_path / "up").unlink()
    await until(lambda: child.state == "unresponsive")
    (tmp_path / "up").touch()
    await until(lambda: child.state == "ready")
    assert child.report()["pid"] == pid


async def test_bad_settings_are_final(start: Any, until: Any) -> None:
    """A child that says its config is wrong is not started again."""
    child = start(f"raise SystemExit({BAD_SETTINGS})", is_up=False)
    await child.first_ready.wait()
    assert child.state == "failed"
    assert child.restarts == 0


async def test_stubborn_child_is_killed(start: Any) -> None:
    """A child that ignores SIGTERM is killed when its grace is over."""
    child = start("import signal, time; signal.signal(15, signal.SIG_IGN); print('x'); time.sleep(60)")
    await child.first_ready.wait()
    await asyncio.sleep(0.5)
    pid = child.report()["pid"]
    await child.stop(0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
