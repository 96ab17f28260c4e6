"""Which plain loop belongs to which method: tests/engines/plain_loop.py and plain_spans.py, with a fusion's options."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from benchmarks.lineup import Entry
from engines.byte_vocab import ByteVocab
from engines.union import Union
from protocol.methods import find_method, load_method
from tests.engines.plain_loop import Fused, PlainLoop, PlainModel, Rule
from tests.engines.plain_spans import PlainSpans, aligned_cut, words_cut
from tests.engines.plain_states import PlainCopilot, PlainThoughts, handed_over, learnt, routed

__all__ = ["PlainText", "Plainly"]

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class PlainText:
    """What a plain loop wrote, how many of its bytes came before rounding could decide, and on the way, of methods that
    have distributions, the likeliest symbols of each, best first."""

    text: bytes
    sure: int
    steps: Sequence[Mapping[bytes, float]] = ()

    @classmethod
    def of(cls, text: bytes, sure: int, steps: Sequence[Fused]) -> PlainText:
        """With as much of the distributions as is kept."""
        tops = []
        for step in steps:
            order = np.argsort(-step.q, kind="stable")[:KEPT].tolist()
            tops.append({step.texts[i]: float(step.q[i]) for i in order})
        return cls(text, sure, tops)

    def as_json(self) -> list[Any]:
        """For `from_json`."""
        steps = [{text.hex(): q for text, q in step.items()} for step in self.steps]
        return [self.text.hex(), self.sure, steps]

    @classmethod
    def from_json(cls, told: Sequence[Any]) -> PlainText:
        """What `as_json` gave."""
        text, sure, steps = told
        back = [{bytes.fromhex(one): q for one, q in step.items()} for step in steps]
        return cls(bytes.fromhex(text), sure, back)


KEPT = 128
"""Symbols of a distribution that are kept: more than are compared, which rounding may put in another order."""


Cache = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values by layer, each of shape (1, heads, length, d)."""


@dataclass(slots=True, eq=False)
class Forward:
    """One that a thread waits for: `ids` behind a cache. `found` are the last row of logits, the hidden states there,
    and the cache."""

    model: PlainModel
    ids: tuple[int, ...]
    cache: Cache
    found: tuple[torch.Tensor, torch.Tensor, Cache] | Exception | None = None


class Together:
    """Computes in one forward what several threads wait for: reading a model's weights is what a token costs. Each
    thread calls `join` first and `leave` at last."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._threads = 0
        self._waiting: list[Forward] = []

    def join(self) -> None:
        """From now on the others wait for this thread, too."""
        with self._turn:
            self._threads += 1

    def leave(self) -> None:
        """Nobody waits for it any more."""
        with self._turn:
            self._threads -= 1
            self._compute()

    def compute(self, wanted: Forward) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Once all threads want something."""
        with self._turn:
            self._waiting.append(wanted)
            self._compute()
            self._turn.wait_for(lambda: wanted.found is not None)
        if isinstance(wanted.found, Exception):
            raise wanted.found
        assert wanted.found is not None
        return wanted.found

    def _compute(self) -> None:
        if not self._waiting or len(self._waiting) < self._threads:
            return
        waiting, self._waiting = self._waiting, []
        for model in dict.fromkeys(one.model for one in waiting):
            some = [one for one in waiting if one.model is model]
            try:
                found = forward(model, [(one.ids, one.cache) for one in some])
            except Exception as error:  # noqa: BLE001  every thread is told
                found = [error] * len(some)
            for one, its in zip(some, found, strict=True):
                one.found = its
        self._turn.notify_all()


def forward(
    model: PlainModel, asked: Sequence[tuple[Sequence[int], Cache]]
) -> list[tuple[torch.Tensor, torch.Tensor, Cache]]:
    """A batch of texts, caches and new ids padded on the left: of each the last row, the states there, the cache."""
    old = [cache[0][0].shape[2] if cache else 0 for _, cache in asked]
    new = [len(ids) for ids, _ in asked]
    past, here = max(old), max(new)
    ids = torch.zeros(len(asked), here, dtype=torch.long)
    places, mask = torch.zeros_like(ids), torch.zeros(len(asked), past + here, dtype=torch.long)
    for i, (own, _) in enumerate(asked):
        ids[i, here - new[i] :] = torch.tensor(own)
        places[i, here - new[i] :] = torch.arange(old[i], old[i] + new[i])
        mask[i, past - old[i] : past] = 1
        mask[i, past + here - new[i] :] = 1
    cache = DynamicCache()
    if past:
        known = next(own for _, own in asked if own)
        for layer, (key, value) in enumerate(known):
            padded = []
            for part, like in enumerate((key, value)):
                rows = like.new_zeros(len(asked), like.shape[1], past, like.shape[3])
                for i, (_, own) in enumerate(asked):
                    if own:
                        rows[i, :, past - old[i] :] = own[layer][part][0]
                padded.append(rows)
            cache.update(*padded, layer)
    with torch.no_grad():
        out = model.model(
            ids,
            attention_mask=mask,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
            logits_to_keep=1,
        )
    found = []
    for i in range(len(asked)):
        kept = torch.cat([torch.arange(past - old[i], past), torch.arange(past + here - new[i], past + here)])
        own = [
            (layer.keys[i : i + 1, :, kept], layer.values[i : i + 1, :, kept])
            for layer in out.past_key_values.layers
        ]
        states = torch.stack([state[i, -1] for state in out.hidden_states])
        found.append((out.logits[i, -1].clone(), states, own))
    return found


