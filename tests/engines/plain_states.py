"""Methods that look into a model's layers, written a second time on transformers: CITER, ETR, Transformer Copilot and
Mixture of Thoughts.

Nothing here comes from engines/ or ensembles/; of what was learnt the artefacts' tensors are read. The small networks
are loops over heads in numpy, without a cache, in float64; the models are `PlainModel`s."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.engines.plain_loop import Fused, PlainLoop, PlainModel, largest

Prompts = Sequence[Sequence[int]]
Written = tuple[bytes, int]
"""A text, and how many of its bytes came before rounding could decide."""


def learnt(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """An artefact's parameters, and its tensors in float64."""
    from safetensors.numpy import load_file

    told = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "tensors.safetensors")
    return dict(told.get("parameters") or {}), {name: x.astype(np.float64) for name, x in tensors.items()}


@dataclass
class Text:
    """A text under way: what is written, the main model's tokens spent, and where the first close decision was."""

    main: PlainModel
    tokens: int
    steps: list[Fused] | None = None
    text: bytes = b""
    spent: int = 0
    sure: int | None = None

    def add(self, fused: Fused) -> bytes:
        """The likeliest symbol, which is also written as far as there is room; nothing: the end."""
        if self.steps is not None:
            self.steps.append(fused)
        symbol, lead = fused.best()
        if lead < 1e-3:
            self.unsure()
        ids = self.main.encode(symbol) if symbol else []
        room = self.tokens - self.spent
        self.text += symbol if len(ids) <= room else b"".join(self.main.emits[i] or b"" for i in ids[:room])
        self.spent += len(ids)
        return symbol

    def unsure(self) -> None:
        """Rounding may decide what comes next."""
        self.sure = len(self.text) if self.sure is None else self.sure

    @property
    def full(self) -> bool:
        """Whether all tokens are spent."""
        return self.spent >= self.tokens

    @property
    def written(self) -> Written:
        """The result."""
        return self.text, len(self.text) if self.sure is None else self.sure


class Reader:
    """A model that reads on: its last row of logits and its hidden states there, after whatever it was given last."""

    def __init__(self, model: PlainModel, prompt: Sequence[int]) -> None:
        self.model, self.unread, self._cache = model, list(prompt), None
        self.row: Any = None
        self.states: Any = None

    def read(self) -> None:
        """All that is unread, in one forward."""
        if not self.unread:
            return
        self.row, self.states, self._cache = self.model.look(self.unread, self._cache)
        self.unread = []

    def says(self) -> Fused:
        """Its own distribution over the symbols that it finds likely."""
        p = self.model.probabilities(self.row)
        texts = list(dict.fromkeys(self.model.emits[i] or b"" for i in largest(p, 200)))
        return Fused(texts, np.array([p[self.model.ids[text]].sum() for text in texts]))


def routed(
    models: Sequence[PlainModel],
    prompts: Prompts,
    router: Mapping[str, Any],
    tau: float,
    tokens: int,
    steps: list[Fused] | None = None,
) -> tuple[Written, list[int]]:
    """CITER: the small model first. Also who wrote each symbol."""
    small, large = (Reader(model, prompt) for model, prompt in zip(models, prompts, strict=True))
    text, writers = Text(models[0], tokens, steps), list[int]()
    while not text.full:
        small.read()
        score = suffices(router, small.states[-1])
        if abs(score - tau) < 1e-4:
            text.unsure()
        writer = small if score >= tau else large
        writer.read()
        if not (symbol := text.add(writer.says())):
            break
        writers.append(int(writer is large))
        for reader in (small, large):
            reader.unread += reader.model.encode(symbol)
    return text.written, writers


def suffices(router: Mapping[str, Any], state: Any) -> float:
    """The probability that the small model's token is right, by CITER's router."""
    x = router["first.weight"] @ state + router["first.bias"]
    x = (x - router["norm.mean"]) / np.sqrt(router["norm.var"] + 1e-5)
    x = np.maximum(x * router["norm.weight"] + router["norm.bias"], 0)
    x = router["second.weight"] @ x + router["second.bias"]
    return float(1 / (1 + np.exp(-(router["last.weight"] @ x + router["last.bias"])[0])))


def handed_over(
    models: Sequence[PlainModel],
    prompts: Prompts,
    experts: Any,
    bias: float,
    tokens: int,
    steps: list[Fused] | None = None,
) -> tuple[Written, list[int]]:
    """ETR with one expert, to which the text is handed once. Also who wrote each symbol."""
    meta, expert = (Reader(model, prompt) for model, prompt in zip(models, prompts, strict=True))
    text, writers, writer = Text(models[0], tokens, steps), list[int](), meta
    while not text.full:
        writer.read()
        if writer is meta:
            ordinary = max(meta.model.value(meta.row, word) for word in meta.says().texts[:50])
            lead = float(experts[0] @ meta.states[-1]) + bias - ordinary
            if abs(lead) < 1e-3:
                text.unsure()
            if lead > 0:
                writer = expert
                writer.unread += writer.model.encode(text.text) if text.text else []
                writer.read()
        if not (symbol := text.add(writer.says())):
            break
        writers.append(int(writer is expert))
        writer.unread += writer.model.encode(symbol)
    return text.written, writers


