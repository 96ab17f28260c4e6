"""A policy over any set of models, conditioned on a preference between score and money, and its training from tables.

    h = MLP[Set({(I_k, c̄_k, p̂_k)}) ; W e ; w],  π = softmax_k I_kᵀ h;   V(x, C) ∈ R², which does not see the preference
    r = [s̄_a, −c̄_a] over the highest of the candidate set,  A = ωᵀ(r − V) with ω = [1, w]

Supervised on pairs (`preferred`), then by clipped policy gradients of one-step episodes (`Rollout`) on prompts blended
with their nearest neighbour. Everything is masked: who is absent is in no mean, no attention, no softmax.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes import autograd as ad
from outcomes.attention import attend, attention_start, dense, dense_start, layer_norm
from outcomes.autograd import Tensor
from outcomes.learning_set import known_means
from outcomes.neighbours import BLOCK
from outcomes.networks import sigmoid, softmax

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Array = NDArray[np.floating[Any]]
    Weights = Mapping[str, Tensor]

__all__ = [
    "PASSES",
    "Candidates",
    "Rollout",
    "Table",
    "platt",
    "policy_logits",
    "policy_start",
    "preferred",
    "shares",
    "value",
    "value_start",
]

MAX_PREFERENCE = 2.0
HEADS = 4
ABSENT = np.float32(-1e9)
"""A logit that softmax makes 0, and whose product with 0 is 0."""
CLIP, VALUE, ENTROPY, PASSES = 0.2, 0.5, 0.01, 4
"""Of PPO: clip of the ratio, weights of value loss and entropy, passes over a rollout."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Whom n queries may be given to: `identities` (m, k), `cost` c̄, `right` p̂ and `present`, each (n, m)."""

    identities: Array
    cost: Array
    right: Array
    present: NDArray[np.bool_]

    @classmethod
    def of(cls, identities: Array, prices: Array, right: Array, present: NDArray[np.bool_]) -> Self:
        """`prices` (m,): US dollars, put over the dearest candidate's."""
        return cls(identities, shares(np.broadcast_to(prices, right.shape), present), right, present)


def policy_logits(w: Weights, vectors: Array, candidates: Candidates, preference: Array) -> Tensor:
    """Logits of π, shape (n, m), at a preference w of each query, shape (n,)."""
    read = np.cbrt(preference / MAX_PREFERENCE)[:, None]
    told = dense(w, "policy.preference", read.astype(vectors.dtype))
    hidden = ad.relu(_encoded(w, "policy", vectors, candidates) + told)
    logits = dense(w, "policy.out", hidden) @ candidates.identities.T
    return logits + np.where(candidates.present, np.float32(0), ABSENT)


def value(w: Weights, vectors: Array, candidates: Candidates) -> Tensor:
    """V: expected [s̄, −c̄] of who will be chosen, shape (n, 2)."""
    return dense(w, "value.out", ad.relu(_encoded(w, "value", vectors, candidates)))


def policy_start(dimensions: int, identity: int, hidden: int, seed: int) -> dict[str, NDArray[Any]]:
    """Arrays of the policy before training."""
    rng = np.random.default_rng((seed, 1))
    own = dense_start(rng, "policy.preference", 1, hidden) | dense_start(rng, "policy.out", hidden, identity)
    return _encoder_start(rng, "policy", dimensions, identity, hidden) | own


def value_start(dimensions: int, identity: int, hidden: int, seed: int) -> dict[str, NDArray[Any]]:
    """Arrays of the value network before training."""
    rng = np.random.default_rng((seed, 2))
    return _encoder_start(rng, "value", dimensions, identity, hidden) | dense_start(
        rng, "value.out", hidden, 2
    )


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """What the policy learns from: every prompt's embedding and nearest other prompt, and for every model its reward,
    cost (p̂ and the model's mean where nobody measured), p̂ and calibrated p̄."""

    vectors: Array
    neighbour: NDArray[np.intp]
    identities: Array
    prices: Array
    score: Array
    cost: Array
    right: Array
    calibrated: Array

    @classmethod
    def of(cls, vectors: Floats, score: Floats, cost_usd: Floats, identities: Floats, logits: Floats) -> Self:
        """`logits`: f of every prompt and model."""
        right, prices = sigmoid(logits), np.nan_to_num(known_means(cost_usd))
        slope, shift = platt(logits, score)
        single = (
            identities,
            prices,
            np.where(np.isnan(score), right, score),
            np.where(np.isnan(cost_usd), prices, cost_usd),
            right,
            sigmoid(slope * logits + shift),
        )
        return cls(
            vectors.astype(np.float32), _nearest_other(vectors), *(part.astype(np.float32) for part in single)
        )

    def candidates(self, rows: NDArray[np.intp], present: NDArray[np.bool_]) -> Candidates:
        """Of these prompts."""
        return Candidates.of(self.identities, self.prices, self.right[rows], present)


