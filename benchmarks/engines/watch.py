"""A host that writes down where each step's time went."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from engines.decode import Joint
from engines.engine import Engine, EngineSpec, Sampled
from engines.generation import Generation, Sink
from engines.host import FusionSpec, Host

__all__ = ["StepTime", "WatchedHost"]

ALIGN = ("project", "top", "read", "begin", "log_mass", "shared")
"""What a fusion asks of the union of the vocabularies."""
COMMIT = ("_commit", "wake")
"""What a decode does with a decision: bytes to ids, text to the client, members set going."""


@dataclass(slots=True)
class StepTime:
    """One step of the loop. Seconds by part: "forward NAME", "finish NAME", "align", "mix", "commit"; what is left of
    `total` is the loop's. `rows`: sequences that each engine decoded."""

    total: float = 0.0
    parts: Counter[str] = field(default_factory=Counter)
    rows: dict[str, int] = field(default_factory=dict)

    def sum(self, prefix: str) -> float:
        """Seconds in the parts whose name begins so."""
        return sum(seconds for name, seconds in self.parts.items() if name.startswith(prefix))


class WatchedHost(Host):
    """`steps` grows by one a step."""

    def __init__(self, engines: Sequence[EngineSpec], fusions: Sequence[FusionSpec] = ()) -> None:
        self.steps: list[StepTime] = []
        self._now = StepTime()
        self._inside = 0.0
        """Seconds in the parts that ended inside the one that is timed."""
        super().__init__(engines, fusions, load=self._load_watched)

    @contextmanager
    def part(self, name: str) -> Iterator[StepTime]:
        """Time what happens inside, less the parts inside it."""
        begun, outside = time.perf_counter(), self._inside
        self._inside = 0.0
        try:
            yield self._now
        finally:
            spent = time.perf_counter() - begun
            self._now.parts[name] += spent - self._inside
            self._inside = outside + spent

    def start(self) -> None:
        """Load, and watch the unions of the vocabularies."""
        super().start()
        for union in {id(team.union): team.union for team in self._teams.values()}.values():
            self._watch(union, dict.fromkeys(ALIGN, "align"))

    def _load_watched(self, spec: EngineSpec) -> Engine:
        return _WatchedEngine(Engine.load(spec), self.part)  # type: ignore[return-value]  # the same methods

    def _begin(self, generation: Generation, sink: Sink) -> None:
        super()._begin(generation, sink)
        decode = self._live.get(generation.id)
        if isinstance(decode, Joint):
            self._watch(decode, {"advance": "mix", **dict.fromkeys(COMMIT, "commit")})

    def _watch(self, thing: Any, parts: Mapping[str, str]) -> None:
        """Have calls of these methods of this one object timed."""
        for method, part in parts.items():
            if hasattr(thing, method):
                thing.__dict__[method] = self._timed(part, getattr(thing, method))

    def _timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            with self.part(part):
                return call(*given)

        return timed

    def _step(self) -> None:
        self._now = StepTime()
        begun = time.perf_counter()
        super()._step()
        self._now.total = time.perf_counter() - begun
        self.steps.append(self._now)


class _WatchedEngine:
    """An engine whose two halves of a step are timed."""

    def __init__(self, engine: Engine, part: Callable[[str], Any]) -> None:
        self._engine, self._part = engine, part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self) -> dict[str, Any]:
        name = self._engine.spec.name
        with self._part(f"forward {name}") as step:
            rows = self._engine.forward()
        step.rows[name] = len(rows)
        return rows

    def finish(self, forced: Mapping[str, Collection[int]]) -> dict[str, Sampled]:
        with self._part(f"finish {self._engine.spec.name}"):
            return self._engine.finish(forced)  # type: ignore[arg-type]
