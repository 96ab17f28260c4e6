"""Counting votes over canonical keys. None abstains: it has no weight and never wins."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["plurality", "tally"]


def tally(keys: Sequence[str | None], weights: Sequence[float] | None = None) -> dict[str, float]:
    """V(s) = Σ_i w_i · 1[a_i = s] for every key voted for, in order of first appearance. `weights` default
    to 1."""
    weights = [1.0] * len(keys) if weights is None else weights
    votes: dict[str, list[float]] = {}
    for key, weight in zip(keys, weights, strict=True):
        if key is not None:
            votes.setdefault(key, []).append(weight)
    return {key: math.fsum(cast) for key, cast in votes.items()}


def plurality(keys: Sequence[str | None], weights: Sequence[float] | None = None) -> int | None:
    """Index of the first voter of the key with most weight, the first such key on ties; None when all
    abstain."""
    votes = tally(keys, weights)
    return keys.index(max(votes, key=lambda key: votes[key])) if votes else None
