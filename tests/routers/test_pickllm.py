"""pickllm: what it converges to, what its reward is, and how its regret grows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import load_router
from outcomes.metrics import best_single
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from protocol.routing import Feedback, Queries
from routers.pickllm import PickLlm
from routers.policy import Utility


def _session(n: int = 4000) -> OutcomeTable:
    rng = np.random.default_rng(0)
    score = (rng.random((n, 3)) < [0.3, 0.8, 0.5]).astype(float)
    return OutcomeTable.of_matrices(
        ["cheap", "best", "dear"], [str(i) for i in range(n)], score, np.tile([1e-6, 8e-6, 9e-6], (n, 1))
    )


@pytest.mark.parametrize("variant", ["automaton", "q"])
def test_converges_to_the_best_single_model(variant: str) -> None:
    """With w_c = w_l = 0, for every seed; with cost weighing heavily, to the cheapest."""
    table = _session()
    for seed in range(5):
        router = PickLlm(variant=variant, seed=seed).fit(table)
        assert set(Utility().choose(router.estimate(table.queries))) == {best_single(table.score)}
    thrifty = PickLlm(variant=variant, score_weight=0.3, cost_weight=1.0).fit(table)
    assert set(Utility().choose(thrifty.estimate(table.queries))) == {0}


def test_regret_is_sublinear() -> None:
    """With decaying ε the second half of a session costs less regret than the first."""
    table = _session()
    router = PickLlm(variant="q").fit(table.take(slice(0, 1)))
    rng = np.random.default_rng(1)
    lost = []
    for i in range(1, len(table)):
        name = router.draw(rng)
        j = table.models.index(name)
        lost.append(0.8 - (0.3, 0.8, 0.5)[j])
        router.observe(Feedback(Queries([table.queries.texts[i]]), name, float(table.score[i, j])))
    half = len(lost) // 2
    assert sum(lost[half:]) < 0.7 * sum(lost[:half])


def test_reward_forms() -> None:
    """The sum adds penalties, the product multiplies them; both stay in [0, 1], unknown cost counting as the worst."""
    table = _session(50)
    weights = {"cost_weight": 0.5, "latency_weight": 0.25}
    added = PickLlm(**weights).fit(table)
    assert added.reward(1.0, 0.0, 0.1) == pytest.approx(1.0)
    assert added.reward(0.0) == 0.0
    assert added.reward(1.0, 9e-6, 100.0) == pytest.approx(1 / 1.75)
    multiplied = PickLlm(reward_form="product", **weights).fit(table)
    assert multiplied.reward(1.0, 9e-6, 0.1) == pytest.approx(1.0), "one factor of no latency"
    assert multiplied.reward(0.0, 9e-6, 100.0) == 0.0
    assert added.reward(1.0, 9e-6, 0.1) < 1.0


def test_a_session_goes_on_from_its_artefact(tmp_path: Path) -> None:
    """Saved and read again, the state moves on as it would have."""
    table = _session(300)
    router = PickLlm().fit(table)
    router.save(tmp_path)
    again = load_router(tmp_path)[1]
    assert isinstance(again, PickLlm)
    told = Feedback(Queries(["x"]), "dear", 1.0)
    router.observe(told)
    again.observe(told)
    assert np.allclose(again.p_, router.p_)
    with pytest.raises(MethodError, match="no model"):
        router.observe(Feedback(Queries(["x"]), "other", 1.0))
    with pytest.raises(MethodError, match="automaton or q"):
        PickLlm(variant="ucb")
