"""Engines without a model: next-token logits drawn from a table by the last tokens, over tiny vocabularies."""

from __future__ import annotations

import queue
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engines.engine import Engine, EngineSpec, Sampled
from engines.generation import Event, Failure, Generation, Piece, Sampling
from engines.host import FusionSpec, Host
from tests.engines.test_byte_vocab import _tokenizer

LETTERS = {"<eos>": 0, "a": 1, "b": 2, "c": 3}
PAIRS = {"<eos>": 0, "c": 1, "ab": 2, "a": 3, "b": 4}


class TableEngine:
    """Stands where an `Engine` stands, for forced requests. It checks what the real one trusts: that only
    stalled requests are fed and rewound, and only with something; and refuses every fourth rewind."""

    def __init__(self, spec: EngineSpec, size: int, seed: int) -> None:
        self.spec, self.size, self.seed = spec, size, seed
        self.live: dict[str, list[int]] = {}
        self.prompts: dict[str, int] = {}
        self.computed: dict[str, int] = {}
        self.before: dict[str, int] = {}
        self.watched: dict[str, frozenset[int]] = {}
        self.rewinds = self.forwards = 0
        self._table: dict[tuple[int, ...], torch.Tensor] = {}

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """The row after `ids`: a function of the last three."""
        key = tuple(ids[-3:])
        if key not in self._table:
            generator = torch.Generator().manual_seed(hash((self.seed, *key)) % 2**31)
            self._table[key] = torch.randn(self.size, generator=generator) * 1.5
        return self._table[key]

    def add_forced(self, request_id: str, prompt: Sequence[int], watch: Collection[int] = ()) -> None:
        assert request_id not in self.live
        self.live[request_id] = list(prompt)
        self.prompts[request_id] = len(prompt)
        self.computed[request_id] = 0
        self.watch(request_id, watch)

    def watch(self, request_id: str, indices: Collection[int]) -> None:
        self.watched[request_id] = frozenset(indices)

    def seen(self, request_id: str) -> dict[int, torch.Tensor]:
        ids = self.live[request_id]
        watched = self.watched.pop(request_id, ())
        return {i: self.logits(ids[:i]) for i in watched if self.before[request_id] < i < len(ids)}

    def feed(self, request_id: str, ids: Sequence[int]) -> None:
        assert ids
        assert self.computed[request_id] == len(self.live[request_id])
        self.live[request_id].extend(ids)

    def rewind(self, request_id: str, keep: int) -> bool:
        assert keep <= len(self.live[request_id]) == self.computed[request_id]
        self.rewinds += 1
        if self.rewinds % 4 == 0 or keep < self.prompts[request_id]:
            return False
        del self.live[request_id][keep:]
        self.computed[request_id] = keep
        return True

    def cached(self, request_id: str) -> int:
        return 0

    def abort(self, request_ids: Sequence[str]) -> None:
        for name in request_ids:
            for table in (self.live, self.prompts, self.computed, self.before, self.watched):
                table.pop(name, None)  # type: ignore[attr-defined]

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def forward(self) -> dict[str, torch.Tensor]:
        rows = {}
        for name, ids in self.live.items():
            if self.computed[name] != len(ids):
                self.before[name], self.computed[name] = self.computed[name], len(ids)
                rows[name] = self.logits(ids)
        self.forwards += bool(rows)
        return rows

    def finish(self, forced: Mapping[str, Sequence[int]]) -> dict[str, Sampled]:
        for name, ids in forced.items():
            assert self.computed[name] == len(self.live[name])
            self.live[name].extend(ids)
        return {}

    def counts(self) -> tuple[int, int]:
        return len(self.live), 0

    def kv_usage(self) -> float:
        return 0.0

    crowded = False

    def kv_tokens(self) -> int:
        return 64

    def recover(self) -> None:
        self.abort(list(self.live))

    def close(self) -> None:
        pass


def host_of(
    tmp_path: Path, members: Mapping[str, tuple[dict[str, int], int]], fusions: Sequence[FusionSpec]
) -> tuple[Host, dict[str, TableEngine]]:
    """A running host; `members` names each engine's vocabulary and seed."""
    specs = []
    for name, (vocab, _) in members.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(_tokenizer(vocab, "bytes", ("<eos>",)))
        specs.append(EngineSpec(name, tmp_path / name, max_model_len=64, max_waiting=10_000))
    engines: dict[str, TableEngine] = {}

    def load(spec: EngineSpec) -> Engine:
        vocab, seed = members[spec.name]
        engines[spec.name] = TableEngine(spec, len(vocab), seed)
        return engines[spec.name]  # type: ignore[return-value]

    host = Host(specs, fusions, load=load)
    host.start()
    return host, engines


def answers(
    host: Host,
    model: str,
    prompts: Sequence[Sequence[int]],
    weights: tuple[float, ...] | None = None,
    **sampling: Any,
) -> list[str]:
    """Texts for prompts that are the same ids for every member, decoded side by side. An end is written as
    a full stop. Raises the error of one that failed."""
    waiting = []
    for n, prompt in enumerate(prompts):
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        asked = Sampling(**{"temperature": 0.0, "max_tokens": 24, "seed": n, **sampling})
        each = (tuple(prompt),) * len(host.members_of(model))
        host.submit(Generation(f"{model}-{n}", model, each, asked, weights), events.put)
        waiting.append(events)
    texts = []
    for events in waiting:
        text = ""
        while isinstance(event := events.get(timeout=60), Piece):
            text += event.text
        if isinstance(event, Failure):
            raise event.error
        texts.append(text + {"stop": ".", "length": ""}[event.reason])
    return texts
