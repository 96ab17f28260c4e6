"""The union of several vocabularies, and the projection of a next-token distribution onto it.

Two tokens are the same symbol when they emit the same bytes; all ends of all models are one symbol more. The
projection is `index_add` over an int array id → symbol: a row-stochastic 0/1 map A_m in O(|V_m|), never a
matrix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.byte_vocab import ByteVocab, Kind

if TYPE_CHECKING:
    import torch

__all__ = ["Union"]


@dataclass(frozen=True, slots=True)
class Union:
    """`symbols[u]` are the bytes of symbol u; the last symbol, `eos`, is the pooled end of the answer (no
    bytes).

    `maps[m]` has shape (|V_m|,), int64: id → symbol, controls → `size`, a bin that projections drop.
    `feedable` has shape (size,), bool: symbols that every vocabulary can take back.
    """

    symbols: tuple[bytes, ...]
    maps: tuple[torch.Tensor, ...]
    feedable: torch.Tensor

    @classmethod
    def of(cls, vocabs: Sequence[ByteVocab]) -> Union:
        """Symbols in the order of the first vocabulary's ids, then of what each further one adds: ties fall
        as they would in the first model alone."""
        import torch

        index: dict[bytes, int] = {}
        for vocab in vocabs:
            for text in vocab.emits:
                if text:
                    index.setdefault(text, len(index))
        end, dropped = len(index), len(index) + 1
        maps = []
        for vocab in vocabs:
            row = [
                index[t] if t else end if k is Kind.EOS else dropped
                for t, k in zip(vocab.emits, vocab.kind, strict=True)
            ]
            maps.append(torch.tensor(row, dtype=torch.int64))
        feedable = torch.ones(dropped, dtype=torch.bool)
        for vocab in vocabs:
            if vocab.missing_bytes:
                risky = re.compile(b"[" + re.escape(vocab.missing_bytes) + b"]")
                stuck = [u for x, u in index.items() if risky.search(x) and x not in vocab.ids]
                feedable[stuck] = False
        return cls((*index, b""), tuple(maps), feedable)

    @property
    def eos(self) -> int:
        """The symbol that ends the answer."""
        return len(self.symbols) - 1

    @property
    def size(self) -> int:
        """Number of symbols, the end among them."""
        return len(self.symbols)

    def project(self, member: int, logits: torch.Tensor) -> torch.Tensor:
        """p_m A_m: the member's softmax over its text ids and ends, summed by symbol; shape (size,), float32,
        sums to 1.

        `logits` has shape (≥ |V_m|,): rows that vLLM padded beyond the vocabulary are cut. Controls are
        masked before the softmax. `logits` is not changed."""
        import torch

        symbol_of = self.maps[member]
        row = logits[: symbol_of.shape[0]].float()
        row = row.masked_fill(symbol_of == self.size, float("-inf"))
        q = torch.zeros(self.size + 1, dtype=torch.float32, device=row.device)
        q.index_add_(0, symbol_of, torch.softmax(row, dim=-1))
        return q[: self.size]
