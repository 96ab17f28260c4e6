"""The span methods written a second time, without a cache: what the engine host is compared with.

Nothing here comes from engines/ or ensembles/. Models are `PlainModel`s (transformers) or anything with their
`run`, `encode`, `emits`, `eos` and `mute`; every row is computed from the first token on."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Drafted:
    """A member's span: text, whether it ended there, the ids it wrote."""

    text: bytes
    ended: bool
    ids: list[int]


@dataclass
class PlainSpans:
    """Greedy writing by `models` from `prompts`. `sure` is how many bytes came before the first decision that
    rounding could turn round."""

    models: Sequence[Any]
    prompts: Sequence[Sequence[int]]
    tables: list[Any] = field(default_factory=list)
    spans: list[bytes] = field(default_factory=list)
    text: bytes = b""
    sure: int | None = None
    ended: bool = False

    def __post_init__(self) -> None:
        self.ids: list[list[int]] = [[] for _ in self.models]

    # ── the three moves ─────────────────────────────────────────────────────────────────────────────────────

    def draft(self, m: int, cut: Callable[[bytes, bool], int | None], tokens: int) -> Drafted:
        """Greedy, until `cut` says where the span ends."""
        model, ids, text = self.models[m], list(self.ids[m]), b""
        while True:
            z = self._quiet(m, model.run([*self.prompts[m], *ids], last=1)[0][-1])
            first, second = np.argsort(-z, kind="stable")[:2].tolist()
            if z[first] - z[second] < 1e-3:
                self._unsure()
            if first in model.eos:
                return Drafted(text, True, ids)
            ids.append(first)
            text += model.emits[first]
            final = len(ids) - len(self.ids[m]) >= tokens
            end = cut(text, final)
            if end is not None:
                return Drafted(text[:end], False, ids)

    def score(self, m: int, text: bytes, ended: bool, ids: list[int]) -> tuple[list[float], list[float]]:
        """Log-probabilities and logits of ids, the answer's end behind them if `ended`."""
        model, first = (
            self.models[m],
            next(
                (i for i, (a, b) in enumerate(zip(self.ids[m], ids, strict=False)) if a != b),
                len(self.ids[m]),
            ),
        )
        rows = model.run([*self.prompts[m], *ids], last=len(ids) - first + 1)[0]
        logps, logits = [], []
        for i in range(first, len(ids)):
            logps.append(self._log_softmax(m, rows[i - first])[ids[i]])
            logits.append(rows[i - first][ids[i]])
        if ended:
            logps.append(float(np.logaddexp.reduce(self._log_softmax(m, rows[-1])[model.eos])))
            logits.append(max(rows[-1][e] for e in model.eos))
        return [float(p) for p in logps], [float(z) for z in logits]

    def held(self, m: int, drafted: Sequence[Drafted], span: Drafted) -> list[int]:
        """How member m holds a span: as it wrote it, else encoded together with its last word."""
        model, own = self.models[m], drafted[m] if m < len(drafted) else None
        if own is not None and own.text == span.text:
            kept = list(own.ids)
            while b"".join(model.emits[i] for i in kept) != self.text + span.text and len(kept) > len(
                self.ids[m]
            ):
                kept.pop()
            if b"".join(model.emits[i] for i in kept) == self.text + span.text:
                return kept
        if not span.text:
            return list(self.ids[m])
        kept = list(self.ids[m])
        tail: list[int] = []
        while kept and len(tail) < 4:
            tail.insert(0, kept.pop())
            if model.emits[tail[0]][:1] in (b" ", b"\n", b"\t"):
                break
        return kept + model.encode(b"".join(model.emits[i] for i in tail) + span.text)

    def keep(self, drafted: Sequence[Drafted], span: Drafted) -> None:
        """Go on from a span."""
        self.ids = [self.held(m, drafted, span) for m in range(len(self.models))]
        self.text += span.text
        self.spans.append(span.text)
        self.ended = span.ended

    # ── the methods ─────────────────────────────────────────────────────────────────────────────────────────

    def table(self, drafted: Sequence[Drafted], value: Callable[[list[float], list[float]], float]) -> Any:
        """By judge and span."""
        table = np.array(
            [
                [value(*self.score(m, s.text, s.ended, self.held(m, drafted, s))) for s in drafted]
                for m in range(len(self.models))
            ]
        )
        self.tables.append(table)
        return table

    def by_perplexity(self, cut: Callable[[bytes, bool], int | None], tokens: int, rounds: int) -> None:
        """Cool-Fusion and SweetSpan (two members: nobody stands out)."""
        while not self.ended and rounds:
            rounds -= 1
            drafted = [self.draft(m, cut, tokens) for m in range(len(self.models))]
            if len({(d.text, d.ended) for d in drafted}) == 1:
                self.keep(drafted, drafted[0])
                continue
            means = self.table(drafted, lambda p, _: math.exp(-sum(p) / len(p))).mean(0)
            order = np.argsort(means, kind="stable")
            best, second = drafted[order[0]], drafted[order[1]] if len(order) > 1 else drafted[order[0]]
            if best.text != second.text and means[order[1]] / means[order[0]] < 1 + 1e-4:
                self._unsure()
            self.keep(drafted, best)

    def by_votes(self, window: int, rate: float, rounds: int, *, logits: bool = False) -> list[Any]:
        """SpecEM; the weights after each round."""
        k, t, history = len(self.models), 0, []
        w = np.full(k, 1 / k)
        while not self.ended and t < rounds:
            t += 1
            drafted = [self.draft(m, window_cut, window) for m in range(k)]
            if len({(d.text, d.ended) for d in drafted}) == 1:
                self.keep(drafted, drafted[0])
                history.append(w)
                continue
            raw = self.table(drafted, lambda p, z: float(np.mean(z)) if logits else math.exp(sum(p) / len(p)))
            s = raw / raw.sum(1, keepdims=True)
            votes = w @ s
            top = np.sort(votes)[::-1]
            if top[0] - top[1] < 1e-5:
                self._unsure()
            self.keep(drafted, drafted[int(votes.argmax())])
            won = np.array(
                [
                    max(1, sum(s[j, i] >= s[j, n] for j in range(k) for n in range(k) if j != i and n != i))
                    for i in range(k)
                ]
            )
            w = w * np.exp(rate / 10 * math.sqrt(1 / k) / t * won / (k - 1) ** 2)
            w = w / w.sum()
            history.append(w)
        return history

    def _unsure(self) -> None:
        if self.sure is None:
            self.sure = len(self.text)

    def _quiet(self, m: int, z: Any) -> Any:
        z = z.copy()
        z[self.models[m].mute] = -np.inf
        return z[: len(self.models[m].emits)]

    def _log_softmax(self, m: int, z: Any) -> Any:
        z = self._quiet(m, z)
        return z - np.logaddexp.reduce(z)


def words_cut(n: int) -> Callable[[bytes, bool], int | None]:
    """So many words, and white space behind them."""

    def cut(text: bytes, final: bool) -> int | None:
        ends = [i for i in range(1, len(text)) if text[i : i + 1].isspace() and not text[i - 1 : i].isspace()]
        if len(ends) >= n:
            return ends[n - 1]
        return (ends[-1] if ends else len(text)) if final else None

    return cut


def aligned_cut(models: Sequence[Any]) -> Callable[[bytes, bool], int | None]:
    """The first word's end between tokens of all."""

    def cut(text: bytes, final: bool) -> int | None:
        for i in range(1, len(text)):
            word = text[i : i + 1].isspace() and not text[i - 1 : i].isspace()
            if word and all(m.encode(text[:i]) + m.encode(text[i:]) == m.encode(text) for m in models):
                return i
        return words_cut(1)(text, final) if final else None

    return cut


def window_cut(text: bytes, final: bool) -> int | None:
    """SpecEM's: at the end of the window, less half a word."""
    if not final:
        return None
    if re.search(rb"[^0-9A-Za-z\x80-\xff]\Z", text):
        return len(text)
    return words_cut(10**6)(text, True)
