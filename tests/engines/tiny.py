"""Tiny language models that cost nothing: logits drawn from a hash of the ids before them, and an engine that
serves them as an `Engine` would, with its chunks, its refusals to rewind and its preemptions."""

from __future__ import annotations

import queue
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines.engine import Engine, EngineSpec, Sampled
from engines.generation import Event, Generation, Sampling
from engines.host import FusionSpec, Host
from tests.engines.conftest import Ticket
from tests.engines.test_byte_vocab import _tokenizer

VOCABS = {
    "one": ["<eos>", "<pad>", "a", "b", "c", "Ġ", "Ġa", "ab", "bc", "Ġca", "Ċ"],
    "two": ["Ġ", "Ġb", "a", "c", "b", "ca", "<eos>", "Ġa", "Ċ", "ĊĊ", "<pad>"],
}
WIDTH = 6
"""Of hidden states."""
PROMPTS = {"one": (2, 3, 5), "two": (4, 4, 0, 2)}


@dataclass
class TinyModel:
    """A model as the plain loop wants it: rows of logits for ids, and what ids emit."""

    name: str
    seed: int
    rows: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.tokens = VOCABS[self.name]
        plain = [t.replace("Ġ", " ").replace("Ċ", "\n").encode() for t in self.tokens]
        self.emits = [None if t.startswith(b"<") else t for t in plain]
        self.eos = [self.tokens.index("<eos>")]
        self.mute = np.array([self.tokens.index("<pad>")])

    @cached_property
    def bias(self) -> torch.Tensor:
        return torch.tensor(
            [1.0 if t.startswith("Ġ") else -2.5 if t == "<eos>" else 0.0 for t in self.tokens]
        )

    def encode(self, text: bytes) -> list[int]:
        """Own id, else letter by letter: the tokenizer has no merges."""
        if not text:
            return []
        if text in self.emits:
            return [self.emits.index(text)]
        return [self.emits.index(text[i : i + 1]) for i in range(len(text))]

    def row(self, ids: Sequence[int]) -> torch.Tensor:
        """Logits behind `ids`."""
        key = (self.seed, *ids)
        if key not in self.rows:
            drawn = np.random.default_rng(zlib.crc32(repr((self.name, key)).encode()))
            self.rows[key] = (
                torch.tensor(drawn.normal(0, 2, len(self.tokens)), dtype=torch.float32) + self.bias
            )
        return self.rows[key].clone()

    def state(self, ids: Sequence[int]) -> torch.Tensor:
        """Hidden state behind `ids`."""
        seed = zlib.crc32(repr((self.name, self.seed, "state", *ids)).encode())
        return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))

    def run(self, ids: Sequence[int], last: int = 0) -> tuple[Any, None]:
        """Logits after each of `ids`, or of the `last` so many, as PlainModel.run."""
        rows = [self.row(ids[: i + 1]).double().numpy() for i in range(len(ids))[-last:]]
        return np.stack(rows), None


