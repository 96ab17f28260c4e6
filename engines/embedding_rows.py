"""A model's embedding tables, read from its folder, and the `Tables` that fusions bind to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.union import Union
from protocol.errors import MethodError

if TYPE_CHECKING:
    import torch

__all__ = ["EmbeddingRows", "TeamTables", "digest_of"]

NAMES = {"input": "embed_tokens.weight", "output": "lm_head.weight"}


class EmbeddingRows:
    """The tables of the model in `folder`, as stored. Read anew at each call: nobody keeps all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def rows(self, side: Literal["input", "output"]) -> torch.Tensor:
        """Shape (≥ |V|, d). A model without an output table of its own has the input's (tied embeddings).

        Raises `MethodError` where the folder's safetensors hold neither."""
        from safetensors import safe_open

        for wanted in dict.fromkeys((NAMES[side], NAMES["input"])):
            for path in sorted(self._folder.glob("*.safetensors")):
                with safe_open(path, "pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118  not a mapping
                        if name.endswith(wanted):
                            table: torch.Tensor = tensors.get_tensor(name)
                            return table
        raise MethodError(f"{self._folder} holds no table named {NAMES[side]}.")


@dataclass(frozen=True, slots=True)
class TeamTables:
    """`ensembles.tokens.base.Tables` of a loaded team. Tables are float32 and stay as long as this does."""

    alphabet: Union
    folders: Sequence[Path]
    _kept: dict[tuple[Path, str], torch.Tensor]

    @property
    def members(self) -> int:
        """Number of members."""
        return len(self.folders)

    def digest(self, member: int) -> str:
        """See `Tables.digest`."""
        return digest_of(self.folders[member])

    def embeddings(
        self, member: int, symbols: torch.Tensor, side: Literal["input", "output"]
    ) -> torch.Tensor:
        """See `Tables.embeddings`."""
        key = (self.folders[member], side)
        if key not in self._kept:
            self._kept[key] = EmbeddingRows(key[0]).rows(side)
        return self._kept[key][self.alphabet.ids[member][symbols, 0]].float()


def digest_of(folder: Path) -> str:
    """Which weights lie in a model's folder. A second for half a gigabyte."""
    hashed = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            hashed.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{hashed.hexdigest()}"
