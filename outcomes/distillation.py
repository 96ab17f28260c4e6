"""A static embedder from an encoder: what the encoder makes of every token alone, then of whole texts.

As model2vec (Tulkens and van Dongen, 2024): the encoder embeds each token of its vocabulary by itself; the vectors are
centred and weighted by w(t) = a / (a + p(t)) (SIF; Arora et al., 2017), p(t) by Zipf's law from the token's place in
the vocabulary, which WordPiece orders roughly by frequency. Then, in place of its PCA without a target, one linear map
M and an offset b by ridge regression, so that mean of T[t]·M + b comes near the encoder's embedding of whole texts, and
PCA of what the map gives, when fewer dimensions are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import orjson

from outcomes.embedder import Embedder
from outcomes.static_embedder import TABLE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["distil"]

SIF = 1e-4
"""a: tokens more frequent than this count less than fully."""
RIDGE = 0.01
"""Penalty on the map, as a share of the mean variance of what it maps."""
TOKENS_AT_ONCE = 256


def distil(
    teacher: Embedder,
    texts: Sequence[str],
    folder: Path,
    *,
    dimensions: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Write the static embedder of `teacher` to `folder`, fitted to its embeddings of `texts`; returns its id.

    `dimensions`: at most the teacher's. `progress` hears how many of how many tokens and texts are done. The same
    teacher and texts give the same id on the same machine.
    """
    from safetensors.numpy import save

    total = teacher.tokenizer.get_vocab_size() + len(texts)
    told = progress or (lambda done, total: None)
    alone = _tokens_alone(teacher, lambda done: told(done, total))
    embedded = np.concatenate(
        [teacher.embed(texts[i : i + TOKENS_AT_ONCE]) for i in range(0, len(texts), TOKENS_AT_ONCE)]
    )
    table, offset = _fitted(alone, _bags(teacher, texts), embedded)
    if dimensions < table.shape[1]:
        # Principal axes of the texts, not of the vocabulary, most of which nobody writes.
        _, axes = np.linalg.eigh(embedded.T.astype(np.float64) @ embedded)
        table, offset = table @ axes[:, -dimensions:], offset @ axes[:, -dimensions:]
    told(total, total)
    tensors = {"table": table.astype(np.float16), "offset": offset.astype(np.float32)}
    data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE).write_bytes(data)
    tokenizer = teacher.tokenizer.to_str().encode()
    (folder / "tokenizer.json").write_bytes(tokenizer)
    digest = hashlib.sha256(data + tokenizer).hexdigest()
    id = f"static-{teacher.id.partition('@')[0]}@sha256:{digest}"
    facts = {
        "kind": "embedder",
        "format": "static",
        "embedder_id": id,
        "distilled_from": teacher.id,
        "texts": len(texts),
        "embedding": {"dimensions": table.shape[1], "pooling": "mean", "normalize": True},
    }
    (folder / "weights.json").write_bytes(orjson.dumps(facts, option=orjson.OPT_INDENT_2) + b"\n")
    return id


def _tokens_alone(teacher: Embedder, done: Callable[[int], None]) -> Floats:
    """The teacher's embedding of every token between its special tokens, centred and weighted, shape (vocabulary,
    dimensions)."""
    vocabulary = teacher.tokenizer.get_vocab_size()
    around = teacher.tokenizer.encode("").ids
    before, after = around[: len(around) // 2], around[len(around) // 2 :]
    parts = []
    for start in range(0, vocabulary, TOKENS_AT_ONCE):
        ids = range(start, min(start + TOKENS_AT_ONCE, vocabulary))
        parts.append(teacher.embed_ids([[*before, token, *after] for token in ids]))
        done(ids.stop)
    table = np.concatenate(parts).astype(np.float64)
    frequency = 1 / (np.arange(vocabulary) + 2) / np.log(vocabulary)
    return np.asarray((table - table.mean(axis=0)) * (SIF / (SIF + frequency))[:, None])


def _bags(teacher: Embedder, texts: Sequence[str]) -> list[list[int]]:
    return [each.ids for each in teacher.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _fitted(
    table: Floats, bags: Sequence[Sequence[int]], target: NDArray[np.float32]
) -> tuple[Floats, Floats]:
    """`table` mapped so that the means over `bags` come near `target`, and the offset that the means lack."""
    means = np.stack([table[ids].mean(axis=0) if len(ids) else np.zeros(table.shape[1]) for ids in bags])
    scale = np.linalg.norm(means, axis=1).mean()
    inputs = np.concatenate([means / scale, np.ones((len(means), 1))], axis=1)
    gram = inputs.T @ inputs
    penalty = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    found = np.linalg.solve(gram + penalty, inputs.T @ target)
    return table @ found[:-1] / scale, found[-1]