class Remembering(PlainModel):
    """A plain model that computes nothing twice: where ids begin as others did, it goes on from their key-value cache;
    and what several texts need at a time in one forward. The loops know nothing of it."""

    def __init__(self, folder: Path, together: Together) -> None:
        super().__init__(folder)
        self._together = together
        self._known: dict[tuple[int, ...], tuple[torch.Tensor, torch.Tensor, Cache]] = {}

    def look(self, ids: Sequence[int], cache: Any = None) -> tuple[Any, Any, Any]:
        """As a plain model's; the cache that is returned is the ids themselves."""
        path = (*(cache or ()), *ids)
        if path not in self._known:
            start = self._begun(path, len(path) - 1)
            before = self._known[path[:start]][2] if start else []
            self._known[path] = self._together.compute(Forward(self, path[start:], before))
        row, states, _ = self._known[path]
        return row.double().numpy(), states.double().numpy(), path

    def run(self, ids: Sequence[int], cache: Any = None, last: int = 0) -> tuple[Any, Any]:
        """As a plain model's; the cache that is returned is the ids themselves."""
        if last == 1:
            row, _, path = self.look(ids, cache)
            return row[None], path
        path = (*(cache or ()), *ids)
        start = self._begun(path, len(path) - (last or len(ids)))  # rows are wanted of what follows
        before = DynamicCache()
        for layer, (key, value) in enumerate(self._known[path[:start]][2] if start else ()):
            before.update(key, value, layer)
        return super().run(path[start:], before, last or len(ids))[0], path

    def _begun(self, path: tuple[int, ...], most: int) -> int:
        """How long a beginning of the path is known."""
        return next((n for n in range(most, 0, -1) if path[:n] in self._known), 0)

    def forget(self, prompt: Sequence[int]) -> None:
        """What began with a prompt."""
        for path in [path for path in list(self._known) if path[: len(prompt)] == tuple(prompt)]:
            del self._known[path]


class Plainly:
    """Methods as plain loops over the models in `folders`. Each thread that writes does so within `together`."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.together = Together()
        self._folders = folders
        self._models = {name: Remembering(folder, self.together) for name, folder in folders.items()}
        self._loops: dict[tuple[str, ...], PlainLoop] = {}

    @staticmethod
    def knows(entry: Entry) -> bool:
        """Whether there is a plain loop of the fusion's method."""
        return _ruling(entry) in {*RULES, *SPANS, *STATES, "abe"}

    def alone(self, model: str, prompt: Sequence[int], tokens: int) -> bytes:
        """The model's own greedy text."""
        loop = self._loop((model,))
        return loop.write([prompt], loop.gac, tokens)[0]

    def write(self, entry: Entry, prompts: Prompts, tokens: int) -> PlainText:
        """Greedy, so many tokens of the main member; in spans about as many."""
        method, options = _ruling(entry), _options(entry)
        loop = self._loop(entry.spec.members)
        if method == "abe":
            text, sure = loop.search(prompts, options["beams"], options["candidates"], tokens)
            return PlainText(text, len(text) if sure else 0)
        if method in SPANS:
            spans = PlainSpans(loop.models, prompts)
            SPANS[method](spans, options, tokens)
            return PlainText(spans.text, len(spans.text) if spans.sure is None else spans.sure)
        steps = list[Fused]()
        if method in STATES:
            text, sure = STATES[method](entry, loop, prompts, options, tokens, steps)
        else:
            rule = RULES[method](self, entry, loop, prompts, options)
            text, sure = loop.write(prompts, rule, tokens, steps)
        return PlainText.of(text, sure, steps)

    def _loop(self, members: tuple[str, ...]) -> PlainLoop:
        """The one of these members."""
        if members not in self._loops:
            self._loops[members] = PlainLoop([self._models[name] for name in members])
        return self._loops[members]

    def forget(self, prompts: Mapping[str, Sequence[int]]) -> None:
        """What was computed for a question."""
        for name, prompt in prompts.items():
            self._models[name].forget(prompt)

    def image(self, entry: Entry, projection: str) -> Callable[[bytes], list[tuple[bytes, float]]]:
        """EVA's S, as the method fitted and kept it: by text of the helper."""
        return _projection(tuple(self._folders[m] for m in entry.spec.members), projection)


