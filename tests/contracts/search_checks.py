"""The laws of `ensembles.tokens.base.Search`, one function each; every registered search passes them all.

A check gets `make`, which builds a fresh search, and raises AssertionError."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from ensembles.tokens.base import Hypothesis, Search, SearchStep, SymbolOrder
from tests.contracts.fusion_checks import SmallAlphabet

Make = Callable[[], Search]

TEXTS = (b"a", b"b", b"ab", b"ba", b"")
ALPHABET = SmallAlphabet(((0, 1, 4), (0, 1, 2, 3, 4), (1, 0, 3, 4)), 5, TEXTS)
WEIGHTS = (0.5, 0.3, 0.2)
STEPS = 6


def beginning(members: int) -> Hypothesis:
    """Nothing written yet."""
    return Hypothesis((b"",) * members, ((),) * members, (0.0,) * members, (False,) * members)


def step(search: Search, beam: list[Hypothesis], weights: tuple[float, ...], seed: int) -> SearchStep:
    """A step with random logits of the members that write, a function of what they wrote."""
    rows = []
    for hypothesis in beam:
        row = {}
        for m in search.writers(hypothesis):
            generator = torch.Generator().manual_seed(hash((seed, m, *hypothesis.written[m])) % 2**31)
            row[m] = torch.randn(len(ALPHABET.maps[m]), generator=generator) * 2
        rows.append(row)
    feedable = torch.ones(ALPHABET.size, dtype=torch.bool)
    return SearchStep(ALPHABET, weights, tuple(beam), tuple(rows), SymbolOrder(TEXTS), feedable)


def play(search: Search, weights: tuple[float, ...], seed: int) -> list[tuple[SearchStep, list[Hypothesis]]]:
    """Some steps and what came of each."""
    beam, out = [beginning(len(weights))], []
    for _ in range(STEPS):
        asked = step(search, beam, weights, seed)
        out.append((asked, search.extend(asked)))
        beam = [h for h in out[-1][1] if not all(h.ended)]
        if not beam:
            break
    return out


def check_somebody_writes(make: Make) -> None:
    """An unfinished text has members that write next, none of which has ended."""
    for seed in range(5):
        for asked, _ in play(make(), WEIGHTS, seed):
            for hypothesis in asked.beam:
                writers = make().writers(hypothesis)
                assert writers
                assert not any(hypothesis.ended[m] for m in writers)


def check_strings_agree(make: Make) -> None:
    """Of every hypothesis the strings are prefixes of the longest, and equal to it where they ended."""
    for seed in range(5):
        for _, found in play(make(), WEIGHTS, seed):
            for h in found:
                longest = max(h.texts, key=len)
                assert all(longest.startswith(text) for text in h.texts)
                assert all(text == longest for text, end in zip(h.texts, h.ended, strict=True) if end)


def check_only_writers_write(make: Make) -> None:
    """Each extension goes on from one hypothesis of the beam, and only its writers wrote, one symbol or end
    each, whose log-probability is in the sum."""
    for asked, found in play(make(), WEIGHTS, 1):
        for h in found:
            assert any(_follows(make(), asked, i, h) for i in range(len(asked.beam)))


def _follows(search: Search, asked: SearchStep, i: int, h: Hypothesis) -> bool:
    before, rows = asked.beam[i], asked.logits[i]
    for m, old in enumerate(before.written):
        if m not in search.writers(before):
            if (h.written[m], h.scores[m], h.ended[m]) != (old, before.scores[m], before.ended[m]):
                return False
            continue
        new = ALPHABET.eos if h.ended[m] else h.written[m][-1] if h.written[m] else -1
        if h.written[m] != (old if h.ended[m] else (*old, new)):
            return False
        p = ALPHABET.project(m, rows[m])[new]
        if abs(h.scores[m] - before.scores[m] - float(p.log())) > 1e-4:
            return False
    return True


def check_beams_bound_the_unfinished(make: Make) -> None:
    """No more hypotheses live than `beams` says, and there are some."""
    for seed in range(5):
        for _, found in play(make(), WEIGHTS, seed):
            assert found
            assert sum(not all(h.ended) for h in found) <= make().beams


def check_best_first(make: Make) -> None:
    """Extensions come in the order of their scores."""
    for seed in range(5):
        for asked, found in play(make(), WEIGHTS, seed):
            scores = [make().score(h, asked.weights) for h in found]
            assert all(a >= b - 1e-6 for a, b in pairwise(scores))


def check_one_member_writes_its_best(make: Make) -> None:
    """Of one member alone, the first extension is its most likely symbol."""
    for seed in range(5):
        asked = step(make(), [beginning(1)], (1.0,), seed)
        best = int(ALPHABET.project(0, asked.logits[0][0]).argmax())
        first = make().extend(asked)[0]
        assert first.ended[0] if best == ALPHABET.eos else first.written[0] == (best,)


def check_pure(make: Make) -> None:
    """The same step gives the same extensions, and its tensors are as they were."""
    search = make()
    asked = step(search, [beginning(3)], WEIGHTS, 0)
    before = {m: row.clone() for m, row in asked.logits[0].items()}
    assert search.extend(asked) == search.extend(asked)
    assert all(torch.equal(before[m], row) for m, row in asked.logits[0].items())


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_somebody_writes,
    check_strings_agree,
    check_only_writers_write,
    check_beams_bound_the_unfinished,
    check_best_first,
    check_one_member_writes_its_best,
    check_pure,
)


@dataclass
class _Around:
    """A search that another one is built on."""

    inner: Search

    @property
    def beams(self) -> int:
        return self.inner.beams

    def writers(self, hypothesis: Hypothesis) -> frozenset[int]:
        return self.inner.writers(hypothesis)

    def extend(self, step: SearchStep) -> list[Hypothesis]:
        return self.inner.extend(step)

    def score(self, hypothesis: Hypothesis, weights: tuple[float, ...]) -> float:
        return self.inner.score(hypothesis, weights)


class Silent(_Around):
    """Broken on purpose: nobody writes."""

    def writers(self, hypothesis: Hypothesis) -> frozenset[int]:
        return frozenset()


class Greedy(_Around):
    """Broken on purpose: keeps more than it says."""

    def extend(self, step: SearchStep) -> list[Hypothesis]:
        return [h for h in self.inner.extend(step) for _ in range(9)]


class Backwards(_Around):
    """Broken on purpose: the worst comes first."""

    def extend(self, step: SearchStep) -> list[Hypothesis]:
        return self.inner.extend(step)[::-1]


class Deaf(_Around):
    """Broken on purpose: lets strings differ."""

    def extend(self, step: SearchStep) -> list[Hypothesis]:
        return [replace(h, texts=(b"x", *h.texts[1:])) for h in self.inner.extend(step)]


class Free(_Around):
    """Broken on purpose: symbols cost nothing."""

    def extend(self, step: SearchStep) -> list[Hypothesis]:
        return [replace(h, scores=(0.0,) * len(h.scores)) for h in self.inner.extend(step)]


class Scribbler(_Around):
    """Broken on purpose: writes into the logits it was shown."""

    def extend(self, step: SearchStep) -> list[Hypothesis]:
        step.logits[0][0].mul_(0.5)
        return self.inner.extend(step)


BROKEN = (
    (Silent, check_somebody_writes),
    (Greedy, check_beams_bound_the_unfinished),
    (Backwards, check_best_first),
    (Backwards, check_one_member_writes_its_best),
    (Deaf, check_strings_agree),
    (Free, check_only_writers_write),
    (Scribbler, check_pure),
)
"""A broken search, built around a sound one, and the check meant for it."""
