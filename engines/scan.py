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
SMALLEST = 1e-20
"""A sum of exponentials below this has lost digits to float32's range."""
WIDTH = 255
"""Elements that have one maximum in the search for the largest: about √|V|."""


def log_sum_exp(row: Tensor) -> float:
    """The log of Σ exp(row), shape (n,), any float type; computed in float32."""
    import torch

    blocks = _blocks(row)
    # Without taking off the largest first, which would be another pass: logits are rarely so large or small.
    total = sum(float(block.float().exp().sum()) for block in blocks)
    if SMALLEST < total < math.inf:
        return math.log(total)
    return float(torch.stack([block.float().logsumexp(-1) for block in blocks]).logsumexp(-1))


def top(row: Tensor, k: int) -> Tensor:
    """Positions of the k largest of `row`, shape (n,), best first (equal ones in any order); all n for k ≥ n.

    A block is WIDTH groups, every WIDTH-th element one: the largest of all groups at once are one vector
    operation a line. The k largest elements lie in the k groups with the largest maxima, so only these, and
    what is left over of the last block, are sorted."""
    import torch

    n = row.shape[0]
    if k >= n // WIDTH:
        return row.topk(min(k, n)).indices
    maxima, lines = [], []
    for block in _blocks(row):
        height = block.shape[0] // WIDTH
        if height:
            maxima.append(block[: height * WIDTH].float().view(height, WIDTH).amax(0))
            lines.append(height)
    whole = (len(lines) - 1) * BLOCK + lines[-1] * WIDTH
    groups = torch.cat(maxima).topk(k).indices.tolist()
    places = [torch.arange(whole, n, device=row.device)]
    for group in groups:
        block, column = divmod(group, WIDTH)
        start = block * BLOCK
        places.append(torch.arange(start + column, start + lines[block] * WIDTH, WIDTH, device=row.device))
    found = torch.cat(places)
    return found[row[found].topk(k).indices]


def _blocks(row: Tensor) -> list[Tensor]:
    return [row[start : start + BLOCK] for start in range(0, row.shape[0], BLOCK)]
