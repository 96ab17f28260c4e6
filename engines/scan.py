"""Scans of one logits row, in blocks small enough that torch does not start its threads for them.

A row of 262,144 logits takes a tenth of a millisecond to read with one core. Torch would split that over its
threads, and on cores that others use too, waiting for the slowest thread costs up to twenty milliseconds
(measured). A block of fewer than 32,768 elements stays in the calling thread."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["log_sum_exp", "top"]

BLOCK = 32_640
"""Elements in one torch call: below its grain of 32,768, and a multiple of WIDTH."""
SAFE = 60.0
"""Logits up to here, a million of them, can be exponentiated and added in float32 as they are."""
WIDTH = 255
"""Elements that have one maximum in the search for the largest: about √|V|."""


def log_sum_exp(row: Tensor) -> float:
    """The log of Σ exp(row), shape (n,), any float type; computed in float32."""
    import torch

    blocks = _blocks(row)
    peak = max(float(block.amax()) for block in blocks)
    if abs(peak) < SAFE:  # no need to subtract the largest first: half the time
        return math.log(sum(float(block.float().exp().sum()) for block in blocks))
    return float(torch.stack([block.float().logsumexp(-1) for block in blocks]).logsumexp(-1))


def top(row: Tensor, k: int) -> Tensor:
    """Positions of the k largest of `row`, shape (n,), best first (equal ones in any order); all n for k ≥ n.

    The k largest lie in the k groups with the largest maxima, so only these groups are sorted."""
    import torch

    n = row.shape[0]
    groups = n // WIDTH
    if k >= groups:
        return row.topk(min(k, n)).indices
    whole = row[: groups * WIDTH]
    maxima = torch.cat([block.view(-1, WIDTH).amax(-1) for block in _blocks(whole)])
    chosen = maxima.topk(k).indices
    places = (chosen[:, None] * WIDTH + torch.arange(WIDTH, device=row.device)).flatten()
    places = torch.cat([places, torch.arange(groups * WIDTH, n, device=row.device)])
    return places[row[places].topk(k).indices]


def _blocks(row: Tensor) -> list[Tensor]:
    return [row[start : start + BLOCK] for start in range(0, row.shape[0], BLOCK)]
