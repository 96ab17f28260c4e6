"""Models larger than one device: the same host in several processes, a rank each, that take the same steps.

    rank 0   HTTP → inbox ──┬── take ── forwards ── decide ── finish        serves, and says what comes in
                            │ pipe        ║ vLLM's tensor parallelism: logits are gathered in every rank
    rank 1                  └── take ── forwards ── decide ── finish        hears it, and does the same

Every rank schedules, decides and samples by itself, on the same logits; vLLM calls that an external launcher. So all
that is not a function of the logits comes from rank 0, once a step, before it: requests with a seed, cancellations,
what was done aside, the time. Ranks compare what they chose, and one that chose something else ends.

Rank 0 starts the others, which live as long as the pipe to rank 0 does. When one ends, or a step takes longer than
STEP_S, rank 0's host has crashed. An engine whose model is on one device is computed by every rank for itself."""

from __future__ import annotations

import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from engines.engine import Engine, EngineSpec, Peers
from engines.generation import Generation
from engines.grammar import Grammar
from engines.host import Host
from engines.inbox import Begin, Inbox, Item, News
from protocol.errors import MethodError
from protocol.log_pipe import start_logging
from protocol.settings import Settings

__all__ = ["Follower", "Leader", "Rank"]

STEP_S = 300.0
"""Seconds after which a step hangs. A first grammar over large vocabularies is compiled within one."""
END_S = 10.0
"""Seconds a rank has to end by itself."""
LOOK_S = 0.5
_SIZE = 8


class Rank:
    """One of `count` processes. They find each other by the file `store`."""

    def __init__(self, index: int, count: int, store: Path) -> None:
        self.index, self.count, self.store = index, count, store
        self._alone: Any = None

    def options(self, spec: EngineSpec) -> dict[str, Any]:
        """For vLLM's `EngineArgs`."""
        return {
            "tensor_parallel_size": spec.tensor_parallel,
            "distributed_executor_backend": "external_launcher",
        }

    def executor(self) -> Any:
        """The executor that vLLM is to use in this rank."""
        from vllm.v1.executor.uniproc_executor import ExecutorWithExternalLauncher

        at = (f"file://{self.store}", self.index, self.index)

        class RankExecutor(ExecutorWithExternalLauncher):  # type: ignore[misc]
            # Its own would read the environment, and give all hosts of a machine the same shared memory.
            def _distributed_args(self) -> tuple[str, int, int]:
                return at

        return RankExecutor

    def peers(self, spec: EngineSpec) -> Peers:
        """See `Peers`. To be called when a model of all ranks has been loaded."""
        return nullcontext if spec.tensor_parallel == self.count else self._by_itself

    @contextmanager
    def _by_itself(self) -> Iterator[None]:
        """Of a process vLLM knows one tensor-parallel group; here it is this rank alone."""
        from vllm.distributed import parallel_state as groups

        if self._alone is None:
            ranks = [[rank] for rank in range(self.count)]
            self._alone = groups.init_model_parallel_group(ranks, self.index, "gloo", group_name="alone")
        shared, groups._TP = groups._TP, self._alone  # noqa: SLF001  no public way
        try:
            yield
        finally:
            groups._TP = shared  # noqa: SLF001


# ── what goes through the pipe ──────────────────────────────────────────────────────────────────────────────────


class _Start(msgspec.Struct):
    index: int
    count: int
    store: str
    settings: dict[str, Any]


class _Begin(msgspec.Struct, tag=True):
    generation: Generation
    schema: tuple[bytes, bool] | None


class _Drop(msgspec.Struct, tag=True):
    id: str


class _News(msgspec.Struct, tag=True):
    id: str
    found: Any
    failed: bool


class _End(msgspec.Struct, tag=True):
    pass


class _Orders(msgspec.Struct):
    """Before a step. `choices` sums up what rank 0 chose in the steps so far."""

    now: float
    choices: int
    items: list[_Begin | _Drop | _News | _End]


Message = TypeVar("Message", _Start, _Orders)


def _write(pipe: IO[bytes], message: _Start | _Orders) -> None:
    body = msgspec.msgpack.encode(message)
    left = memoryview(len(body).to_bytes(_SIZE, "big") + body)
    while left:
        left = left[pipe.write(left) :]


