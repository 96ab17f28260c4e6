"""selectllm: the limits of its vote, its three policies, and what its subsets are worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from routers.selectllm import SelectLlm
from tests.encoders import QUICK, tiny_encoder
from tests.routers.recorded import realised, worded_table

SAMPLES = [["a", "a", "b"], ["b", "b", None], ["b", "c", None]]


def test_vote_limits() -> None:
    """With s = all and equal confidence, plain majority; one-hot: that model's majority; s = 1: the argmax's; scale and
    extraction failures change nothing."""
    equal = np.full(3, 0.4)
    assert SelectLlm(size=3).vote(equal, SAMPLES) == "b"
    for k, answer in enumerate(("a", "b", "b")):
        assert SelectLlm(size=3).vote(np.eye(3)[k], SAMPLES) == answer
        assert SelectLlm(size=1).vote(0.1 + 0.8 * np.eye(3)[k], SAMPLES) == answer
    leaning = np.array([0.9, 0.2, 0.1])
    assert SelectLlm(size=3).vote(leaning, SAMPLES) == SelectLlm(size=3).vote(leaning / 7, SAMPLES) == "a"
    assert SelectLlm(size=3, policy="max-conf").vote(leaning, SAMPLES) == "b", (
        "weights counted where they should not"
    )
    assert SelectLlm().vote(equal, [[None], [], [None, None]]) is None


def test_policies_choose_the_surest() -> None:
    """Each takes the s surest; the labelled one only those above ½, and never nobody."""
    confidence = np.array([[0.9, 0.3, 0.6, 0.7], [0.1, 0.2, 0.4, 0.3]])
    assert SelectLlm(size=2).members(confidence).tolist() == [
        [True, False, False, True],
        [False, False, True, True],
    ]
    labelled = SelectLlm(size=4, policy="labelled-max-conf").members(confidence)
    assert labelled.tolist() == [[True, False, True, True], [False, False, True, False]]


@pytest.mark.requires("torch")
def test_it_learns_who_can(tmp_path: Path) -> None:
    """Where one word tells which model can answer, held-out queries go to that model nearly always."""
    start = str(tiny_encoder(tmp_path))
    router = SelectLlm(start=start, **QUICK).fit(worded_table(300))
    test = worded_table(200, seed=1)
    assert realised(router, test) > test.score.mean(axis=0).max() + 0.2


def test_chosen_subset_beats_a_random_one() -> None:
    """With recorded answers whose rightness the confidence foretells, the chosen subset votes at least as well as a
    random subset of the same size."""
    rng = np.random.default_rng(0)
    n, m = 400, 6
    ability = rng.uniform(0.1, 0.9, (n, m))
    confidence = np.clip(ability + 0.15 * rng.normal(size=(n, m)), 0, 1)
    right = rng.random((n, m, 10)) < ability[:, :, None]
    wrong = rng.choice(["b", "c", "d"], (n, m, 10))
    answers = np.where(right, "a", wrong).tolist()
    router = SelectLlm(size=3)
    chosen = np.mean([router.vote(confidence[i], answers[i]) == "a" for i in range(n)])
    blind = np.mean([router.vote(rng.random(m) * 0.01 + 1, answers[i]) == "a" for i in range(n)])
    assert chosen > blind + 0.05
