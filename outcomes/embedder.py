"""Sentence embeddings in this process: an int8 ONNX encoder, mean pooling, unit length.

An embedder's id names the model and the digest of its fp32 weights, not its runtime: whatever runtime
reproduces the fp32 vectors (stored agreement test, cosine ≥ 0.999) may serve an artefact that was trained
with another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import orjson

from protocol.errors import MethodError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Embedder", "EmbedderLike", "ServedEmbedder", "embedder_id", "load_embedder"]

MAX_TOKENS = 256
"""all-MiniLM-L6-v2's `max_seq_length`: longer texts are truncated on the right, as its authors do."""


class EmbedderLike(Protocol):
    """What training needs of an embedder."""

    @property
    def id(self) -> str: ...

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length embeddings, shape (n_texts, dimensions)."""
        ...


class ServedEmbedder(EmbedderLike, Protocol):
    """What serving needs of one."""

    @property
    def dimensions(self) -> int: ...

    def embed_counted(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embeddings, and the tokens read of each text, shape (n_texts,)."""
        ...


def load_embedder(folder: Path, *, threads: int = 1, max_batch: int = 32) -> ServedEmbedder:
    """The embedder of a weights folder, of whatever format its `weights.json` says. Raises `MethodError`."""
    from outcomes.static_embedder import StaticEmbedder

    if _facts(folder).get("format") == "static":
        return StaticEmbedder.load(folder, embedder_id(folder))
    return Embedder.load(folder, threads=threads, max_batch=max_batch)


def embedder_id(folder: Path) -> str:
    """The embedder id that `weights.json` of a weights folder states. Loads nothing else. Raises
    `MethodError`."""
    try:
        return str(_facts(folder)["embedder_id"])
    except KeyError as error:
        raise MethodError(f"Cannot tell which embedder {folder} holds: weights.json: {error!r}.") from None


def _facts(folder: Path) -> dict[str, Any]:
    try:
        return dict(orjson.loads((folder / "weights.json").read_bytes()))
    except (OSError, orjson.JSONDecodeError, TypeError, ValueError) as error:
        raise MethodError(f"Cannot tell which embedder {folder} holds: weights.json: {error!r}.") from None


@dataclass(frozen=True, slots=True, eq=False)
class Embedder:
    """A loaded encoder. Safe to call from several threads: neither the session nor the tokenizer keeps
    state."""

    id: str
    session: Any
    tokenizer: Any
    max_batch: int = 32

    @classmethod
    def load(cls, folder: Path, *, threads: int = 1, max_batch: int = 32) -> Self:
        """Load `model.onnx` and `tokenizer.json` of a weights folder. Raises `MethodError` when they are
        not there.

        One thread by default: the gateway shares its cores, and short texts gain little from more.
        """
        import onnxruntime
        from tokenizers import Tokenizer

        id = embedder_id(folder)
        for name in ("model.onnx", "tokenizer.json"):
            if not (folder / name).is_file():
                raise MethodError(f"The embedder folder {folder} has no {name}.")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.no_padding()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Spinning threads would burn a core of the gateway between requests; the arena would keep the peak
        # batch.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
        session = onnxruntime.InferenceSession(
            str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        return cls(id, session, tokenizer, max_batch)

    @property
    def dimensions(self) -> int:
        return int(self.session.get_outputs()[0].shape[-1])

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length embeddings, shape (n_texts, dimensions)."""
        return self.embed_counted(texts)[0]

    def embed_counted(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embeddings, and the tokens read of each text, shape (n_texts,), special tokens and truncation
        included."""
        encodings = self.tokenizer.encode_batch(list(texts))
        counts = np.array([len(encoding.ids) for encoding in encodings], dtype=np.int64)
        vectors = np.empty((len(counts), self.dimensions), dtype=np.float32)
        # Texts of like length share a batch, so that little is padded.
        order = np.argsort(counts, kind="stable")
        for start in range(0, len(order), self.max_batch):
            batch = order[start : start + self.max_batch]
            vectors[batch] = self.embed_ids([encodings[i].ids for i in batch])
        return vectors, counts

    def embed_ids(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """One batch of token ids, special ones included: the mean of the last hidden states over real tokens, scaled
        to unit length, shape (n, dimensions)."""
        mask = np.zeros((len(ids), max(map(len, ids))), dtype=np.int64)
        tokens = np.zeros_like(mask)
        for row, sequence in enumerate(ids):
            tokens[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        feeds = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
        hidden = self.session.run(None, feeds)[0]
        pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        return np.asarray(pooled / np.linalg.norm(pooled, axis=1, keepdims=True), dtype=np.float32)
