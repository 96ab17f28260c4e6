"""Cached embeddings: computed once, found by embedder and texts, never mixed up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from outcomes.embedding_cache import CHUNK, cached_embeddings, embedded
from outcomes.table import OutcomeTable


class Counting:
    """An embedder that counts what it is asked."""

    def __init__(self, id: str) -> None:
        self.id, self.asked = id, 0

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += len(texts)
        return np.array([[len(text), len(self.id)] for text in texts], dtype=np.float32).reshape(-1, 2)


def test_what_is_kept_is_not_computed_again(tmp_path: Path) -> None:
    """A second call reads; another embedder and other texts compute; a broken file is computed anew."""
    texts = ["x" * i for i in range(CHUNK + 10)]
    first, heard = Counting("a"), []
    vectors = cached_embeddings(texts, first, tmp_path, progress=heard.append)
    assert heard == [CHUNK, CHUNK + 10]
    assert vectors[:, 0].tolist() == list(range(CHUNK + 10))
    again = Counting("a")
    assert np.array_equal(cached_embeddings(texts, again, tmp_path), vectors)
    assert again.asked == 0
    cached_embeddings([*texts[:CHUNK], "new"], again, tmp_path)
    assert again.asked == 1, "an unchanged chunk was embedded again"
    other = Counting("other")
    assert cached_embeddings(texts, other, tmp_path)[0, 1] == 5
    for path in tmp_path.glob("*.npy"):
        with path.open("wb") as file:
            np.save(file, np.zeros((1, 2)))
    assert np.array_equal(cached_embeddings(texts, again, tmp_path), vectors)
    assert cached_embeddings([], again, tmp_path).shape == (0, 2)


def test_a_table_gets_its_embeddings(tmp_path: Path) -> None:
    """One row a query, in order."""
    table = OutcomeTable.of_matrices(["a"], ["x", "yy"], np.ones((2, 1)))
    vectors = embedded(table, Counting("a"), tmp_path).queries.embeddings
    assert vectors is not None
    assert vectors[:, 0].tolist() == [1, 2]
