"""Learning to weigh models by reinforcement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import Manifest, load_artefact
from outcomes.weight_policy import Agents, Learner, Rollout, WeightPolicy, encoder, normalised
from protocol.errors import MethodError

TOPICS = (("cats and dogs", "hens", "a cow"), ("stars", "the moon", "a far comet"))
"""Topic 0 is the first member's, topic 1 the second's."""


def _letters(prompt: str, text: str) -> np.ndarray:
    """An encoder that counts letters."""
    counts = np.array([prompt.count(chr(97 + i)) for i in range(26)], dtype=np.float32)
    return counts / max(1.0, float(np.linalg.norm(counts)))


def _weights(z: np.ndarray) -> np.ndarray:
    shares = np.exp(z - z.max())
    return shares / shares.sum()


@pytest.mark.parametrize("agents", ["ppo", "mappo"])
@pytest.mark.parametrize("members", [2, 3])
def test_the_bandit_with_two_topics(agents: Agents, members: int) -> None:
    """The reward is the weight of the member that knows the topic: more than 95 % of the oracle's is reached, from
    rewards alone."""
    learner = Learner(members, 26, agents=agents, rate=1e-2, seed=3)
    asked = [(topic, text) for topic, texts in enumerate(TOPICS) for text in texts]

    def reward(policy: WeightPolicy) -> float:
        return float(np.mean([_weights(policy.logits(_letters(text, "")))[topic] for topic, text in asked]))

    assert reward(learner.policy()) == pytest.approx(1 / members)
    for _ in range(120):
        rollouts = []
        for topic, text in asked:
            features = _letters(text, "")
            for _ in range(6):
                z = learner.act(features)
                rollouts.append(Rollout(features[None], z[None], float(_weights(z)[topic]), text))
        learner.learn(rollouts)
    assert reward(learner.policy()) > 0.95


def test_a_reward_at_the_end_teaches_every_span() -> None:
    """With several spans and one reward, each span learns its own weights: the first member first, then the second."""
    learner = Learner(2, 2, rate=1e-2, seed=1)
    features = np.eye(2, dtype=np.float32)
    for _ in range(150):
        rollouts = []
        for _ in range(16):
            z = np.stack([learner.act(row) for row in features])
            rollouts.append(Rollout(features, z, float(_weights(z[0])[0] * _weights(z[1])[1]), "one"))
        learner.learn(rollouts)
    first, second = (_weights(learner.policy().logits(row)) for row in features)
    assert first[0] > 0.8
    assert second[1] > 0.8


def test_rewards_are_compared_within_their_prompt() -> None:
    """A hard prompt's best answer counts as much as an easy one's; where all are alike nothing is learnt."""
    none = np.zeros((1, 1), dtype=np.float32)
    rewards = {"easy": (1.0, 0.9), "hard": (0.1, 0.0), "same": (1.0, 1.0)}
    rollouts = [Rollout(none, none, reward, group) for group, pair in rewards.items() for reward in pair]
    assert normalised(rollouts) == pytest.approx([1, -1, 1, -1, 0, 0])


def test_round_trip(tmp_path: Path) -> None:
    """A saved policy weighs as it did; one of another shape is refused."""
    policy = Learner(3, 4, agents="mappo", seed=5).policy()
    policy.b2[:] = [[1.0], [2.0], [-1.0]]
    policy.save(tmp_path, Manifest(method="rlae", models=("a", "b", "c"), parameters={"span": 8}))
    _, tensors = load_artefact(tmp_path, method="rlae")
    again = WeightPolicy.parse(tensors, 3, 4)
    features = np.ones(4, dtype=np.float32)
    assert again.members == 3
    assert again.logits(features).tolist() == policy.logits(features).tolist()
    with pytest.raises(MethodError, match="shape"):
        WeightPolicy.parse(tensors, 2, 4)
    with pytest.raises(MethodError, match="shape"):
        WeightPolicy.parse(tensors, 3, 5)


def test_what_the_encoder_sees() -> None:
    """Prompt and text each have their place; nothing stands for a text that is empty."""
    encode = encoder(lambda texts: np.array([[len(text), 1] for text in texts], dtype=np.float32), 2)
    assert encode("four", "").tolist() == [4, 1, 0, 0]
    assert encode("four", "ab").tolist() == [4, 1, 2, 1]
    assert encode("x" * 5000, "y").tolist() == [2000, 1, 1, 1]
