"""States of online learners: one update a reward, everything they know in a few arrays, changed in place.

Arms are models. Randomness is an argument: who draws passes a generator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["ActionValues", "LinearArms", "RewardInaction"]


@dataclass(slots=True, eq=False)
class RewardInaction:
    """Stochastic learning automaton, linear reward-inaction: `p`, shape (n_arms,), sums to 1. `rate` b in (0, 1)."""

    p: Floats
    rate: float

    @classmethod
    def uniform(cls, arms: int, rate: float) -> Self:
        return cls(np.full(arms, 1 / arms), rate)

    def draw(self, rng: np.random.Generator) -> int:
        """An arm drawn from `p`."""
        return int(rng.choice(len(self.p), p=self.p))

    def update(self, arm: int, reward: float) -> None:
        """p_m += b·R·(1 − p_m), p_j −= b·R·p_j. Raises ValueError for a reward outside [0, 1], which would make a
        probability negative."""
        if not 0 <= reward <= 1:
            raise ValueError(f"a reward of {reward} is not in [0, 1]")
        self.p *= 1 - self.rate * reward
        self.p[arm] += self.rate * reward
        # Rounding would add up over millions of updates.
        self.p /= self.p.sum()

    def settled(self, epsilon: float) -> bool:
        """Whether one arm has more than 1 − `epsilon` of the probability."""
        return bool(self.p.max() > 1 - epsilon)


@dataclass(slots=True, eq=False)
class ActionValues:
    """Stateless Q-learning: `q` and `pulls`, shape (n_arms,). `rate` γ: Q_m += γ(R − Q_m)."""

    q: Floats
    pulls: Floats
    rate: float

    @classmethod
    def zero(cls, arms: int, rate: float) -> Self:
        return cls(np.zeros(arms), np.zeros(arms), rate)

    def draw(self, rng: np.random.Generator, epsilon: float) -> int:
        """ε-greedy: with probability `epsilon` any arm, else one of highest value (equal ones alike)."""
        best = np.flatnonzero(self.q >= self.q.max() - 1e-12)
        return int(rng.integers(len(self.q)) if rng.random() < epsilon else rng.choice(best))

    def update(self, arm: int, reward: float) -> None:
        self.q[arm] += self.rate * (reward - self.q[arm])
        self.pulls[arm] += 1


@dataclass(slots=True, eq=False)
class LinearArms:
    """Linear bandit: for every arm A = penalty·I + Σ x xᵀ, kept inverted, and b = Σ r·x.

    `inverse`: shape (n_arms, d, d); `b`: (n_arms, d). `forget` γ: A ← γA + x xᵀ, b ← γb + r·x, which also fades the
    penalty; 1 forgets nothing.
    """

    inverse: Floats
    b: Floats
    forget: float = 1.0

    @classmethod
    def empty(cls, arms: int, dimensions: int, penalty: float, forget: float = 1.0) -> Self:
        return cls(np.tile(np.eye(dimensions) / penalty, (arms, 1, 1)), np.zeros((arms, dimensions)), forget)

    @classmethod
    def of(cls, vectors: Floats, rewards: Floats, penalty: float, forget: float = 1.0) -> Self:
        """After all of `rewards` (n, n_arms) on `vectors` (n, d) at once, unknown ones left out."""
        known = ~np.isnan(rewards)
        eye = penalty * np.eye(vectors.shape[1])
        if known.all():
            shared = np.linalg.inv(vectors.T @ vectors + eye)
            inverse = np.repeat(shared[None], rewards.shape[1], axis=0)
        else:
            inverse = np.stack([np.linalg.inv(vectors[row].T @ vectors[row] + eye) for row in known.T])
        return cls(inverse, np.where(known, rewards, 0.0).T @ vectors, forget)

    @property
    def theta(self) -> Floats:
        """Coefficients A⁻¹b, shape (n_arms, d)."""
        return np.asarray(np.einsum("kij,kj->ki", self.inverse, self.b))

    def width(self, vectors: Floats) -> Floats:
        """√(xᵀA⁻¹x), shape (n, n_arms): how uncertain an arm is about a query."""
        return np.stack([np.sqrt(((vectors @ a) * vectors).sum(axis=1)) for a in self.inverse], axis=1)

    def update(self, arm: int, vector: Floats, reward: float) -> None:
        """One reward of one arm, by the Sherman–Morrison formula."""
        inverse = self.inverse[arm] / self.forget
        pulled = inverse @ vector
        self.inverse[arm] = inverse - np.outer(pulled, pulled) / (1 + vector @ pulled)
        self.b[arm] = self.forget * self.b[arm] + reward * vector
