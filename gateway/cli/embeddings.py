"""The embedder that the learning commands use: weights of ours, or any `/v1/embeddings`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.cli.client import post
from protocol.errors import SettingsError, UpstreamBroken

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from outcomes.embedder import EmbedderLike

__all__ = ["RemoteEmbedder", "chosen_embedder"]

BATCH = 64


@dataclass(frozen=True, slots=True)
class RemoteEmbedder:
    """An embedding model behind an API. `id`: its name there, which is all that is known of it, and what the config's
    `openai.model` must say for a router trained with it; `url`: of the API, up to and with `/v1`."""

    id: str
    url: str
    key: str | None = None

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit-length embeddings, shape (n_texts, dimensions). Raises `UpstreamError`."""
        import numpy as np

        rows: list[list[float]] = []
        for start in range(0, len(texts), BATCH):
            batch = list(texts[start : start + BATCH])
            body = {"model": self.id, "input": batch, "encoding_format": "float"}
            told = post(self.url, "embeddings", self.key, body)
            try:
                found = sorted(told["data"], key=lambda one: one["index"])
                rows += [[float(value) for value in one["embedding"]] for one in found]
            except (KeyError, TypeError, ValueError):
                raise UpstreamBroken(f"{self.url} did not answer with embeddings.") from None
            if len(rows) != start + len(batch) or len({len(row) for row in rows}) != 1:
                raise UpstreamBroken(f"{self.url} did not answer with one embedding a text, all of one size.")
        vectors = np.array(rows, dtype=np.float32).reshape(len(rows), -1)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1), dtype=np.float32)


def chosen_embedder(name: str | None, url: str | None, key: str | None) -> EmbedderLike | None:
    """The embedder of a folder, of a weights id that was pulled before, or, given a `url`, of that name there. Raises
    `SettingsError`."""
    if url is not None:
        if name is None:
            raise SettingsError("--embedder: name the embedding model to ask for at --embedder-url.")
        return RemoteEmbedder(name, url, key)
    if name is None:
        return None
    from gateway.local_weights import weights_folder
    from outcomes.embedder import load_embedder

    folder = weights_folder(name)
    if not folder.is_dir():
        raise SettingsError(
            f"There are no weights at {folder}; `chorus models pull {name}` fetches known ones."
        )
    return load_embedder(folder)
