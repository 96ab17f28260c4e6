"""What a cascade is made of: ordered stages, a `Scorer` that judges an answer, a `Rule` that accepts or
defers.

Laws, asserted for every registered scorer in `tests/contracts/`:

- A scorer is pure: the same answer has the same score, and scoring changes nothing. Higher means more
  trustworthy.
- Accept-always equals stage 1 in answer and cost; accept-never equals the last model at the summed cost.
- Cost counts every call made. Raising a threshold never lowers the share deferred. The oracle bounds every
  curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["Rule", "Scorer", "Shown"]


@dataclass(frozen=True, slots=True)
class Shown:
    """What a stage showed: the human's `query`, the answer's `text`, and the natural-log probability of
    each token of it (`logprobs`, end-of-sequence excluded; empty when the model gives none)."""

    query: str
    text: str
    logprobs: tuple[float, ...] = ()


class Scorer(Protocol):
    """Judges a stage's answer. `parameters` rebuilds it: `type(scorer)(**scorer.parameters)` scores alike."""

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Constructor arguments as JSON values."""
        ...

    def score(self, shown: Shown) -> float | None:
        """Higher is better; None when the answer shows nothing to judge by, which defers."""
        ...


@dataclass(frozen=True, slots=True)
class Rule:
    """Stage i < K is accepted iff its score ≥ `thresholds[i]`; stage K, the last, always. -inf accepts
    every judged answer, +inf none. Raises ValueError without a threshold, or for NaN."""

    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.thresholds or any(math.isnan(threshold) for threshold in self.thresholds):
            raise ValueError(
                f"a cascade needs one threshold for each stage but the last, none NaN; got {self.thresholds}"
            )

    @property
    def n_stages(self) -> int:
        return len(self.thresholds) + 1
