"""Off-policy evaluation, on simulated logs whose truth is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from outcomes.metrics import Interval
from outcomes.off_policy import Logged, Value, off_policy

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SEEDS, DECISIONS, EXPLORE = 150, 400, 0.4
"""At a nominal 95 %, 150 intervals cover the truth 136 to 149 times but for one time in a hundred."""


class World:
    """Two models, right with the chances `p` that rise and fall with the query; the logging policy takes the first
    where the query is below one half, and any of the two for a share of the queries."""

    def __init__(self, seed: int, explore: float = EXPLORE) -> None:
        rng = np.random.default_rng(seed)
        self.x = rng.random(DECISIONS)
        self.p = self.chances(self.x)
        ruled = (self.x >= 0.5).astype(np.intp)
        drawn = np.where(rng.random(DECISIONS) < explore, rng.integers(0, 2, DECISIONS), ruled)
        propensity = explore / 2 + (1 - explore) * (drawn == ruled)
        right = rng.random(DECISIONS) < self.p[np.arange(DECISIONS), drawn]
        self.logged = Logged(drawn.astype(np.intp), propensity, right.astype(float))
        self.target = (self.x >= 0.8).astype(np.intp)

    @staticmethod
    def chances(x: Floats) -> Floats:
        return np.stack([0.9 - 0.5 * x, 0.3 + 0.6 * x], axis=1)

    def value(self, model: Floats | None = None, logged: Logged | None = None) -> Value:
        return off_policy(
            logged or self.logged, self.target, self.p if model is None else model, resamples=300
        )


def _truth() -> float:
    x = (np.arange(100_000) + 0.5) / 100_000
    return float(World.chances(x)[np.arange(len(x)), (x >= 0.8).astype(int)].mean())


def _study(value: Callable[[World], Value]) -> dict[str, tuple[float, float, float]]:
    """Of each estimator over the seeds: its bias, the bias's standard error, and how often its interval covers the
    truth."""
    truth, found = _truth(), [value(World(seed)) for seed in range(SEEDS)]
    told = {}
    for name in ("ips", "snips", "dr"):
        intervals: list[Interval] = [getattr(one, name) for one in found]
        errors = np.array([one.mean for one in intervals]) - truth
        covers = np.mean([one.low <= truth <= one.high for one in intervals])
        told[name] = float(errors.mean()), float(errors.std() / np.sqrt(SEEDS)), float(covers)
    return told


def test_unbiased_with_intervals_that_cover() -> None:
    """With right propensities the mean error of all three is within its noise, and 95 % intervals cover the truth about
    as often as they say; DR with the right reward model is the steadier one."""
    told = _study(World.value)
    for bias, error, covers in told.values():
        assert abs(bias) < 3 * error
        assert 136 <= covers * SEEDS <= 149
    assert told["dr"][1] < 0.7 * told["ips"][1]


def test_a_wrong_reward_model_is_forgiven() -> None:
    """DR with a reward model that has everything upside down is still right, for the propensities are."""
    bias, error, covers = _study(lambda world: world.value(1 - world.p))["dr"]
    assert abs(bias) < 3 * error
    assert 136 <= covers * SEEDS <= 149


def test_wrong_propensities_are_not() -> None:
    """Propensities of a policy that explored twice as much: IPS is far off, as the mean weight often betrays; DR with
    the right reward model is right, with the wrong one as well it is not."""

    def wrongly(world: World) -> Logged:
        logged = world.logged
        return Logged(logged.choice, np.where(logged.propensity > 0.5, 0.6, 0.4), logged.reward)

    told = _study(lambda world: world.value(logged=wrongly(world)))
    assert told["ips"][2] < 0.5
    assert abs(told["ips"][0]) > 0.05
    assert abs(told["dr"][0]) < 3 * told["dr"][1]
    assert abs(_study(lambda world: world.value(1 - world.p, wrongly(world)))["dr"][0]) > 0.05
    worlds = [World(seed) for seed in range(40)]
    doubted = [
        sum(world.value(logged=log(world)).doubted for world in worlds)
        for log in (wrongly, lambda w: w.logged)
    ]
    assert doubted[0] > 12
    assert doubted[1] < 7


def test_without_exploration_only_agreement_counts() -> None:
    """Every propensity is 1: IPS and SNIPS are the mean reward where both agree, whatever the truth elsewhere; DR fills
    the rest with the reward model, bias and all."""
    world = World(0, explore=0.0)
    value = world.value(np.full_like(world.p, 0.25))
    both = world.target == world.logged.choice
    assert value.agreed == value.covered == both.mean() < 0.8
    assert value.effective == both.sum()
    assert value.ips == value.snips
    assert value.ips.mean == pytest.approx(world.logged.reward[both].mean())
    assert value.dr.mean == pytest.approx(np.where(both, world.logged.reward, 0.25).mean())


def test_the_laws() -> None:
    """The logging policy is worth what it got, without a gain; DR without a reward model is IPS; a policy that was
    never followed has no weight; what the reward model does not know is the mean."""
    world = World(1, explore=0.0)
    own = off_policy(world.logged, world.logged.choice, world.p)
    assert own.ips == own.snips == own.logged
    assert own.dr.mean == pytest.approx(own.logged.mean)
    assert (own.gain.mean, own.gain.low) == (pytest.approx(0), pytest.approx(0))
    assert own.effective == len(world.x)
    world = World(2)
    value = world.value(np.zeros_like(world.p))
    assert value.dr == value.ips
    assert value.effective < value.agreed * len(world.x)
    blank, mean = np.full_like(world.p, np.nan), np.full_like(world.p, world.logged.reward.mean())
    assert world.value(blank) == world.value(mean)
    other = World(3, explore=0.0)
    never = off_policy(other.logged, 1 - other.logged.choice, other.p)
    assert (never.agreed, never.covered, never.effective) == (0, 0, 0)
    assert np.isnan([never.ips.mean, never.snips.mean, never.weight.mean]).all()
    assert not never.doubted
    assert not np.isnan(never.dr.mean)
