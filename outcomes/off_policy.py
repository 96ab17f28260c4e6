"""Off-policy evaluation: what another policy would have been worth, from the logged decisions of one.

Of decision i the log has the query x_i, the chosen model a_i, how likely that choice was (its propensity p_i), and the
reward r_i that came of it; of the other models no reward is known. A policy π chooses one model for every query. With
the importance weight w_i = 1[π(x_i) = a_i] / p_i and a reward model q (here the estimates that were logged):

    IPS    mean of w_i·r_i                                  unbiased where the p_i are right; its variance grows as 1/p
    SNIPS  Σ w_i·r_i / Σ w_i                                a little biased, and far steadier
    DR     mean of q(x_i, π(x_i)) + w_i·(r_i - q(x_i, a_i)) unbiased where the p_i *or* q are right

IPS: Horvitz & Thompson, 1952, 10.1080/01621459.1952.10483446. DR: Dudík, Langford & Li, "Doubly Robust Policy
Evaluation and Learning", ICML 2011, arXiv 1103.4601. SNIPS: Swaminathan & Joachims, "The Self-Normalized Estimator for
Counterfactual Learning", NIPS 2015. Intervals: the percentile bootstrap over decisions; they tell of chance alone, not
of a bias, and are too narrow where few decisions carry the weight.

No estimator sees what was never tried. Where the logging policy could not have chosen π(x_i) (p_i = 1, and another
model), a decision is not *covered*: IPS and SNIPS leave it out, and so tell of the covered queries only; DR has the
bare estimate q(x_i, π(x_i)) for it, with whatever bias that has.

Laws: for the policy that logged, without exploration, all three are the mean reward; with q = 0 everywhere DR is IPS on
covered decisions; the mean weight is 1 in expectation, whatever the policy, where the propensities are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outcomes.metrics import Interval, chosen, paired_bootstrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Choice = NDArray[np.intp]

__all__ = ["Logged", "Value", "off_policy"]


@dataclass(frozen=True, slots=True)
class Logged:
    """Decisions as they were made, each of shape (n,): the `choice` (a column of the models), its `propensity` in
    (0, 1], and the `reward` that came of it."""

    choice: Choice
    propensity: Floats
    reward: Floats


@dataclass(frozen=True, slots=True)
class Value:
    """What a policy is worth by one reward, on `decisions`.

    `agreed`: the share of them on which it chooses as was logged; `covered`: the share on which it could have been seen
    to. `effective`: (Σw)² / Σw², as many decisions of equal weight as the weighted ones are good for. `weight`: their
    mean weight. `logged`: the mean reward as it was; `gain`: DR over that, paired.
    """

    decisions: int
    agreed: float
    covered: float
    effective: float
    weight: Interval
    logged: Interval
    ips: Interval
    snips: Interval
    dr: Interval
    gain: Interval

    @property
    def doubted(self) -> bool:
        """Whether the mean weight says that the logged propensities are not those that were at work."""
        return not np.isnan(self.weight.mean) and not self.weight.low <= 1 <= self.weight.high


def off_policy(logged: Logged, choice: Choice, model: Floats, *, resamples: int = 1000) -> Value:
    """The value of choosing `choice`, shape (n,), by IPS, SNIPS and DR, with 95 % intervals.

    `model`: the reward model q, shape (n, n_models); where it knows nothing (NaN) it says the mean logged reward.
    """
    reward, propensity = logged.reward, logged.propensity
    agreed = choice == logged.choice
    covered = agreed | (propensity < 1)
    weight = np.where(agreed, 1 / propensity, 0.0)
    of_choice, of_logged = (
        np.where(np.isnan(q), reward.mean(), q) for q in (chosen(model, choice), chosen(model, logged.choice))
    )
    # In an order in which a certain choice that agrees is its reward to the last bit.
    doubly_robust = weight * reward + (of_choice - weight * of_logged)
    weighted = np.where(covered, weight, np.nan)
    columns = (weighted, reward, weighted * reward, reward, doubly_robust, doubly_robust - reward)
    even = np.ones(len(reward))
    weights = np.stack([even, even, even, weight, even, even], axis=1)
    intervals = paired_bootstrap(np.stack(columns, axis=1), weights=weights, resamples=resamples)
    squared = float((weight**2).sum())
    effective = float(weight.sum()) ** 2 / squared if squared else 0.0
    return Value(len(reward), float(agreed.mean()), float(covered.mean()), effective, *intervals)
