"""Embeddings of a table's queries, kept on disk: embedding is the dearest step of training and evaluating.

Texts are embedded and kept in chunks, so that a run that is stopped goes on where it was. A chunk is found by the
embedder's id and the hash of its texts in their order: another embedder or other texts never find it. The order
counts because an int8 embedder's batches leave a trace in its vectors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from outcomes.embedder import EmbedderLike
from outcomes.table import OutcomeTable

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHUNK", "cached_embeddings", "embedded"]

CHUNK = 256


def embedded(table: OutcomeTable, embedder: EmbedderLike, folder: Path) -> OutcomeTable:
    """`table` with the embeddings of its queries, cached in `folder`."""
    return table.embedded(cached_embeddings(table.queries.texts, embedder, folder))


def cached_embeddings(
    texts: Sequence[str],
    embedder: EmbedderLike,
    folder: Path,
    *,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Unit-length embeddings, shape (n_texts, dimensions); computed once, then read from `folder`. `progress` hears
    how many texts are done."""
    chunks = []
    for start in range(0, len(texts), CHUNK):
        chunks.append(_chunk(list(texts[start : start + CHUNK]), embedder, folder))
        if progress is not None:
            progress(min(start + CHUNK, len(texts)))
    return np.concatenate(chunks) if chunks else embedder.embed([])


def _chunk(texts: list[str], embedder: EmbedderLike, folder: Path) -> NDArray[np.float32]:
    hashed = hashlib.sha256(orjson.dumps([embedder.id, texts])).hexdigest()[:32]
    path = folder / f"{hashed}.npy"
    if path.is_file():
        # Never a pickle: numpy refuses object arrays unless asked otherwise, and nobody asks.
        kept: NDArray[np.float32] = np.load(path, allow_pickle=False)
        if kept.dtype == np.float32 and kept.ndim == 2 and len(kept) == len(texts):
            return kept
    vectors = embedder.embed(texts)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{hashed}.tmp"
    with draft.open("wb") as file:
        np.save(file, vectors, allow_pickle=False)
    draft.replace(path)
    return vectors
