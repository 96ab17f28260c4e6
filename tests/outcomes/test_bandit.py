"""Online learners: what each update keeps true."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.bandit import ActionValues, LinearArms, RewardInaction


def test_reward_inaction_stays_a_distribution() -> None:
    """Probabilities sum to 1 through thousands of updates, nothing moves without reward, and a reward outside
    [0, 1] is refused."""
    rng = np.random.default_rng(0)
    state = RewardInaction.uniform(4, 0.05)
    before = state.p.copy()
    state.update(2, 0.0)
    assert np.allclose(state.p, before)
    for _ in range(5000):
        state.update(state.draw(rng), float(rng.random()))
    assert state.p.sum() == pytest.approx(1)
    assert (state.p >= 0).all()
    with pytest.raises(ValueError, match="not in"):
        state.update(0, 1.2)


def test_reward_inaction_update_is_the_formula() -> None:
    """p_m += b·R·(1 − p_m), p_j −= b·R·p_j."""
    state = RewardInaction.uniform(2, 0.5)
    state.update(0, 0.4)
    assert np.allclose(state.p, [0.5 + 0.5 * 0.4 * 0.5, 0.5 - 0.5 * 0.4 * 0.5])


def test_a_larger_rate_settles_sooner_and_wrong_more_often() -> None:
    """Arms pay with chance 0.6 and 0.4: at b = 0.3 fewer steps and fewer right ends than at b = 0.02."""

    def run(rate: float) -> tuple[float, float]:
        steps, right = [], []
        for seed in range(60):
            rng = np.random.default_rng(seed)
            state = RewardInaction.uniform(2, rate)
            taken = 0
            while not state.settled(0.02) and taken < 20_000:
                arm = state.draw(rng)
                state.update(arm, float(rng.random() < (0.6, 0.4)[arm]))
                taken += 1
            steps.append(taken)
            right.append(state.p.argmax() == 0)
        return float(np.mean(steps)), float(np.mean(right))

    (fast, less), (slow, more) = run(0.3), run(0.02)
    assert fast < slow
    assert less < more
    assert more > 0.9


def test_action_values_move_towards_the_reward() -> None:
    """Q += γ(R − Q); without exploration the best is drawn, and of equal ones any."""
    state = ActionValues.zero(3, 0.5)
    rng = np.random.default_rng(0)
    assert {state.draw(rng, 0.0) for _ in range(50)} == {0, 1, 2}
    state.update(1, 1.0)
    state.update(1, 1.0)
    assert state.q.tolist() == [0, 0.75, 0]
    assert {state.draw(rng, 0.0) for _ in range(20)} == {1}


def test_one_update_at_a_time_is_the_batch() -> None:
    """Sherman–Morrison over all rewards gives the coefficients of the direct inverse, gaps left out."""
    rng = np.random.default_rng(0)
    vectors, rewards = rng.normal(size=(60, 5)), rng.random((60, 3))
    rewards[:10, 1] = np.nan
    batch = LinearArms.of(vectors, rewards, 2.0)
    online = LinearArms.empty(3, 5, 2.0)
    for i, j in zip(*np.nonzero(~np.isnan(rewards)), strict=True):
        online.update(int(j), vectors[i], rewards[i, j])
    assert np.allclose(online.theta, batch.theta)
    assert np.allclose(online.width(vectors), batch.width(vectors))


def test_forgetting_fades_the_penalty_too() -> None:
    """A ← γA + xxᵀ from λI."""
    state = LinearArms.empty(1, 2, 3.0, forget=0.5)
    state.update(0, np.array([1.0, 0.0]), 1.0)
    assert np.allclose(np.linalg.inv(state.inverse[0]), [[2.5, 0], [0, 1.5]])
