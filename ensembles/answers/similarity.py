"""How alike two texts are, and which of several is most like the others.

Texts are compared as `Grams`, made once a text. `Similarity` functions take (hypothesis, reference) and
return a float in [0, 1], 1 for equal texts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

__all__ = ["Grams", "Similarity", "bleu", "cumulative", "first_best", "grams", "token_f1"]

Grams = tuple[Counter[tuple[str, ...]], ...]
"""A text's n-grams for n = 1 … `MAX_ORDER`, with their counts."""

Similarity = Callable[[Grams, Grams], float]
MAX_ORDER = 4
MAX_TOKENS = 2000
"""Tokens of a text that are compared: bounds the work on answers that run away."""

_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)*|[^\s]")


def grams(text: str) -> Grams:
    """The n-grams of the text's words, numbers and single punctuation marks, in lower case."""
    tokens = _TOKEN.findall(text.lower())[:MAX_TOKENS]
    return tuple(Counter(zip(*(tokens[k:] for k in range(n)), strict=False)) for n in range(1, MAX_ORDER + 1))


def bleu(hypothesis: Grams, reference: Grams) -> float:
    """Sentence BLEU (Papineni et al. 2002), lower case, up to 4-grams, directed: BP · exp(mean_n log p_n).

    As sacreBLEU computes it for sentences: orders longer than the hypothesis are left out, and the k-th
    order without a match counts as 1/(2^k · its n-grams) (exponential smoothing). 0 without a common word,
    1 for equal texts, two empty ones included.
    """
    length, reference_length = hypothesis[0].total(), reference[0].total()
    if not length or not reference_length:
        return float(length == reference_length)
    logs: list[float] = []
    misses = 0
    for of_mine, of_theirs in zip(hypothesis, reference, strict=True):
        total = of_mine.total()
        if not total:
            break
        matched = (of_mine & of_theirs).total()
        if not matched:
            if not logs:
                return 0.0
            misses += 1
        logs.append(math.log(matched / total if matched else 1 / (2**misses * total)))
    brevity = min(1.0, math.exp(1 - reference_length / length))
    return brevity * math.exp(math.fsum(logs) / len(logs))


def token_f1(hypothesis: Grams, reference: Grams) -> float:
    """F1 of the two texts' bags of lower-case tokens; symmetric. 1 for two empty texts."""
    mine, theirs = hypothesis[0], reference[0]
    total = mine.total() + theirs.total()
    return 2 * (mine & theirs).total() / total if total else 1.0


def cumulative(texts: Sequence[str], similarity: Similarity) -> list[float]:
    """V(i) = Σ_{j≠i} sim(i, j) for every text. A distinct pair is compared once, however often it occurs."""
    of = {text: grams(text) for text in texts}
    pairs = {(mine, theirs): similarity(of[mine], of[theirs]) for mine in of for theirs in of}
    # fsum rounds once, so that the order of the texts cannot move a sum and break a tie.
    return [
        math.fsum(pairs[mine, theirs] for j, theirs in enumerate(texts) if j != i)
        for i, mine in enumerate(texts)
    ]


def first_best(scores: Sequence[float | None]) -> int | None:
    """Index of the first of the highest scores; None is no score, and None is returned when there is none."""
    best = max((score for score in scores if score is not None), default=None)
    return None if best is None else scores.index(best)