def _read(pipe: IO[bytes], kind: type[Message]) -> Message | None:
    """The next message; None where there will be none."""
    size = pipe.read(_SIZE)
    body = pipe.read(int.from_bytes(size, "big"))
    return msgspec.msgpack.decode(body, type=kind) if len(size) == _SIZE and body else None


# ── rank 0 ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Leader(Inbox):
    """Rank 0's inbox, which has the other ranks hear what it hears. `settings`: what all of them load."""

    alone = False

    def __init__(self, settings: Settings, count: int) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp(prefix="chorus-ranks-"))
        # Its name is the host's own: vLLM calls the shared memory of the ranks by it.
        self.rank = Rank(0, count, self._folder / self._folder.name)
        self._settings = _loaded_by_engines(settings)
        self._others: list[subprocess.Popen[bytes]] = []
        self._choices = 0
        self._since: float | None = None
        """Since when a step runs."""
        self._closed = threading.Event()

    def open(self, lost: Callable[[BaseException], None]) -> None:
        """Start the other ranks, and watch them."""
        share = max(1, (os.cpu_count() or 1) // self.rank.count)
        os.environ.setdefault("OMP_NUM_THREADS", str(share))  # where models are on CPUs, ranks share them
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: whatever its name resolves to
        for index in range(1, self.rank.count):
            command = [sys.executable, "-m", "engines.ranks"]
            # No buffer, whose lock a rank that does not read would keep from `close`.
            other = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)
            self._others.append(other)
            assert other.stdin is not None
            with suppress(BrokenPipeError):  # it has ended already, and is about to be found
                _write(other.stdin, _Start(index, self.rank.count, str(self.rank.store), self._settings))
        threading.Thread(target=self._watch, args=(lost,), name="chorus-ranks", daemon=True).start()

    def take(self, *, block: bool) -> Sequence[Item]:
        if block:
            self._since = None
        items = [self._seeded(item) for item in super().take(block=block)]
        self._since = time.monotonic()
        try:
            orders = _Orders(self.now, self._choices, [_sent(item) for item in items])
            for other in self._others:
                assert other.stdin is not None
                _write(other.stdin, orders)
        except Exception:
            for item in items:  # so that whoever asked hears of it
                self.put(item)
            raise
        if items and items[-1] is None:
            self._since = None
        return items

    def agree(self, step: object) -> None:
        self._choices = _summed(step, self._choices)

    def close(self) -> None:
        """Let go of the pipes, and see that the other ranks end."""
        if self._closed.is_set():
            return
        self._closed.set()
        until = time.monotonic() + END_S
        for other in self._others:
            assert other.stdin is not None
            other.stdin.close()
        for other in self._others:
            try:
                other.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                other.kill()
                other.wait()
        _tidy(self._folder)

    def _watch(self, lost: Callable[[BaseException], None]) -> None:
        while not self._closed.wait(LOOK_S):
            for index, other in enumerate(self._others, 1):
                if other.poll() is not None and not self._closed.is_set():
                    lost(RuntimeError(f"rank {index} ended with {other.returncode}"))
                    return
            since = self._since
            if since is not None and time.monotonic() - since > STEP_S:
                lost(TimeoutError(f"a step of {self.rank.count} ranks took more than {STEP_S:.0f} s"))
                return

    def _seeded(self, item: Item) -> Item:
        """With a seed, by which all ranks draw the same; greedy texts do not depend on it."""
        if not isinstance(item, Begin) or item.generation.sampling.seed is not None:
            return item
        asked = item.generation.sampling
        seed = 0 if asked.temperature == 0 else random.getrandbits(62)
        return replace(item, generation=replace(item.generation, sampling=replace(asked, seed=seed)))


def _tidy(folder: Path) -> None:
    """Remove the folder by which ranks found each other, and shared memory of those that were killed."""
    shutil.rmtree(folder, ignore_errors=True)
    for left in Path("/dev/shm").glob(f"{folder.name}-*"):  # noqa: S108  where the kernel has it
        left.unlink(missing_ok=True)