def preferred(w: Weights, table: Table, rng: np.random.Generator, batch: int) -> Tensor:
    """Log π, shape (batch,), of the better of two random models for random prompts and preferences: the one of higher
    p̄/max p̄ − w·c̄."""
    rows = rng.integers(len(table.vectors), size=batch)
    present = _subset(rng, batch, len(table.prices), size=2)
    preference = _preferences(rng, batch)
    candidates = table.candidates(rows, present)
    worth = shares(table.calibrated[rows], present) - preference[:, None] * candidates.cost
    target = np.where(present, worth, -np.inf).argmax(axis=1)
    logits = policy_logits(w, table.vectors[rows], candidates, preference)
    return ad.log_softmax(logits)[np.arange(batch), target]


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One-step episodes: blended prompts, their dominant ones' candidates and preference, what was done with which
    chance, the advantage ωᵀ(r − V), shape (n,), and what V should have been, shape (n, 2)."""

    vectors: Array
    candidates: Candidates
    preference: Array
    action: NDArray[np.intp]
    chance: Array
    advantage: Array
    reward: Array

    @classmethod
    def of(cls, w: Mapping[str, Array], table: Table, rng: np.random.Generator, batch: int) -> Self:
        """Play `w` on random prompts, candidate sets and preferences."""
        rows = rng.integers(len(table.vectors), size=batch)
        share = rng.beta(0.2, 0.2, batch)
        share = np.maximum(share, 1 - share)[:, None].astype(np.float32)
        present, preference = _subset(rng, batch, len(table.prices)), _preferences(rng, batch)
        candidates = table.candidates(rows, present)
        chances = softmax(policy_logits(w, table.vectors[rows], candidates, preference))
        action = (
            chances.cumsum(axis=1) > rng.random((batch, 1)) * chances.sum(axis=1, keepdims=True)
        ).argmax(1)
        ends = []
        for end in (rows, table.neighbour[rows]):
            played = softmax(policy_logits(w, table.vectors[end], candidates, preference))
            reward = _rewards(table, end, present, action)
            seen = value(w, table.vectors[end], candidates)
            ends.append(
                (table.vectors[end], played[np.arange(batch), action][:, None], reward, reward - seen)
            )
        vectors, chance, reward, gain = (share * a + (1 - share) * b for a, b in zip(*ends, strict=True))
        advantage = gain[:, 0] + preference * gain[:, 1]
        advantage = (advantage / (advantage.std() + 1e-6)).astype(np.float32)
        return cls(vectors, candidates, preference, action, chance[:, 0], advantage, reward)

    def loss(self, w: Weights) -> Tensor:
        """PPO's clipped objective, value loss and entropy."""
        log = ad.log_softmax(policy_logits(w, self.vectors, self.candidates, self.preference))
        ratio = ad.exp(log[np.arange(len(self.action)), self.action]) / np.maximum(
            self.chance, np.float32(1e-6)
        )
        now = ad.plain(ratio)
        # Where the clip is the smaller of both, the objective is flat.
        free = np.where(self.advantage > 0, now < 1 + CLIP, now > 1 - CLIP).astype(np.float32)
        error = value(w, self.vectors, self.candidates) - self.reward
        entropy = -ad.total(ad.exp(log) * log, 1)
        gain = ad.mean(ratio * (self.advantage * free))
        return VALUE * ad.mean(error * error) - gain - ENTROPY * ad.mean(entropy)


