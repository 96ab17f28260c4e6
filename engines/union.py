"""The union of several vocabularies: the `Alphabet` on which fusions decide, and how each member reads it.

Two tokens are the same symbol when they emit the same bytes; all ends of all models are one symbol more. The
projection of a distribution is `index_add` over an int array id → symbol: a row-stochastic 0/1 map A_m in
O(|V_m|), never a matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from engines import scan
from engines.byte_vocab import ByteVocab, Kind, Unencodable
from ensembles.tokens.base import SymbolOrder

if TYPE_CHECKING:
    import torch

__all__ = ["Union"]

UNKNOWN = -2
"""In `_begins`: not looked up yet."""


@dataclass(frozen=True)  # no slots: `order` is kept where it is first made
class Union:
    """`symbols[u]` are the bytes of symbol u; the last symbol, `eos`, is the pooled end of the answer (no
    bytes).

    `maps[m]` has shape (|V_m|,), int64: id → symbol, controls → `size`, a bin that projections drop. `ids[m]`
    has shape (size, most ids a symbol has), int64: symbol → its ids in m, the one to feed back first, filled
    up with -1. `feedable` has shape (size,), bool: symbols that every vocabulary can take back.
    """

    symbols: tuple[bytes, ...]
    maps: tuple[torch.Tensor, ...]
    ids: tuple[torch.Tensor, ...]
    feedable: torch.Tensor
    _vocabs: tuple[ByteVocab, ...] = field(repr=False)
    _controls: tuple[torch.Tensor, ...] = field(repr=False)
    _begins: tuple[torch.Tensor, ...] = field(repr=False)
    _shared: dict[frozenset[int], torch.Tensor] = field(repr=False, default_factory=dict)

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
        maps, ids, controls = [], [], []
        for vocab in vocabs:
            row = [
                index[t] if t else end if k is Kind.EOS else dropped
                for t, k in zip(vocab.emits, vocab.kind, strict=True)
            ]
            maps.append(torch.tensor(row, dtype=torch.int64))
            controls.append((maps[-1] == dropped).nonzero().flatten())
            found = {index[text]: same for text, same in vocab.ids.items()}
            found[end] = tuple(sorted(vocab.eos))
            table = torch.full((dropped, max(map(len, found.values()))), -1, dtype=torch.int64)
            for column in range(table.shape[1]):
                here = [(u, same[column]) for u, same in found.items() if len(same) > column]
                places, values = zip(*here, strict=True)
                table[torch.tensor(places), column] = torch.tensor(values)
            ids.append(table)
        feedable = torch.ones(dropped, dtype=torch.bool)
        for vocab in vocabs:
            if vocab.missing_bytes:
                risky = re.compile(b"[" + re.escape(vocab.missing_bytes) + b"]")
                stuck = [u for x, u in index.items() if risky.search(x) and x not in vocab.ids]
                feedable[stuck] = False
        begins = tuple(torch.where(t[:, 0] >= 0, torch.arange(dropped), UNKNOWN) for t in ids)
        return cls((*index, b""), tuple(maps), tuple(ids), feedable, tuple(vocabs), tuple(controls), begins)

    @property
    def eos(self) -> int:
        """The symbol that ends the answer."""
        return len(self.symbols) - 1

    @property
    def size(self) -> int:
        """Number of symbols, the end among them."""
        return len(self.symbols)

    @cached_property
    def order(self) -> SymbolOrder:
        """The symbols by their bytes; made when first asked for, in a quarter of a second."""
        return SymbolOrder(self.symbols)

    def project(self, member: int, logits: torch.Tensor) -> torch.Tensor:
        """p_m A_m: the member's softmax over its text ids and ends, summed by symbol; shape (size,), float32,
        sums to 1.

        `logits` has shape (≥ |V_m|,): rows that vLLM padded beyond the vocabulary are cut. Controls are
        masked before the softmax. `logits` is not changed."""
        symbol_of = self.maps[member]
        row = logits[: symbol_of.shape[0]]
        return scan.project(row, symbol_of, self.log_mass(member, row), self.size)

    def top(self, member: int, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, float]:
        """See `Alphabet.top`. Controls among the largest are rare, and then made up for by a wider look."""
        symbol_of, size = self.maps[member], self.size
        row = logits[: symbol_of.shape[0]]
        wide = k
        while True:
            ids, values = scan.top(row, wide)
            found = symbol_of[ids].tolist()
            kept = [place for place, u in enumerate(found) if u < size][:k]
            if len(kept) == k or len(found) == row.shape[0]:
                break
            wide *= 4
        seen = dict.fromkeys(found[place] for place in kept)
        complete = len(kept) == symbol_of.shape[0] - self._controls[member].shape[0]
        # A symbol left out has at most so many ids, none of them larger than the last one taken.
        spare = math.log(self.ids[member].shape[1])
        bound = -math.inf if complete else float(values[kept[-1]]) + spare
        return symbol_of.new_tensor(list(seen)), bound

    def log_mass(self, member: int, logits: torch.Tensor) -> float:
        """See `Alphabet.log_mass`. The controls' mass is taken off the whole; where it is nearly the whole,
        the rest is summed alone."""
        row = logits[: self.maps[member].shape[0]]
        whole = scan.log_sum_exp(row)
        controls = self._controls[member]
        share = math.exp(scan.log_sum_exp(row, controls) - whole) if controls.shape[0] else 0.0
        if share > 0.5:
            return scan.log_sum_exp(row.float().index_fill(0, controls, -math.inf))
        return whole + math.log1p(-share)

    def read(self, member: int, logits: torch.Tensor, symbols: torch.Tensor) -> torch.Tensor:
        """See `Alphabet.read`."""
        return scan.read(logits, self.ids[member], symbols)

    def begin(self, member: int, symbols: torch.Tensor) -> torch.Tensor:
        """See `Alphabet.begin`. Looked up once a symbol, about 20 µs each."""
        begins = self._begins[member]
        found = begins[symbols]
        unknown = symbols[found == UNKNOWN]
        if unknown.shape[0]:
            vocab, symbol_of = self._vocabs[member], self.maps[member]
            for u in unknown.tolist():
                try:
                    begins[u] = symbol_of[vocab.encode(self.symbols[u])[0]] if self.symbols[u] else -1
                except Unencodable:
                    begins[u] = -1
            found = begins[symbols]
        return found

    def shared(self, members: frozenset[int]) -> torch.Tensor:
        """See `Alphabet.shared`."""
        if members not in self._shared:
            first, *others = (self.ids[m][:, 0] >= 0 for m in sorted(members))
            for other in others:
                first = first & other
            self._shared[members] = first.nonzero().flatten()
        return self._shared[members]
