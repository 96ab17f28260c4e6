"""Policies: from any router's estimates to a choice of model.

`Pacing` holds an average cost request by request. It is dual mirror descent (Balseiro, Lu & Mirrokni, "The Best of Many
Worlds: Dual Mirror Descent for Online Allocation Problems", arXiv 2011.10124): λ is the price of the budget, request t
goes to the highest quality - λ·cost, and λ moves against the budget's surplus B - c_t. The mirror map is the one whose
gradient is -x(λ), x the level of the artefact's quality knob; so the step is plain in x, x += (1 - c_t/B) / window.
The calibration has made mean cost linear in x, hence one step size does whatever the prices are. Summed up,
|mean of c_t - B| <= B·window/T after T requests, for any traffic, while x stays between its ends; at an end the
surplus is not carried on (projection): what was saved when all got the best is not spent later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outcomes.assignment import Knob, utility_choice
from outcomes.batch_assignment import integer_choice, margin_choice, threshold_choice, upgrade_choice
from protocol.errors import MethodError
from protocol.routing import Estimate
from protocol.settings import RuleSettings

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "Budget",
    "CheapestAbove",
    "Margin",
    "Paced",
    "Pacing",
    "Rule",
    "Threshold",
    "Utility",
    "configured",
]


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


@dataclass(slots=True)
class Pacing:
    """The quality knob's `level` in [0, 1], moved by what requests cost so that they cost `usd_per_request` on average
    (see above)."""

    usd_per_request: float
    window: int
    level: float

    def spent(self, usd: float) -> None:
        """A request did cost so many US dollars."""
        self.level = min(1.0, max(0.0, self.level + (1 - usd / self.usd_per_request) / self.window))


@dataclass(frozen=True, slots=True)
class Paced:
    """What `Pacing` chooses for queries that come one after another from the knob's `start` on, each paid at its
    estimate."""

    knob: Knob
    usd_per_request: float
    window: int = 200
    start: float = 0.5

    @property
    def told(self) -> str:
        """The rule in words."""
        return f"{self.usd_per_request:g} USD a request on average"

    def choose(self, estimate: Estimate) -> NDArray[np.intp]:
        pacing = Pacing(self.usd_per_request, self.window, self.start)
        choice = np.empty(len(estimate.quality), dtype=np.intp)
        for i, (quality, cost) in enumerate(zip(estimate.quality, estimate.cost_usd, strict=True)):
            one = Estimate(estimate.models, quality[None], cost[None])
            choice[i] = utility_choice(one, self.knob.lam(pacing.level))[0]
            if not np.isnan(cost[choice[i]]):
                pacing.spent(float(cost[choice[i]]))
        return choice


Rule = Threshold | Margin | CheapestAbove


def configured(rule: RuleSettings) -> Rule:
    """The policy that a config's `policy:` describes, but for a `budget`, which is a `Pacing` of the knob."""
    if rule.threshold is not None:
        return Threshold(rule.threshold.strong, rule.threshold.weak, 2 * rule.threshold.alpha - 1)
    if rule.margin is not None:
        return Margin(rule.margin)
    return CheapestAbove(rule.cheapest_above or 0.0)
