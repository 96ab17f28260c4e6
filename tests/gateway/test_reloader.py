"""A reload over workers that refuse, are away, or come late: stand-ins that obey as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from gateway import control, reloader
from gateway.config_source import ConfigSource
from gateway.reloader import InForce, Reloader
from gateway.run_dir import RunDir
from protocol.settings import Settings

CONFIG = "models: {%s: {openai: {base_url: 'http://127.0.0.1:9/v1', model: x}}}"


class Workers:
    """What the reloader asks the supervisor for, over workers that listen at their sockets."""

    def __init__(self, folder: Path) -> None:
        self.run_dir = RunDir(folder)
        self.config = folder / "config.yaml"
        self.workers: Any = []
        self.orders: list[tuple[str, str]] = []
        self.taken: list[InForce] = []

    async def add(self, stack: AsyncExitStack, refuses: str = "") -> Any:
        """One more worker, ready at once; it refuses what holds the word `refuses`."""
        name = f"worker-{len(self.workers)}"
        worker = SimpleNamespace(state="ready", program=SimpleNamespace(name=name))

        async def obey(order: control.Order) -> dict[str, Any]:
            self.orders.append((name, order["do"]))
            if order["do"] == "prepare":
                worker.digest = Path(order["config"]).stem
                if refuses and refuses in _text(order["config"]):
                    return {"refused": f"{refuses} is not for me"}
            if order["do"] == "commit":
                self.run_dir.ready_mark(name).write_text(worker.digest)
            return {}

        await stack.enter_async_context(control.listening(self.run_dir.orders(name), obey))
        self.workers.append(worker)
        return worker

    def sockets(self) -> dict[str, Path]:
        return {}

    async def next_helper(self, name: str, settings: Settings, config: Path) -> None:
        raise AssertionError("no embedder is configured")

    def take_over(self, in_force: InForce) -> None:
        self.taken.append(in_force)

    def replace_helper(self, name: str, helper: Any) -> None:
        raise AssertionError("no embedder is configured")


def _text(path: str) -> str:
    return Path(path).read_text()


Begin = Callable[[], Awaitable[Reloader]]


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """What the test leaves at its end."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
def workers() -> Iterator[Workers]:
    """Not in pytest's own folder: its path is too long for a socket."""
    with TemporaryDirectory(prefix="chorus-reloader-") as folder:
        yield Workers(Path(folder))


@pytest.fixture
async def begin(workers: Workers, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Starts a reloader of `workers` whose config names the model "first"."""
    monkeypatch.setattr(reloader, "LOOK_S", 0.02)

    async def start() -> Reloader:
        workers.config.write_text(CONFIG % "first")
        source = ConfigSource(workers.config)
        made = Reloader(source, source.read(), workers.run_dir, workers)
        task = asyncio.create_task(made.run())

        async def end() -> None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        stack.push_async_callback(end)
        return made

    return start


async def test_all_or_none(workers: Workers, stack: AsyncExitStack, begin: Begin, until: Any) -> None:
    """What one worker refuses, none commits; the next good config is committed by all."""
    await workers.add(stack)
    await workers.add(stack, refuses="second")
    made = await begin()
    first = made.in_force
    workers.config.write_text(CONFIG % "second")
    await until(lambda: made.report()["refused_at"] is not None)
    assert made.in_force is first
    assert not [order for order in workers.orders if order[1] == "commit"]
    assert not workers.taken
    workers.config.write_text(CONFIG % "third")
    await until(lambda: made.in_force is not first)
    await until(lambda: {("worker-0", "commit"), ("worker-1", "commit")} <= set(workers.orders))
    assert made.report()["refused_at"] is None
    assert [taken.settings.models.keys() for taken in workers.taken] == [{"third": None}.keys()]
    assert sorted(
        path.stem for path in workers.run_dir.path.glob("*.yaml") if path != workers.config
    ) == sorted({first.digest, made.in_force.digest})


async def test_nobody_there(workers: Workers, stack: AsyncExitStack, begin: Begin, until: Any) -> None:
    """With no worker to try it on, a config waits; it comes into force with the first that is ready."""
    made = await begin()
    first = made.in_force
    workers.config.write_text(CONFIG % "second")
    made.ask()
    await asyncio.sleep(0.2)
    assert made.in_force is first
    await workers.add(stack)
    await until(lambda: "second" in made.in_force.settings.models)


async def test_who_comes_late_catches_up(
    workers: Workers, stack: AsyncExitStack, begin: Begin, until: Any
) -> None:
    """A worker that was starting with the old config while the others reloaded is told as soon as it is ready."""
    await workers.add(stack)
    late = await workers.add(stack)
    late.state = "starting"
    made = await begin()
    workers.config.write_text(CONFIG % "second")
    await until(lambda: "second" in made.in_force.settings.models)
    assert ("worker-1", "commit") not in workers.orders
    workers.run_dir.ready_mark("worker-1").write_text("the digest of before")
    late.state = "ready"
    await until(lambda: ("worker-1", "commit") in workers.orders)
    assert workers.run_dir.ready_mark("worker-1").read_text() == made.in_force.digest


async def test_asked_without_a_change(
    workers: Workers, stack: AsyncExitStack, begin: Begin, until: Any, caplog: Any
) -> None:
    """SIGHUP without a change does nothing, and says so."""
    await workers.add(stack)
    made = await begin()
    caplog.set_level("INFO")
    made.ask()
    await until(lambda: "has not changed" in caplog.text)
    assert not workers.orders


async def test_a_worker_that_is_away() -> None:
    """Where nobody listens, that is told as such."""
    with pytest.raises(control.WorkerAway):
        await control.ask(Path("/nonexistent/worker-0.orders"), {"do": "older"})
