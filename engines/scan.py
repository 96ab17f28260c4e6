"""What fusions ask of one logits row, each in the cheapest way for where the row lies.

In the CPU's memory, in bfloat16 or float32, a loop of `engines.kernels` reads the row once, in the calling thread. That
is right with spinning threads too: a row takes some ten microseconds, about what it costs to wake a second thread for
half of it, and on cores that others use waiting for that thread costs up to twenty milliseconds (measured). Elsewhere
torch does it, where the row is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["compile_kernels", "log_sum_exp", "project", "read", "top"]

SMALLEST = 1e-20
"""A sum of exponentials below this has lost digits to float32's range."""


def log_sum_exp(row: Tensor, places: Tensor | None = None) -> float:
    """The log of Σ exp(row), or of that over `places` alone, within 1e-5; −inf of nothing."""
    array = _array(row)
    if array is not None:
        from engines import kernels

        # Without taking off the largest first, which would be another pass: logits are rarely so large or small.
        total = kernels.sum_exp(array) if places is None else kernels.sum_exp_at(array, places.numpy())
        if SMALLEST < total < kernels.LARGEST:
            return math.log(total)
    chosen = row if places is None else row[places]
    return float(chosen.float().logsumexp(-1))


def top(row: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Positions of the k largest of `row`, shape (n,), best first (equal ones in any order), and their values; of all n
    for k ≥ n."""
    import torch

    array = _array(row)
    if array is None or not 0 < k < min(row.shape[0], SORTED):
        values, places = row.topk(min(k, row.shape[0]))
        return places, values
    from engines import kernels

    places, values = kernels.top(array, k)
    return torch.from_numpy(places), torch.from_numpy(values)


SORTED = 2048
"""From how many on torch's sorting is faster than entering one by one."""


def read(row: Tensor, ids: Tensor, symbols: Tensor) -> Tensor:
    """Log Σ exp of row[ids[u]] for each u of `symbols`, in float32 and their shape; `ids` (|U|, w) has −1 behind the
    last. −inf for a symbol without ids, and for u < 0."""
    import torch

    array = _array(row)
    if array is not None:
        from engines import kernels

        found = kernels.gather(array, ids.numpy(), symbols.reshape(-1).numpy())
        return torch.from_numpy(found).view(symbols.shape)
    mine = ids[symbols]  # a symbol of -1 reads the last one's ids, and is masked with the others
    z = row[mine].float().masked_fill((mine < 0) | (symbols < 0)[..., None], -math.inf)
    return z[..., 0] if z.shape[-1] == 1 else z.logsumexp(-1)


def project(row: Tensor, symbol_of: Tensor, log_mass: float, size: int) -> Tensor:
    """exp(row − log_mass) summed by symbol, shape (size,), float32; ids of symbol `size` count nowhere."""
    import torch

    array = _array(row)
    if array is not None:
        from engines import kernels

        return torch.from_numpy(kernels.project(array, symbol_of.numpy(), log_mass, size))
    q = torch.zeros(size + 1, dtype=torch.float32, device=row.device)
    return q.index_add_(0, symbol_of, (row.float() - log_mass).exp())[:size]


def compile_kernels(dtype: str) -> None:
    """Compile what rows of this type will need, if they have kernels, so that no request waits for it: a second or two,
    once a process and type."""
    import torch

    if dtype not in ("bfloat16", "float32"):
        return
    row = torch.zeros(2, dtype=getattr(torch, dtype))
    one = torch.zeros(1, dtype=torch.int64)
    log_sum_exp(row)
    log_sum_exp(row, one)
    top(row, 1)
    read(row, one[None], one)
    project(row[:1], one, 0.0, 1)


def _array(row: Tensor) -> Any:
    """The bits of the row, without a copy, for kernels; None where they cannot take it."""
    import torch

    if row.device.type != "cpu" or row.stride() != (1,) or row.requires_grad:
        return None
    if row.dtype == torch.bfloat16:
        return row.view(torch.int16).numpy()
    return row.view(torch.int32).numpy() if row.dtype == torch.float32 else None
