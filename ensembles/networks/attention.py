"""Attention for small networks beside the models: each head sees what is not ahead, and less of what is far.

The fall with distance needs no position table and knows no longest text (ALiBi: Press et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor

__all__ = ["AHEAD", "attend", "drawn", "unit"]

AHEAD = 1 << 30
"""The position of what nobody may see, such as padding."""


def attend(q: Tensor, k: Tensor, v: Tensor, distance: Tensor, slopes: Sequence[float]) -> Tensor:
    """Multi-head attention with one slope a head: shapes (n, n_queries, d), (n, n_keys, d) twice, and `distance` of
    each key behind each query, (n, n_queries, n_keys), below 0 for what may not be seen."""
    import torch

    n, here, size = q.shape
    heads = len(slopes)
    q, k, v = (x.view(n, -1, heads, size // heads).transpose(1, 2) for x in (q, k, v))
    bias = -distance[:, None] * torch.tensor(slopes, dtype=q.dtype)[:, None, None]
    bias = bias.masked_fill(distance[:, None] < 0, -torch.inf)
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return mixed.transpose(1, 2).reshape(n, here, size)


def unit(x: Tensor) -> Tensor:
    """Scaled to unit mean square in the last dimension."""
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def drawn(chance: Generator, rows: int, columns: int) -> Tensor:
    """A random matrix that keeps the mean square of what it is applied to."""
    import torch

    matrix: Tensor = torch.randn(rows, columns, generator=chance) * columns**-0.5
    return matrix