# ── a Copilot ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class PlainCopilot:
    """Transformer Copilot over `loop`'s models, the first of which is the Pilot; all have the same weight."""

    loop: PlainLoop
    folder: Path
    strength: float

    def write(self, prompts: Prompts, tokens: int, steps: list[Fused] | None = None) -> Written:
        """Greedy."""
        models = self.loop.models
        readers = [Reader(model, prompt) for model, prompt in zip(models, prompts, strict=True)]
        text, pilot = Text(models[0], tokens, steps), models[0]
        asked = self._asked(pilot, prompts[0])
        self._spoken = _unit(pilot.model.get_output_embeddings().weight.detach().double().numpy())
        said, seen = [np.zeros(asked.shape[1])], list[Any]()
        while not text.full:
            for reader in readers:
                reader.read()
            seen.append(_unit(readers[0].states[1:]).mean(0))
            p = [model.probabilities(reader.row) for model, reader in zip(models, readers, strict=True)]
            f = self._foreseen(pilot, p[0], asked, said, seen)
            said.append(sum(value * self._spoken[pilot.ids[word][0]] for word, value in f.items()))
            if not (symbol := text.add(self._mixed(p, f))):
                break
            for reader in readers:
                reader.unread += reader.model.encode(symbol)
        return text.written

    def _asked(self, pilot: PlainModel, prompt: Sequence[int]) -> Any:
        """The prompt's input embeddings, controls left out, all that end an answer alike."""
        table = pilot.model.get_input_embeddings().weight.detach().double().numpy()
        words = [b"" if i in pilot.eos else pilot.emits[i] for i in prompt]
        return _unit(table[[pilot.ids[word][0] for word in words if word is not None]])

    def _foreseen(self, pilot: PlainModel, p: Any, asked: Any, said: Any, seen: Any) -> dict[bytes, float]:
        """The error foreseen for each of the Pilot's likeliest symbols."""
        kept = self._about["kept"]
        words = list(dict.fromkeys(pilot.emits[i] or b"" for i in largest(p, kept + 50)))
        words = sorted(words, key=lambda word: -p[pilot.ids[word]].sum())[:kept]
        direction = copilot(self._tensors, asked, np.array(said), np.array(seen))
        # A symbol's output embedding is of several ids the first one's.
        return {word: float(self._spoken[pilot.ids[word][0]] @ direction) for word in words}

    def _mixed(self, p: Sequence[Any], f: Mapping[bytes, float]) -> Fused:
        """The mean of the corrected Pilot and the others."""
        pilot, share = self.loop.models[0], 1 / len(p)
        mine = {word: p[0][pilot.ids[word]].sum() for word in f}
        better = {word: max(0.0, mine[word] + self.strength * f[word]) for word in f}
        whole = 1 - sum(mine.values()) + sum(better.values())
        others = self.loop.mixed(p, [0.0, *[share] * (len(p) - 1)])
        q = dict(zip(others.texts, others.q.tolist(), strict=True))
        for word in dict.fromkeys((*others.texts, *f)):
            own = better.get(word)
            if own is None:
                own = float(p[0][pilot.ids.get(word, [])].sum())
            theirs = q.get(word, 0.0)
            q[word] = theirs + share * own / whole
        return Fused(list(q), np.array(list(q.values())))

    @cached_property
    def _tensors(self) -> dict[str, Any]:
        return learnt(self.folder)[1]

    @cached_property
    def _about(self) -> dict[str, Any]:
        return learnt(self.folder)[0]


def copilot(w: Mapping[str, Any], asked: Any, said: Any, seen: Any) -> Any:
    """The network at the last of its positions, from all of them: layers in turn look at themselves, and at the prompt
    and the Pilot's states."""
    slopes = (2.0, 0.5, 0.125, 0.0)
    n = len(said)
    x = said @ w["error"].T
    memory = _unit(np.concatenate([asked @ w["prompt"].T, seen @ w["state"].T]))
    memory_at = np.arange(len(memory)) - len(asked)
    for i in range(sum(name.endswith(".query") for name in w)):
        y = _unit(x)
        source, source_at = (memory, memory_at) if i % 2 else (y, np.arange(n))
        heads = [heard(y[t], t, source, source_at, w, f"{i}.{{}}", slopes, source_at <= t) for t in range(n)]
        x = x + np.array(heads) @ w[f"{i}.mixed"].T
        inner = _unit(x) @ w[f"{i}.up"].T
        x = x + (inner / (1 + np.exp(-inner))) @ w[f"{i}.down"].T
    return _unit(x[-1]) @ w["out"].T / w["out"].shape[0]


