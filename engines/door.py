"""Who is let in: what every engine has taken on, against what it may.

A request counts in the engines of all its members from the moment it is accepted: as one sequence, and as the tokens
it can come to hold, its prompt and its longest answer. Beyond an engine's places, or its share of KV cache, a further
one is told to come back, before it costs anything."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

from engines.engine import EngineSpec
from engines.generation import Generation
from protocol.errors import UpstreamBusy

__all__ = ["Door"]


class Door:
    """Counts what came in and went; safe in any thread. `room`: engine → tokens that may be promised, none where it is
    not bounded."""

    def __init__(self, engines: Sequence[EngineSpec]) -> None:
        self._specs = {spec.name: spec for spec in engines}
        self.room: dict[str, float] = {}
        self._lock = threading.Lock()
        self._places: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()
        self._inside: dict[str, list[tuple[str, int]]] = {}

    def enter(self, generation: Generation, members: Sequence[str]) -> None:
        """Take it on. Raises `UpstreamBusy`, with nothing taken, where an engine is full."""
        wanted = [
            (name, self._most(name, len(prompt), generation.sampling.max_tokens))
            for name, prompt in zip(members, generation.prompts, strict=True)
        ]
        with self._lock:
            for name, tokens in wanted:
                spec = self._specs[name]
                most = spec.max_running + spec.max_waiting
                if self._places[name] >= most:
                    raise UpstreamBusy(f"The model {name!r} has {most} requests under way and takes no more.")
                # One alone is always let in: the cache holds at least one whole context.
                if self._places[name] and self._tokens[name] + tokens > self.room.get(name, float("inf")):
                    raise UpstreamBusy(f"The KV cache of {name!r} is promised to requests under way.")
            for name, tokens in wanted:
                self._places[name] += 1
                self._tokens[name] += tokens
            self._inside[generation.id] = wanted

    def leave(self, id: str) -> None:
        """Give back what it took; unknown ids are ignored."""
        with self._lock:
            for name, tokens in self._inside.pop(id, ()):
                self._places[name] -= 1
                self._tokens[name] -= tokens

    def _most(self, name: str, prompt: int, answer: int | None) -> int:
        length = self._specs[name].max_model_len
        return length if answer is None else min(length, prompt + answer)
