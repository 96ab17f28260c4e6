"""Policies: from any router's estimates to a choice of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outcomes.assignment import utility_choice
from outcomes.batch_assignment import integer_choice, margin_choice, threshold_choice, upgrade_choice
from protocol.errors import MethodError
from protocol.routing import Estimate
from protocol.settings import RuleSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Budget", "CheapestAbove", "Margin", "Rule", "Threshold", "Utility", "configured"]


@dataclass(frozen=True, slots=True)
class Utility:
    """The model of highest quality − λ·cost. `lam`: quality a US dollar is worth; see
    `outcomes.assignment.Knob` for the λ of a `quality` setting. Ties go to the cheaper model, never to the
    first-listed."""

    lam: float = 0.0

    def choose(self, estimate: Estimate) -> NDArray[np.intp]:
        return utility_choice(estimate, self.lam)


@dataclass(frozen=True, slots=True)
class Threshold:
    """RouteLLM's rule for two models: `strong` answers iff its lead in quality over `weak` reaches `alpha`.

    `outcomes.assignment.calibrate_threshold` of `lead` gives the `alpha` that sends a wanted share to the
    strong model.
    """

    strong: str
    weak: str
    alpha: float

    @property
    def told(self) -> str:
        """The rule in words, by the chance of winning, of which the lead is 2w - 1."""
        return f"{self.strong} from a {(1 + self.alpha) / 2:g} chance of winning"

    def choose(self, estimate: Estimate) -> NDArray[np.intp]:
        """Where nothing is known of one of the two, the other."""
        strong, weak = self._columns(estimate)
        alone = np.isnan(estimate.quality[:, weak])
        return np.where(alone | (self.lead(estimate) >= self.alpha), strong, weak).astype(np.intp)

    def lead(self, estimate: Estimate) -> NDArray[np.float64]:
        """Estimated quality of the strong model minus the weak one's, shape (n_queries,)."""
        strong, weak = self._columns(estimate)
        return np.asarray(estimate.quality[:, strong] - estimate.quality[:, weak], dtype=np.float64)

    def _columns(self, estimate: Estimate) -> tuple[int, int]:
        for name in (self.strong, self.weak):
            if name not in estimate.models:
                raise MethodError(f"The router has no model {name!r}; it has {', '.join(estimate.models)}.")
        return estimate.models.index(self.strong), estimate.models.index(self.weak)


@dataclass(frozen=True, slots=True)
class Margin:
    """The cheapest model whose quality is within `tolerance` of the best (HomoRouter's cost-saving rule)."""

    tolerance: float

    @property
    def told(self) -> str:
        """The rule in words."""
        return f"the cheapest within {self.tolerance:g} of the best"

    def choose(self, estimate: Estimate) -> NDArray[np.intp]:
        return margin_choice(estimate, self.tolerance)


@dataclass(frozen=True, slots=True)
class CheapestAbove:
    """The cheapest model whose quality is above `theta`, the dearest where none is (FORC's thresholding)."""

    theta: float = 0.5

    @property
    def told(self) -> str:
        """The rule in words."""
        return f"the cheapest above {self.theta:g}"

    def choose(self, estimate: Estimate) -> NDArray[np.intp]:
        return threshold_choice(estimate, self.theta)


@dataclass(frozen=True, slots=True)
class Budget:
    """The batch's most total quality for `usd_per_query` US dollars on average: exact by integer programming, or
    greedy along each query's hull, which is faster and within one query's gain of it."""

    usd_per_query: float
    exact: bool = False

    def choose(self, estimate: Estimate) -> NDArray[np.intp]:
        total = self.usd_per_query * len(estimate.quality)
        if self.exact:
            return integer_choice(estimate, budget_usd=total)
        return upgrade_choice(estimate, total)


Rule = Threshold | Margin | CheapestAbove


def configured(rule: RuleSettings) -> Rule:
    """The policy that a config's `policy:` describes."""
    if rule.threshold is not None:
        return Threshold(rule.threshold.strong, rule.threshold.weak, 2 * rule.threshold.alpha - 1)
    if rule.margin is not None:
        return Margin(rule.margin)
    return CheapestAbove(rule.cheapest_above or 0.0)