def _loaded_by_engines(settings: Settings) -> dict[str, Any]:
    """What an engine host reads of the settings, without anybody's keys."""
    told = settings.model_dump(mode="json", exclude_unset=True, include={"models", "strategies", "logging"})
    told["models"] = {
        name: {"engine": told["models"][name]["engine"]}
        for name, model in settings.models.items()
        if model.engine is not None
    }
    told["strategies"] = {
        name: {"fuse": told["strategies"][name]["fuse"]}
        for name, strategy in settings.strategies.items()
        if strategy.fuse is not None
    }
    return told


def _sent(item: Item) -> _Begin | _Drop | _News | _End:
    if item is None:
        return _End()
    if isinstance(item, str):
        return _Drop(item)
    if isinstance(item, News):
        if item.outcome.cancelled() or item.outcome.exception() is not None:
            return _News(item.id, None, True)
        return _News(item.id, item.outcome.result(), False)
    grammar: Grammar | None = item.generation.sampling.grammar
    if grammar is None:
        return _Begin(item.generation, None)
    bare = replace(item.generation, sampling=replace(item.generation.sampling, grammar=None))
    return _Begin(bare, (grammar.schema, grammar.strict))


def _summed(step: object, before: int) -> int:
    return zlib.crc32(repr(step).encode(), before)


# ── the other ranks ─────────────────────────────────────────────────────────────────────────────────────────────


class Follower(Inbox):
    """Another rank's inbox: what rank 0 said. `grammar` compiles a schema for a model."""

    alone = leads = False

    def __init__(self, grammar: Callable[[str, Mapping[str, Any], bool], Grammar]) -> None:
        super().__init__()
        self._grammar = grammar
        self._orders: queue.SimpleQueue[_Orders] = queue.SimpleQueue()
        self._choices = 0

    def hear(self, orders: _Orders) -> None:
        """Called from any thread."""
        self._orders.put(orders)

    def take(self, *, block: bool) -> Sequence[Item]:
        """What rank 0 took before the same step. Raises `RuntimeError` where the ranks no longer agree."""
        orders = self._orders.get()
        if orders.choices != self._choices:
            raise RuntimeError("this rank chose other tokens than rank 0")
        self.now = orders.now
        return [self._heard(item) for item in orders.items]

    def agree(self, step: object) -> None:
        self._choices = _summed(step, self._choices)

    def _heard(self, item: _Begin | _Drop | _News | _End) -> Item:
        if isinstance(item, _End):
            return None
        if isinstance(item, _Drop):
            return item.id
        if isinstance(item, _News):
            outcome: Future[Any] = Future()
            if item.failed:
                outcome.set_exception(MethodError("what was done at rank 0 failed"))
            else:
                outcome.set_result(item.found)
            return News(item.id, outcome)
        generation = item.generation
        if item.schema is not None:
            schema, strict = item.schema
            grammar = self._grammar(generation.model, msgspec.json.decode(schema), strict)
            generation = replace(generation, sampling=replace(generation.sampling, grammar=grammar))
        return Begin(generation, lambda event: None)


def main() -> None:
    """Follow the rank 0 at the other end of standard input."""
    from engines.assemble import engine_specs, fusion_specs

    for each in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a terminal and a service manager send them to all; rank 0 decides
        signal.signal(each, signal.SIG_IGN)
    pipe = sys.stdin.buffer
    start = _read(pipe, _Start)
    if start is None:
        return
    settings = Settings.model_validate(start.settings)
    start_logging(settings, f"engines-{start.index}")
    rank = Rank(start.index, start.count, Path(start.store))
    host: Host

    def grammar(model: str, schema: Mapping[str, Any], strict: bool) -> Grammar:
        return host.grammar(model, schema, strict=strict)

    inbox = Follower(grammar)
    ending = threading.Event()

    def listen() -> None:
        while (orders := _read(pipe, _Orders)) is not None:
            if any(isinstance(item, _End) for item in orders.items):
                ending.set()
            inbox.hear(orders)
        if not ending.is_set():  # rank 0 is gone; the loop may hang in a step with it
            _tidy(rank.store.parent)
            os._exit(1)

    threading.Thread(target=listen, name="chorus-rank-0", daemon=True).start()
    host = Host(
        engine_specs(settings),
        fusion_specs(settings),
        on_crash=lambda error: os._exit(1),
        load=partial(Engine.load, rank=rank),
        inbox=inbox,
    )
    host.start()
    host.wait()


if __name__ == "__main__":
    main()
