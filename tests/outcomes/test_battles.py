"""The pairwise view and its ratings: closed forms, weights, conservation."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.battles import ELO_SCALE, bradley_terry, decisive, elo, win_share, wins_of

SCORE = np.array([[1.0, 0.0, np.nan], [1.0, 1.0, 0.0], [0.2, 0.7, 0.7]])


def test_wins_of_a_table() -> None:
    """Higher scores win, equal ones draw, unknown ones do not fight."""
    wins = wins_of(SCORE)
    assert wins[0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert wins[1].tolist() == [[0, 0.5, 1], [0.5, 0, 1], [0, 0, 0]]
    assert wins[2].tolist() == [[0, 0, 0], [1, 0, 0.5], [1, 0.5, 0]]
    assert list(zip(*decisive(SCORE), strict=True)) == [(0, 0, 1), (1, 0, 2), (1, 1, 2), (2, 1, 0), (2, 2, 0)]


def test_two_players_have_a_closed_form() -> None:
    """The rating difference is 400·log10(wins / losses)."""
    theta = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), penalty=0.0)
    assert (theta[0] - theta[1]) * ELO_SCALE == pytest.approx(400 * np.log10(3))


def test_bradley_terry_is_logistic_regression_with_half_wins() -> None:
    """A fit by scikit-learn on doubled battles, draws once each way, gives the same ratings."""
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    score = rng.integers(0, 3, (200, 4)) / 2
    weight = rng.uniform(1, 100, 200)
    rows, labels, weights = [], [], []
    for q in range(200):
        for i in range(4):
            for j in range(i + 1, 4):
                row = np.zeros(4)
                row[i], row[j] = 1, -1
                a, b = score[q, i], score[q, j]
                for half in (0, 1):
                    rows.append(row)
                    labels.append(a > b if a != b else half)
                    weights.append(weight[q])
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=5000)
    theirs.fit(np.array(rows), np.array(labels), sample_weight=weights)
    wins = np.tensordot(weight, wins_of(score), axes=1)
    found = bradley_terry(wins, penalty=1e-9)
    assert np.allclose(found - found.mean(), theirs.coef_[0] - theirs.coef_[0].mean(), atol=1e-3)


def test_who_never_lost_stays_finite() -> None:
    """A separable table has ratings, and many tables are solved at once as one by one."""
    tables = np.array([[[0.0, 5.0], [0.0, 0.0]], [[0.0, 1.0], [4.0, 0.0]]])
    both = bradley_terry(tables)
    assert np.isfinite(both).all()
    assert both[0, 0] > both[0, 1]
    assert np.allclose(both[1], bradley_terry(tables[1]))


def test_a_pinned_opponent_pulls_towards_zero() -> None:
    """Equal wins and losses against the player at 0 shrink every rating."""
    wins = np.array([[0.0, 30.0], [10.0, 0.0]])
    games = np.full(2, 20.0)
    free, pinned = bradley_terry(wins), bradley_terry(wins, against_zero=(games, games))
    assert np.ptp(pinned) < np.ptp(free)


def test_elo_conserves_the_total_and_counts_in_order() -> None:
    """What one gains the other loses; two batches are one; the first battle is by the book."""
    rng = np.random.default_rng(0)
    score = rng.integers(0, 2, (40, 3)).astype(float)
    score[3, 1] = np.nan
    start = np.full(3, 100.0)
    after = elo(start, score, 32)
    assert after.sum() == pytest.approx(300)
    assert np.allclose(elo(elo(start, score[:17], 32), score[17:], 32), after)
    assert np.allclose(elo(np.array([100.0, 500]), np.array([[1.0, 0]]), 32)[0], 100 + 32 * (1 - 1 / 11))


def test_win_share_of_two_is_the_win_probability() -> None:
    """σ of the difference; the shares of a pool average one half."""
    assert np.allclose(win_share(np.array([[np.log(3), 0.0]])), [[0.75, 0.25]])
    assert win_share(np.random.default_rng(0).normal(size=(5, 4))).mean() == pytest.approx(0.5)
    assert win_share(np.zeros((2, 1))).tolist() == [[1.0], [1.0]]
