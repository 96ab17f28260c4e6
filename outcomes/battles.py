"""The pairwise view of an outcome table: who beats whom on which query, and ratings that explain it.

On a query the higher score wins; equal scores are a draw, half a win for each. `wins` has shape (…, n_models,
n_models): entry (i, j) is how often (or with what weight) i beat j.
"""

from __future__ import annotations

from functools import lru_cache
from math import log, tanh
from typing import TYPE_CHECKING, Any

import numpy as np

from outcomes.networks import sigmoid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["ELO_SCALE", "Pairs", "bradley_terry", "decisive", "elo", "win_share", "wins_of"]

Pairs = tuple["NDArray[np.intp]", "NDArray[np.intp]", "NDArray[np.intp]"]
ELO_SCALE = 400 / log(10)
"""Elo points of one unit of log-odds: 400 points are odds of ten to one."""


def wins_of(score: Floats) -> Floats:
    """Wins on every query, shape (n_queries, n_models, n_models): 1, ½ for a draw, 0; nothing where either score
    is unknown, and nothing on the diagonal."""
    a, b = score[:, :, None], score[:, None, :]
    found = np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0))
    models = score.shape[1]
    found[:, np.arange(models), np.arange(models)] = 0.0
    return found


def decisive(score: Floats) -> Pairs:
    """All battles with a winner: (query, winner, loser), indices, in order of query, winner and loser."""
    query, winner, loser = np.nonzero(score[:, :, None] > score[:, None, :])
    return query, winner, loser


def bradley_terry(
    wins: Floats,
    *,
    against_zero: tuple[Floats, Floats] | None = None,
    penalty: float = 1e-4,
    iterations: int = 60,
) -> Floats:
    """Ratings θ with P(i beats j) = σ(θ_i − θ_j) that make `wins` (…, m, m) likeliest, natural log-odds, mean 0
    unless pinned; shape (…, m). Newton's method, all leading axes at once.

    `against_zero`: each player's wins and losses, (…, m) each, against a player held at θ = 0. `penalty`: of
    θ²/2, as a share of the mean number of games a player has: it keeps players that won everything finite and
    changes the rest by about that share.
    """
    games = wins + np.swapaxes(wins, -1, -2)
    m = wins.shape[-1]
    theta = np.zeros(wins.shape[:-1])
    won, lost = against_zero if against_zero is not None else (np.zeros_like(theta), np.zeros_like(theta))
    weight = penalty * ((games.sum(axis=(-1, -2)) + (won + lost).sum(axis=-1)) / m)[..., None]
    weight = np.maximum(weight, 1e-12)
    for _ in range(iterations):
        chance = sigmoid(theta[..., :, None] - theta[..., None, :])
        own = sigmoid(theta)
        slope = (wins - games * chance).sum(axis=-1) + won - (won + lost) * own - weight * theta
        curve = games * chance * (1 - chance)
        diagonal = curve.sum(axis=-1) + (won + lost) * own * (1 - own) + weight
        hessian = np.eye(m) * diagonal[..., None] - curve
        step = np.linalg.solve(hessian, slope[..., None])[..., 0]
        # Far from the optimum Newton overshoots where σ is flat; near it steps are small and this does nothing.
        longest = np.abs(step).max(axis=-1, keepdims=True) if m else step
        theta = theta + step * np.minimum(1.0, 2.0 / np.maximum(longest, 1e-300))
        if not theta.size or float(np.abs(step).max()) < 1e-10:
            break
    return np.asarray(theta)


def elo(ratings: Floats, score: Floats, k: float) -> Floats:
    """Elo ratings after the battles on some queries, query by query, all pairs of models with known scores.

    `ratings`: start, shape (…, n_models), one table a leading index; `score`: shape (…, n_queries, n_models).
    Pairs fight in the rounds of a round-robin tournament: within a round they are disjoint, so their order does not
    matter. Returns new ratings; their total is that of the start.
    """
    found = np.array(ratings, dtype=np.float64)
    if found.size == score.shape[-1]:
        return _elo_alone(found, score.reshape(-1, score.shape[-1]), k, _in_turn(score.shape[-1]))
    rounds = _rounds(score.shape[-1])
    for q in range(score.shape[-2]):
        row = score[..., q, :]
        for i, j in rounds:
            a, b = row[..., i], row[..., j]
            result = np.where(a > b, 1.0, np.where(a == b, 0.5, 0.0))
            expected = sigmoid((found[..., i] - found[..., j]) / ELO_SCALE)
            change = np.where(np.isnan(a) | np.isnan(b), 0.0, k * (result - expected))
            found[..., i] += change
            found[..., j] -= change
    return found


def _elo_alone(found: Floats, score: Floats, k: float, pairs: tuple[Any, Any]) -> Floats:
    """`elo` of a single table, the same battles in the same order, in plain floats: ten times as fast as arrays of a
    few numbers each."""
    i, j = pairs
    # 1 for a win, -1 for a loss, 0 for a draw, NaN where a score is unknown. A chance is ½(1 + tanh(½x)).
    signs = np.sign(score[:, i] - score[:, j])
    known = ~np.isnan(signs)
    table: list[float] = (0.5 / ELO_SCALE * found.ravel()).tolist()
    most = 0.25 / ELO_SCALE * k
    if known.all():
        first, second = i.tolist() * len(score), j.tolist() * len(score)
    else:
        _, pair = np.nonzero(known)
        first, second = i[pair].tolist(), j[pair].tolist()
    for a, b, gain in zip(first, second, (most * signs[known]).tolist(), strict=True):
        change = gain - most * tanh(table[a] - table[b])
        table[a] += change
        table[b] -= change
    return (2 * ELO_SCALE * np.array(table)).reshape(found.shape)


@lru_cache
def _in_turn(players: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Both sides of every pair, in the order of the rounds."""
    none = np.empty((0, 2), dtype=np.intp)
    pairs = np.concatenate([none, *(np.stack(sides, axis=1) for sides in _rounds(players))])
    return pairs[:, 0], pairs[:, 1]


def _rounds(players: int) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Every pair once, in rounds of disjoint pairs (circle method): the first stays, the others turn."""
    seats = list(range(players + players % 2))
    rounds = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = [sorted(pair) for pair in zip(seats[:half], reversed(seats[half:]), strict=True)]
        kept = np.array([pair for pair in pairs if pair[1] < players], dtype=np.intp).reshape(-1, 2)
        rounds.append((kept[:, 0], kept[:, 1]))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return rounds


def win_share(strength: Floats) -> Floats:
    """Each model's mean chance of beating another of the pool, mean over j ≠ i of σ(s_i − s_j), from strengths
    (natural log-odds, shape (n, m)). Of two models it is P(i beats j); of one, 1."""
    m = strength.shape[1]
    if m == 1:
        return np.ones(strength.shape)
    chance = sigmoid(strength[:, :, None] - strength[:, None, :])
    return np.asarray((chance.sum(axis=2) - 0.5) / (m - 1))