def _ruling(entry: Entry) -> str:
    """The method whose distribution decides: of one that only drafts, its rule."""
    method = entry.method.id
    return find_method(_options(entry)["rule"], "fusion").id if method == "spec-ensemble" else method


def _options(entry: Entry) -> dict[str, Any]:
    """All options, defaults included."""
    made = load_method(entry.method)(**entry.settings.options)
    return {name: getattr(made, name) for name in made.__dataclass_fields__}


def _eva(plain: Plainly, entry: Entry, loop: PlainLoop, prompts: Prompts, o: dict[str, Any]) -> Rule:
    return loop.projected(plain.image(entry, o["projection"]), o["top_k"], o["drop"])


RULES: dict[str, Callable[[Plainly, Entry, PlainLoop, Prompts, dict[str, Any]], Rule]] = {
    "gac": lambda plain, entry, loop, prompts, o: partial(loop.gac, threshold=o.get("threshold")),
    "unite": lambda plain, entry, loop, prompts, o: partial(loop.unite, k=o["top_k"]),
    "cp-delta": lambda plain, entry, loop, prompts, o: loop.cp_delta,
    "packllm": lambda plain, entry, loop, prompts, o: loop.packed(prompts, o["mode"], o["reach"]),
    "deepen": lambda plain, entry, loop, prompts, o: loop.deepened(o["eta"], o["anchors"], o["rows"]),
    "eva": _eva,
}


def _citer(entry: Entry, loop: PlainLoop, prompts: Prompts, o: dict[str, Any], n: int, steps: Steps) -> Told:
    router = learnt(entry.settings.artefacts["router"])[1]
    return routed(loop.models, prompts, router, o["tau"], n, steps)[0]


def _etr(entry: Entry, loop: PlainLoop, prompts: Prompts, o: dict[str, Any], n: int, steps: Steps) -> Told:
    experts = np.array(entry.spec.fusion.experts.tolist())  # type: ignore[union-attr]
    return handed_over(loop.models, prompts, experts, o["bias"], n, steps)[0]


def _copilot(
    entry: Entry, loop: PlainLoop, prompts: Prompts, o: dict[str, Any], n: int, steps: Steps
) -> Told:
    folder = entry.settings.artefacts["copilot"]
    return PlainCopilot(loop, folder, o["strength"]).write(prompts, n, steps)


def _mot(entry: Entry, loop: PlainLoop, prompts: Prompts, o: dict[str, Any], n: int, steps: Steps) -> Told:
    return PlainThoughts(loop.models, entry.settings.artefacts["mixture"]).write(prompts, n, steps)


Steps = list[Fused]
Told = tuple[bytes, int]

STATES: dict[str, Callable[[Entry, PlainLoop, Prompts, dict[str, Any], int, Steps], Told]] = {
    "citer": _citer,
    "etr": _etr,
    "transformer-copilot": _copilot,
    "mot": _mot,
}
"""Methods that look into the models' layers: these write the whole text themselves."""

SPANS: dict[str, Callable[[PlainSpans, dict[str, Any], int], object]] = {
    # About as many rounds as so many tokens take: most words are one, a window may give up half a word.
    "cool-fusion": lambda loop, o, n: loop.by_perplexity(
        aligned_cut(loop.models), o["tokens"], -(-3 * n // 4)
    ),
    "sweetspan": lambda loop, o, n: loop.by_perplexity(
        words_cut(o["words"]), 16 * o["words"], -(-n // o["words"])
    ),
    "specfuse": lambda loop, o, n: loop.by_votes(o["window"], o["rate"], -(-n // o["window"]) + 1),
}


@lru_cache(maxsize=1)
def _projection(folders: tuple[Path, ...], file: str) -> Callable[[bytes], list[tuple[bytes, float]]]:
    from safetensors.numpy import load_file

    symbols = Union.of([ByteVocab.load(folder) for folder in folders]).symbols
    rows = load_file(Path(file).expanduser())
    place = {symbols[u]: row for row, u in enumerate(rows["1.symbols"].tolist())}

    def image(text: bytes) -> list[tuple[bytes, float]]:
        row = place[text]
        best, score = rows["1.best"][row].tolist(), rows["1.score"][row].tolist()
        return [(symbols[u], s) for u, s in zip(best, score, strict=True)]

    return image
