"""Learnt parts of fusions with random weights, for tests that ask what is done with them and not how good they are."""

from __future__ import annotations

import torch

from ensembles.tokens.citer import TokenRouter, _shapes


def token_router(width: int, seed: int = 0) -> TokenRouter:
    """A router of CITER's that calls about every second time."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in _shapes(width).items()}
    tensors["norm.var"] = tensors["norm.var"].abs() + 0.5
    tensors["last.bias"] *= 0
    return TokenRouter(tensors)
