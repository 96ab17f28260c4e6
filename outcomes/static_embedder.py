"""Sentence embeddings without a network: the mean of a stored vector for each token, at unit length.

    e(text) = u / |u|,   u = b + mean of T[t] over the text's tokens t

`T`, shape (vocabulary, dimensions), and `b` are distilled from an encoder (`outcomes.distillation`). A text takes
microseconds and no text depends on its batch; what is lost is all that words mean by standing together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import tensor
from protocol.errors import MethodError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_TOKENS", "TABLE", "StaticEmbedder"]

TABLE = "model.safetensors"
MAX_TOKENS = 512
"""Longer texts are truncated on the right."""


@dataclass(frozen=True, slots=True, eq=False)
class StaticEmbedder:
    """`table`: T, shape (vocabulary, dimensions), of any float type; `offset`: b, shape (dimensions,), not all 0, so
    that a text without tokens has a direction too. Safe to call from several threads."""

    id: str
    table: NDArray[np.floating]
    offset: NDArray[np.float32]
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path, id: str) -> Self:
        """Load the table and `tokenizer.json` of a weights folder. Raises `MethodError`."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        for name in (TABLE, "tokenizer.json"):
            if not (folder / name).is_file():
                raise MethodError(f"The embedder folder {folder} has no {name}.")
        try:
            tensors = load_file(folder / TABLE)
        except SafetensorError as error:
            raise MethodError(f"{folder / TABLE} cannot be read: {error}.") from None
        table = tensor(tensors, "table", (None, None))
        offset = tensor(tensors, "offset", (table.shape[1],)).astype(np.float32)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if tokenizer.get_vocab_size() > len(table) or not offset.any():
            raise MethodError(f"{folder} is no static embedder: {len(table)} vectors, or an offset of 0.")
        return cls(id, table, offset, tokenizer)

    def __post_init__(self) -> None:
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()

    @property
    def dimensions(self) -> int:
        return int(self.table.shape[1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length embeddings, shape (n_texts, dimensions)."""
        return self.embed_counted(texts)[0]

    def embed_counted(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embeddings, and the tokens read of each text, shape (n_texts,); there are no special ones."""
        encodings = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        vectors = np.empty((len(encodings), self.dimensions), dtype=np.float32)
        counts = np.zeros(len(encodings), dtype=np.int64)
        for row, encoding in enumerate(encodings):
            ids = encoding.ids
            counts[row] = len(ids)
            vectors[row] = self.offset
            if ids:
                vectors[row] += self.table[ids].mean(axis=0, dtype=np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / lengths, counts
