"""Practising for RLAE: questions, slots that try weights out, and what is learnt from grades alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engines.host import FusionSpec
from engines.rlae import OUTCOMES, QUERIES, Slot, practised, tasks
from outcomes.collect import Prompt
from outcomes.weight_policy import Learner
from tests.engines.table_engine import LETTERS, PAIRS, answers, host_of


def test_questions_are_practised_or_held_out() -> None:
    """No question is both; those practised are the ones on which the members' own answers differ."""
    learnt, kept = tasks(QUERIES, held_out=False), tasks(QUERIES, held_out=True)
    assert not {task.prompt for task in learnt} & {task.prompt for task in kept}
    assert 0.2 < len(kept) / (len(learnt) + len(kept)) < 0.4
    chosen = practised(learnt, OUTCOMES)
    assert 50 < len(chosen) < len(learnt) / 2
    assert set(chosen) <= set(learnt)


def test_a_grade_is_the_reward() -> None:
    """By the question's own rule."""
    task = Prompt("1", "capitals", "Capital of France?", "contains", ("Paris",), 8)
    assert (task.grade("It is Paris."), task.grade("It is Rome.")) == (1.0, 0.0)


def test_slots_learn_who_is_to_be_heard(tmp_path: Path) -> None:
    """Rewarded for one member's words only, a policy comes to give that member the weight, and forgets no trial."""

    def encode(prompt: str, text: str) -> np.ndarray:
        return np.ones(1, dtype=np.float32)

    learner = Learner(2, 1, rate=3e-2, width=1.0, seed=2)
    slots = {f"slot-{n}": Slot(learner, encode, span=4) for n in range(8)}
    fusions = [FusionSpec(name, ("x", "y"), (0.5, 0.5), slot) for name, slot in slots.items()]
    fusions.append(FusionSpec("alone", ("y",), (1.0,), Slot(Learner(1, 1), encode, 4).rule))
    host, _ = host_of(tmp_path, {"x": (LETTERS, 1), "y": (PAIRS, 2)}, fusions)
    (wanted,) = answers(host, "alone", [(1, 2)], max_tokens=8)
    for _ in range(40):
        rollouts = []
        for name, slot in slots.items():
            (text,) = answers(host, name, [(1, 2)], max_tokens=8)
            same = sum(a == b for a, b in zip(text, wanted, strict=False)) / len(wanted)
            assert len(slot.features) == len(slot.actions) >= 1
            rollouts.append(slot.rollout(same, "one"))
            assert not slot.features
        learner.learn(rollouts)
    host.stop()
    z = learner.policy().logits(encode("", ""))
    assert z[1] - z[0] > 1
