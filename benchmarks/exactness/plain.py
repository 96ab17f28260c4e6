"""Which plain loop belongs to which method: tests/engines/plain_loop.py and plain_spans.py, with a fusion's options."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lineup import Entry
from engines.byte_vocab import ByteVocab
from engines.union import Union
from protocol.methods import find_method, load_method
from tests.engines.plain_loop import Fused, PlainLoop, PlainModel, Rule
from tests.engines.plain_spans import PlainSpans, aligned_cut, words_cut

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


class Remembering(PlainModel):
    """A plain model that computes nothing twice: where ids begin as others did, it goes on from a copy of their
    key-value cache. The loops know nothing of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.known: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def run(self, ids: Sequence[int], cache: Any = None, last: int = 0) -> tuple[Any, Any]:
        """As a plain model's; the cache that is returned is the ids themselves."""
        path = (*(cache or ()), *ids)
        begun = len(path) - (last or len(ids))  # rows are wanted of what follows
        if last == 1 and path in self.known:
            return self.known[path][0], path
        start = next((n for n in range(begun, 0, -1) if path[:n] in self.known), 0)
        before = copy.deepcopy(self.known[path[:start]][1]) if start else None
        rows, after = super().run(path[start:], before, last or len(ids))
        self.known[path] = (rows[-1:], after)
        return rows, path


class Plainly:
    """Methods as plain loops over the models in `folders`, which are loaded when they are first needed."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders
        self._models: dict[str, Remembering] = {}
        self._loops: dict[tuple[str, ...], PlainLoop] = {}

    @staticmethod
    def knows(entry: Entry) -> bool:
        """Whether there is a plain loop of the fusion's method."""
        return _ruling(entry) in {*RULES, *SPANS, "abe"}

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
        rule, steps = RULES[method](self, entry, loop, prompts, options), list[Fused]()
        text, sure = loop.write(prompts, rule, tokens, steps)
        return PlainText.of(text, sure, steps)

    def _loop(self, members: tuple[str, ...]) -> PlainLoop:
        """The one of these members, models loaded."""
        for name in members:
            if name not in self._models:
                self._models[name] = Remembering(self._folders[name])
        if members not in self._loops:
            self._loops[members] = PlainLoop([self._models[name] for name in members])
        return self._loops[members]

    def forget(self) -> None:
        """What was computed for a question: call between two questions."""
        for model in self._models.values():
            model.known.clear()

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
