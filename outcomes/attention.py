"""Attention over a few vectors, written over `outcomes.autograd`: what routers that look at a set of models share.

    MHA(Q, C) = concat_h softmax(Q W_q^h (C W_k^h)ᵀ / √d_h) C W_v^h · W_o;   LN(x) = (x − mean) / std · gain + shift

There are no positions: permuting the context changes nothing, permuting queries permutes the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from outcomes.autograd import Tensor, mean, softmax, sqrt

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["attend", "attention_start", "dense", "dense_start", "layer_norm"]

EPS = 1e-5


def attend(
    w: Mapping[str, Tensor],
    name: str,
    queries: Tensor,
    context: Tensor,
    heads: int,
    present: NDArray[np.bool_] | None = None,
) -> Tensor:
    """MHA by the block `name` of `w`. `queries` (…, n_queries, d), `context` (…, n_context, d); `present`
    (…, n_context) says which of the context is there (all). Returns (…, n_queries, d)."""
    width = context.shape[-1] // heads
    q, k, v = (
        _split(inputs @ w[f"{name}.{part}"], heads)
        for part, inputs in (("query", queries), ("key", context), ("value", context))
    )
    closeness = q @ k.swapaxes(-1, -2) * (width**-0.5)
    if present is not None:
        closeness = closeness + np.where(present, np.float32(0), np.float32(-np.inf))[..., None, None, :]
    found = (softmax(closeness) @ v).swapaxes(-2, -3)
    return found.reshape(*found.shape[:-2], heads * width) @ w[f"{name}.out"]


def layer_norm(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The last axis with mean 0 and deviation 1, then the learnt gain and shift."""
    centred = x - mean(x, -1, keepdims=True)
    spread = sqrt(mean(centred * centred, -1, keepdims=True) + EPS)
    return centred / spread * w[f"{name}.gain"] + w[f"{name}.shift"]


def dense(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The linear layer `name` of `w`."""
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def attention_start(rng: np.random.Generator, name: str, d: int) -> dict[str, NDArray[Any]]:
    """Weights of an attention block of `d` dimensions and of the layer norm after it, before training."""
    parts = {f"{name}.{part}": rng.normal(size=(d, d)) * d**-0.5 for part in ("query", "key", "value", "out")}
    return {**parts, f"{name}.norm.gain": np.ones(d), f"{name}.norm.shift": np.zeros(d)}


def dense_start(rng: np.random.Generator, name: str, inputs: int, outputs: int) -> dict[str, NDArray[Any]]:
    """Weights of a linear layer before training."""
    weight = rng.normal(size=(inputs, outputs)) * max(1, inputs) ** -0.5
    return {f"{name}.weight": weight, f"{name}.bias": np.zeros(outputs)}


def _split(x: Tensor, heads: int) -> Tensor:
    """(…, n, d) → (…, heads, n, d / heads)."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).swapaxes(-2, -3)