class TinyEngine:
    """Stands where an `Engine` stands. It computes at most `piece` tokens of a request a step; every
    `refuses`-th rewind is refused, and every `forgets`-th watch comes back empty, as after a preemption."""

    def __init__(self, spec: EngineSpec, model: TinyModel, piece: int, refuses: int, forgets: int) -> None:
        self.spec, self.model = spec, model
        self.piece, self.refuses, self.forgets = piece, refuses, forgets
        self.live: dict[str, list[int]] = {}
        self.prompts: dict[str, int] = {}
        self.computed: dict[str, int] = {}
        self.watched: dict[str, frozenset[int]] = {}
        self.rows: dict[str, dict[int, torch.Tensor]] = {}
        self.free: dict[str, int] = {}
        self.looked: dict[str, tuple[int, ...]] = {}
        self.rewinds = self.watches = self.forwards = self.tokens = self.starts = 0

    def add(
        self, request_id: str, prompt: Sequence[int], sampling: Sampling, end_ids: Collection[int]
    ) -> None:
        self.add_forced(request_id, prompt)
        self.free[request_id] = sampling.max_tokens or 99

    def add_forced(self, request_id: str, prompt: Sequence[int], watch: Collection[int] = ()) -> None:
        assert request_id not in self.live
        self.live[request_id] = list(prompt)
        self.prompts[request_id] = len(prompt)
        self.computed[request_id] = 0
        self.starts += 1

    def look_inside(self, request_id: str, layers: Sequence[int]) -> None:
        self.looked[request_id] = tuple(layers)

    def inside(self, request_id: str) -> torch.Tensor:
        assert self.looked[request_id] == (-1,)
        return self.model.state(self.live[request_id][: self.computed[request_id]])[None]

    def cached(self, request_id: str) -> int:
        return 0

    def abort(self, request_ids: Sequence[str]) -> None:
        for name in request_ids:
            for book in (
                self.live, self.computed, self.watched, self.rows, self.free, self.prompts, self.looked,
            ):  # fmt: skip
                book.pop(name, None)

    def rewind(self, request_id: str, length: int) -> bool:
        self.rewinds += 1
        if self.rewinds % self.refuses == 0:
            return False
        assert length <= len(self.live[request_id])
        assert self.computed[request_id] == len(self.live[request_id]), "not stalled"
        del self.live[request_id][max(length, self.prompts[request_id]) :]
        self.computed[request_id] = length
        return True

    def watch(self, request_id: str, indexes: Collection[int]) -> None:
        self.watched[request_id], self.rows[request_id] = frozenset(indexes), {}

    def seen(self, request_id: str) -> dict[int, torch.Tensor]:
        self.watches += bool(self.watched.get(request_id))
        rows = self.rows.pop(request_id, {})
        return {} if self.watched.pop(request_id, None) and self.watches % self.forgets == 0 else rows

    def feed(self, request_id: str, ids: Sequence[int]) -> None:
        self.live[request_id].extend(ids)
        assert len(self.live[request_id]) < self.spec.max_model_len

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def forward(self) -> dict[str, torch.Tensor]:
        out = {}
        self.forwards += 1
        for name, ids in self.live.items():
            start = self.computed[name]
            if start == len(ids):
                continue
            end = self.computed[name] = min(len(ids), start + self.piece)
            self.tokens += end - start
            for i in self.watched.get(name, ()):
                if start < i <= end and i < len(ids):
                    self.rows[name][i] = self.model.row(ids[:i])
            if end == len(ids):
                out[name] = self.model.row(ids)
        return out

    def finish(self, forced: Mapping[str, Sequence[int]]) -> dict[str, Sampled]:
        out = {}
        for name, ids in self.live.items():
            if name in forced:
                ids.extend(forced[name])
            elif name in self.free and self.computed[name] == len(ids):
                row = self.model.row(ids)
                row[self.model.mute[0]] = -torch.inf
                chosen = int(row.argmax())
                ids.append(chosen)
                full = len(ids) - self.prompts[name] >= self.free[name]
                out[name] = Sampled(
                    [chosen], "stop" if chosen in self.model.eos else "length" if full else None
                )
        return out

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


@dataclass
class TinyHost:
    """A host of the two tiny models, and a way to ask it."""

    host: Host
    engines: dict[str, TinyEngine]
    asked: int = 0
    prompts: dict[str, tuple[int, ...]] = field(default_factory=lambda: dict(PROMPTS))

    def send(self, model: str, **sampling: Any) -> Ticket:
        self.asked += 1
        ticket = Ticket(f"tiny-{self.asked}", queue.SimpleQueue[Event]())
        prompts = tuple(self.prompts[name] for name in self.host.members_of(model))
        wanted = Sampling(**{"temperature": 0.0, "max_tokens": 60, **sampling})
        self.host.submit(Generation(ticket.id, model, prompts, wanted), ticket.events.put)
        return ticket


def tiny_host(
    folder: Path,
    fusions: Sequence[FusionSpec],
    *,
    seed: int = 0,
    piece: int = 99,
    refuses: int = 10**9,
    forgets: int = 10**9,
    length: int = 400,
) -> TinyHost:
    """Started; stop it."""
    specs, engines = [], {}
    for name, tokens in VOCABS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        vocab = {token: i for i, token in enumerate(tokens)}
        (folder / name / "tokenizer.json").write_text(_tokenizer(vocab, "bytes", ("<eos>", "<pad>")))
        specs.append(EngineSpec(name, folder / name, max_model_len=length))

    def load(spec: EngineSpec) -> Engine:
        engine = TinyEngine(spec, TinyModel(spec.name, seed), piece, refuses, forgets)
        engines[spec.name] = engine
        return engine  # type: ignore[return-value]

    host = Host(specs, fusions, load=load)
    host.start()
    return TinyHost(host, engines)
