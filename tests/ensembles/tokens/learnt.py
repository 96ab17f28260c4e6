"""Learnt parts of fusions with random weights, for tests that ask what is done with them and not how good they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ensembles.tokens.citer import TokenRouter, _shapes
from tests.contracts.fusion_checks import SmallAlphabet, SmallTables


def token_router(width: int, seed: int = 0) -> TokenRouter:
    """A router of CITER's that calls about every second time."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in _shapes(width).items()}
    tensors["norm.var"] = tensors["norm.var"].abs() + 0.5
    tensors["last.bias"] *= 0
    return TokenRouter(tensors)


@dataclass(frozen=True)
class Named(SmallTables):
    """A team's tables; its members are called as it is told."""

    called: tuple[str, ...] = ()

    def __init__(self, alphabet: SmallAlphabet, called: tuple[str, ...]) -> None:
        super().__init__(alphabet)
        object.__setattr__(self, "called", called)

    @property
    def members(self) -> int:
        return len(self.called)

    @property
    def names(self) -> tuple[str, ...]:
        return self.called
