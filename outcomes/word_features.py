"""TF-IDF over words, for methods that need no embedder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WordFeatures"]

WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, eq=False)
class WordFeatures:
    """A vocabulary and the inverse document frequency of its words."""

    idf: Mapping[str, float]

    @classmethod
    def of(
        cls, texts: Sequence[str], *, min_df: float = 0.05, max_df: float = 0.95, limit: int = 5000
    ) -> Self:
        """The vocabulary of `texts`: words in at least `min_df` and at most `max_df` of them (shares), the
        `limit` most frequent; idf = ln((1 + n)/(1 + df)) + 1."""
        n = len(texts)
        counts = Counter(word for text in texts for word in set(_words(text)))
        kept = [(count, word) for word, count in counts.items() if min_df * n <= count <= max_df * n]
        frequent = sorted(kept, key=lambda pair: (-pair[0], pair[1]))[:limit]
        return cls(
            {
                word: float(np.log((1 + n) / (1 + count)) + 1)
                for count, word in sorted(frequent, key=lambda p: p[1])
            }
        )

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Unit-length rows, shape (n_texts, n_words); a text without any word of the vocabulary is all 0."""
        column = {word: i for i, word in enumerate(self.idf)}
        found = np.zeros((len(texts), len(column)))
        for row, text in zip(found, texts, strict=True):
            for word, count in Counter(_words(text)).items():
                if word in column:
                    row[column[word]] = count * self.idf[word]
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.where(lengths > 0, lengths, 1.0), dtype=np.float64)


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())
