"""A member's logits read in its own tokens: what it would write next, and how likely it finds what others wrote.

Controls count nowhere, and all ends of the answer are one symbol, as in the union of vocabularies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from engines import scan
from engines.byte_vocab import ByteVocab, Kind
from engines.choose import Chooser
from engines.penalties import Penalties
from engines.union import Union

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["OwnWords"]


class OwnWords:
    """One member of a team's reader; shared by its requests."""

    def __init__(self, vocab: ByteVocab, union: Union, member: int) -> None:
        import torch

        self._union, self._member = union, member
        self._mute = torch.tensor([kind is Kind.CONTROL for kind in vocab.kind])
        self._ends = torch.tensor(sorted(vocab.eos), dtype=torch.int64)
        self._eos = vocab.eos
        self._size = len(vocab)

    def choose(
        self, row: Tensor, chooser: Chooser, penalties: Penalties | None = None, written: Sequence[int] = ()
    ) -> int | None:
        """The id to come behind `written`, None for an end. `row` has shape (≥ |V_m|,) and is not changed."""
        row = row[: self._size]
        if penalties is not None:
            row = penalties.apply(row, Counter(written))
        if chooser.greedy:
            chosen = self._likeliest(row)
        else:
            p = row.float().masked_fill(self._mute, float("-inf")).softmax(-1)
            chosen = chooser.choose(p, ~self._mute)
        return None if chosen in self._eos else chosen

    def peak(self, row: Tensor) -> float:
        """The largest probability of any id, in (0, 1]. `row` as in `choose`."""
        row = row[: self._size]
        return math.exp(float(row[self._likeliest(row)]) - self._union.log_mass(self._member, row))

    def _likeliest(self, row: Tensor) -> int:
        """The id with the largest logit that is no control."""
        chosen = int(scan.top(row, 1)[0])
        if bool(self._mute[chosen]):
            chosen = int(row.float().masked_fill(self._mute, float("-inf")).argmax())
        return chosen

    def read(self, rows: Sequence[Tensor], ids: Sequence[int | None]) -> list[tuple[float, float]]:
        """Natural-log probability and raw logit of each id after its row; None is an end, of which the likeliest
        id's logit is told."""
        out = []
        for row, i in zip(rows, ids, strict=True):
            mass = self._union.log_mass(self._member, row)
            if i is None:
                ends = row[self._ends].float()
                out.append((float(ends.logsumexp(-1)) - mass, float(ends.max())))
            else:
                z = float(row[i])
                out.append((z - mass, z))
        return out