def heard(
    y: Any, at: int, source: Any, source_at: Any, w: Mapping[str, Any], name: str, slopes: Any, seen: Any
) -> Any:
    """One query's attention over `source` where it is `seen`, less the further it is, head by head."""
    q, k, v = (x @ w[name.format(part)].T for x, part in ((y, "query"), (source, "key"), (source, "value")))
    size = len(q) // len(slopes)
    parts = []
    for h, slope in enumerate(slopes):
        own = slice(h * size, (h + 1) * size)
        z = k[:, own] @ q[own] / np.sqrt(size) - slope * (at - source_at)
        a = np.where(seen, np.exp(z - z[seen].max()), 0.0)
        parts.append((a / a.sum()) @ v[:, own])
    return np.concatenate(parts)


# ── thoughts ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class PlainThoughts:
    """Mixture of Thoughts over two models, the first of which writes. Both read everything anew at each step."""

    models: Sequence[PlainModel]
    folder: Path
    _tensors: dict[str, Any] = field(default_factory=dict)
    _points: int = 0

    def __post_init__(self) -> None:
        about, self._tensors = learnt(self.folder)
        self._points = about["points"]

    def write(self, prompts: Prompts, tokens: int, steps: list[Fused] | None = None) -> Written:
        """Greedy."""
        ids, text = [list(prompt) for prompt in prompts], Text(self.models[0], tokens, steps)
        while not text.full:
            writer = Reader(self.models[0], ())
            writer.row = self._row(ids, [len(prompt) for prompt in prompts])
            if not (symbol := text.add(writer.says())):
                break
            for own, model in zip(ids, self.models, strict=True):
                own += model.encode(symbol)
        return text.written

    def _row(self, ids: Sequence[Sequence[int]], begin: Sequence[int]) -> Any:
        """The writer's logits behind the text."""
        ends = [
            self._ends(model, own, start) for model, own, start in zip(self.models, ids, begin, strict=True)
        ]
        thoughts: dict[int, Any] = {}

        def think(point: int, states: Any) -> None:
            thoughts[point] = _unit(states) @ self._tensors[f"P.1.{point}"].T

        def take_in(point: int, states: Any) -> Any:
            own = _unit(states) @ self._tensors[f"P.0.{point}"].T
            source, source_at = np.concatenate([own, thoughts[point]]), np.concatenate(ends)
            change = []
            for t, at in enumerate(ends[0]):
                # Of its own tokens those before it, of the other's those that have ended.
                seen = np.concatenate([np.arange(len(own)) <= t, ends[1] <= at])
                slopes = (1.0, 0.25, 0.0625, 0.0)
                name = f"{{}}.0.{point}"
                change.append(heard(own[t], at, source, source_at, self._tensors, name, slopes, seen))
            size = np.sqrt((states**2).mean(-1, keepdims=True))
            return size * (np.array(change) @ self._tensors[f"R.0.{point}"].T)

        with self._between(self.models[1], think), torch.no_grad():
            self.models[1].model(torch.tensor([list(ids[1])]), logits_to_keep=1)
        with self._between(self.models[0], take_in), torch.no_grad():
            out = self.models[0].model(torch.tensor([list(ids[0])]), logits_to_keep=1)
        return out.logits[0, -1].detach().double().numpy()

    def _ends(self, model: PlainModel, ids: Sequence[int], begin: int) -> Any:
        """At which byte each token ends: 0 where the prompt does."""
        ends = np.cumsum([len(model.emits[i] or b"") for i in ids])
        return ends - ends[begin - 1]

    @contextmanager
    def _between(self, model: PlainModel, visit: Any) -> Iterator[None]:
        """`visit` at the end of each of the equal parts of a model's layers, the last before the final norm; in
        forwards of this thread."""
        inner = model.model.model
        behind = [*inner.layers[1:], inner.norm]
        depth, here = len(inner.layers), threading.get_ident()

        def hook(point: int) -> Any:
            def see(_: Any, given: tuple[Any, ...]) -> Any:
                if threading.get_ident() != here:
                    return None
                change = visit(point, given[0][0].detach().double().numpy())
                if change is None:
                    return None
                return (given[0] + torch.tensor(change, dtype=given[0].dtype)[None], *given[1:])

            return see

        with ExitStack() as stack:
            for point in range(self._points):
                place = behind[depth * (point + 1) // self._points - 1]
                stack.callback(place.register_forward_pre_hook(hook(point)).remove)
            yield


def _unit(x: Any) -> Any:
    """Unit mean square in the last dimension."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
