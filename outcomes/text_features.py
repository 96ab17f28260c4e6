"""What a query's wording and form say beside its meaning: latent word features and a dozen plain measures.

Words and pairs of neighbouring words are hashed into buckets (so that no word of a training query is kept), weighted by
sublinear term frequency and inverse document frequency, and projected on the leading right singular vectors of the
training queries (latent semantic analysis). A sentence embedding tells what a text is about; these tell a multiple
choice from a proof, and one benchmark's wording from another's.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["FORM", "TextFeatures", "form"]

BITS = 13
BUCKETS = 1 << BITS
HEAD, TAIL = 1500, 500
"""Characters read of a long text, from its start and its end: the whole of most, and what bounds the time."""
TOKEN = re.compile(r"[\u3040-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
"""A word, a CJK character, or a sign."""
NUMBER, OPTION = re.compile(r"\d+"), re.compile(r"(?:^|\s)\(?[A-Ea-e][.):]\s")
CODE = re.compile(r"```|\bdef |\bassert |\breturn\b|[{};]\n|==")
FORM = 14
"""How many measures `form` gives."""


@dataclass(frozen=True, slots=True, eq=False)
class TextFeatures:
    """`idf`: shape (BUCKETS,); `directions`: (BUCKETS, rank), float32; `centre` and `scale` of the measures of form,
    each (FORM,)."""

    idf: NDArray[np.float32]
    directions: NDArray[np.float32]
    centre: Floats
    scale: Floats

    @classmethod
    def of(cls, texts: Sequence[str], *, rank: int = 100) -> Self:
        """Learn from training texts, in an order that no table decides. Needs scipy (extra `learn`)."""
        from scipy.sparse import csr_matrix, diags

        counted = [_counted(text) for text in texts]
        present = np.zeros(BUCKETS)
        for buckets, _ in counted:
            present[buckets] += 1
        n = len(texts)
        # A bucket seen once tells nothing about other queries.
        idf = np.where(present >= 2, np.log((1 + n) / (1 + present)) + 1, 0.0).astype(np.float32)
        rows = np.repeat(np.arange(n), [len(buckets) for buckets, _ in counted])
        columns = np.concatenate([buckets for buckets, _ in counted]) if n else np.empty(0, dtype=np.intp)
        weights = np.concatenate([counts for _, counts in counted]) * idf[columns] if n else np.empty(0)
        matrix = csr_matrix((weights.astype(np.float64), (rows, columns)), shape=(n, BUCKETS))
        lengths = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
        matrix = diags(1 / np.where(lengths > 0, lengths, 1.0)) @ matrix
        used = np.flatnonzero(idf)
        found = _leading(matrix[:, used], min(rank, n))
        directions = np.zeros((BUCKETS, found.shape[1]))
        directions[used] = found
        measures = np.array([form(text) for text in texts]).reshape(n, FORM)
        spread = measures.std(axis=0)
        return cls(
            idf, directions.astype(np.float32), measures.mean(axis=0), np.where(spread > 1e-9, spread, 1.0)
        )

    @property
    def rank(self) -> int:
        return int(self.directions.shape[1])

    def words(self, texts: Sequence[str]) -> Floats:
        """Latent word features, rows of unit length (or 0), shape (n_texts, rank)."""
        found = np.zeros((len(texts), self.rank))
        for row, text in zip(found, texts, strict=True):
            buckets, counts = _counted(text)
            weights = counts * self.idf[buckets]
            row[:] = weights @ self.directions[buckets]
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        return np.asarray(found / np.where(lengths > 0, lengths, 1.0), dtype=np.float64)

    def measures(self, texts: Sequence[str]) -> Floats:
        """`form` of every text, standardised and cut at four deviations, shape (n_texts, FORM)."""
        found = np.array([form(text) for text in texts]).reshape(len(texts), FORM)
        return np.clip((found - self.centre) / self.scale, -4.0, 4.0)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """As tensors of an artefact."""
        return {
            "text.idf": self.idf,
            "text.directions": self.directions,
            "text.centre": self.centre,
            "text.scale": self.scale,
        }

    @classmethod
    def read(cls, tensors: Mapping[str, NDArray[Any]]) -> Self:
        """From an artefact's tensors. Raises `MethodError`."""
        return cls(
            tensor(tensors, "text.idf", (BUCKETS,)),
            tensor(tensors, "text.directions", (BUCKETS, None)),
            tensor(tensors, "text.centre", (FORM,)),
            tensor(tensors, "text.scale", (FORM,)),
        )


def _leading(matrix: Any, rank: int) -> Floats:
    """The leading right singular vectors of a sparse matrix, signs fixed, shape (n_columns, up to `rank`): randomised
    subspace iteration (Halko, Martinsson, Tropp 2011) from a seeded start, so that the same texts give the same."""
    if not matrix.shape[1]:
        return np.zeros((0, 0))  # No word stands in two texts.
    start = np.random.default_rng(0).normal(size=(matrix.shape[0], min(rank + 10, *matrix.shape)))
    basis = matrix.T @ start
    for _ in range(3):
        basis = matrix.T @ (matrix @ np.linalg.qr(basis)[0])
    basis = np.linalg.qr(basis)[0]
    _, strength, turn = np.linalg.svd(matrix @ basis, full_matrices=False)
    found = (basis @ turn.T)[:, : min(rank, int((strength > 1e-6 * max(strength.max(), 1e-6)).sum()))]
    return np.asarray(
        found * np.sign(found[np.abs(found).argmax(axis=0), np.arange(found.shape[1])]), dtype=np.float64
    )


def form(text: str) -> list[float]:
    """Length, words, lines, shares of digits, capitals, signs; marks of questions, formulas, code, options."""
    text = _cut(text)
    points = np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32)
    length, words = max(len(points), 1), text.count(" ") + text.count("\n") + 1
    small = np.bincount(points[points < 128], minlength=128)
    marks = [text.count("\n"), small[63], len(NUMBER.findall(text)), small[36] + small[92]]
    marks += [len(CODE.findall(text)), len(OPTION.findall(text))]
    return [
        float(np.log1p(length)),
        float(np.log1p(words)),
        *np.log1p(marks).tolist(),
        small[48:58].sum() / length,
        small[65:91].sum() / length,
        (small[33:48].sum() + small[58:65].sum() + small[91:97].sum() + small[123:127].sum()) / length,
        float((points >= 0x3040).mean()) if len(points) else 0.0,
        float(text.rstrip().endswith("?")),
        length / words,
    ]


def _cut(text: str) -> str:
    return text if len(text) <= HEAD + TAIL else f"{text[:HEAD]}\n{text[-TAIL:]}"


def _counted(text: str) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """The buckets of a text's words and neighbouring pairs, and 1 + ln of how often each occurs."""
    tokens = TOKEN.findall(_cut(text).casefold())
    words = np.array([zlib.crc32(token.encode("utf-8", "replace")) for token in tokens], dtype=np.uint64)
    # Knuth's multiplicative hash, so that (a, b) and (b, a) differ.
    pairs = (words[:-1] * np.uint64(2654435761) + words[1:]) & np.uint64(0xFFFFFFFF)
    mixed = np.concatenate([words, pairs]) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(64 - BITS)
    buckets, counts = np.unique(mixed.astype(np.intp), return_counts=True)
    return buckets, (1 + np.log(counts)).astype(np.float32)