def shares(values: Array, present: NDArray[np.bool_]) -> Array:
    """Values over the highest of those present, shape (n, m); 0 where that is not positive and for the absent."""
    kept = np.where(present, values, 0)
    highest = kept.max(axis=1, keepdims=True)
    return np.asarray(kept / np.where(highest > 0, highest, 1))


def platt(logits: Floats, score: Floats) -> tuple[float, float]:
    """Parameters a and b of σ(a·logit + b), fitted to who wins: of every two different scores on a query the
    winner has the label 1, the loser 0. Newton's method with a little ridge."""
    known = ~np.isnan(score)
    more = (score[:, :, None] > score[:, None]) & known[:, :, None] & known[:, None]
    won, lost = more.sum(axis=2).ravel(), more.sum(axis=1).ravel()
    scale = float(logits.std()) or 1.0
    x = np.stack([logits.ravel() / scale, np.ones(logits.size)], axis=1)
    found = np.zeros(2)
    for _ in range(20):
        p = sigmoid(x @ found)
        slope = x.T @ ((won + lost) * p - won) + found
        curve = (x * ((won + lost) * p * (1 - p))[:, None]).T @ x + np.eye(2)
        found = found - np.linalg.solve(curve, slope)
    return float(found[0]) / scale, float(found[1])


def _encoded(w: Weights, name: str, vectors: Array, candidates: Candidates) -> Tensor:
    """Set of candidates and prompt, projected and added, shape (n, hidden)."""
    n, m = candidates.right.shape
    alike = np.broadcast_to(candidates.identities, (n, m, candidates.identities.shape[1]))
    tokens = np.concatenate([alike, candidates.cost[..., None], candidates.right[..., None]], axis=2)
    states = ad.relu(dense(w, f"{name}.token", tokens.astype(vectors.dtype)))
    heard = attend(w, f"{name}.set", states, states, HEADS, candidates.present)
    states = layer_norm(w, f"{name}.set.norm", states + heard)
    there = candidates.present[..., None] / candidates.present.sum(axis=1)[:, None, None]
    pooled = ad.total(states * there.astype(vectors.dtype), 1)
    return dense(w, f"{name}.pool", pooled) + dense(w, f"{name}.prompt", vectors)


def _encoder_start(
    rng: np.random.Generator, name: str, dimensions: int, identity: int, hidden: int
) -> dict[str, NDArray[Any]]:
    start = dense_start(rng, f"{name}.token", identity + 2, hidden) | attention_start(
        rng, f"{name}.set", hidden
    )
    start |= dense_start(rng, f"{name}.pool", hidden, hidden)
    return start | dense_start(rng, f"{name}.prompt", dimensions, hidden)


def _rewards(
    table: Table, rows: NDArray[np.intp], present: NDArray[np.bool_], action: NDArray[np.intp]
) -> Array:
    """[s̄_a, −c̄_a], shape (n, 2)."""
    score, cost = (shares(values[rows], present) for values in (table.score, table.cost))
    at = np.arange(len(rows)), action
    return np.stack([score[at], -cost[at]], axis=1)


def _preferences(rng: np.random.Generator, n: int) -> Floats:
    """Random w in [0, 2], most of them small, shape (n,). Where the best model costs fifty times the others it is worth
    asking below w = 0.1 only: uniform draws would hardly ever show that, and the policy would forget it."""
    return np.asarray(MAX_PREFERENCE * rng.random(n) ** 3)


def _subset(rng: np.random.Generator, n: int, m: int, size: int | None = None) -> NDArray[np.bool_]:
    """Random candidate sets, shape (n, m): of `size`, or of any size from 2."""
    sizes = np.full(n, min(size or 0, m)) if size else rng.integers(min(2, m), m + 1, n)
    rank = np.argsort(np.argsort(rng.random((n, m)), axis=1), axis=1)
    return np.asarray(rank < sizes[:, None])


def _nearest_other(vectors: Floats) -> NDArray[np.intp]:
    """The nearest other row by cosine of each; itself where it is alone."""
    found = np.empty(len(vectors), dtype=np.intp)
    for start in range(0, len(vectors), BLOCK):
        closeness = vectors[start : start + BLOCK] @ vectors.T
        rows = np.arange(len(closeness))
        closeness[rows, start + rows] = -2
        found[start : start + BLOCK] = closeness.argmax(axis=1)
    return found
