"""A policy that weighs models by what was asked and written so far, and how it is learnt by reinforcement.

    φ = (encoder(prompt), encoder(end of the text))     h_a = tanh(W_a φ + b_a)     z = (U_a h_a + c_a)_a

The encoder is frozen; agents a have a network each. One agent gives the logits z of all members ("ppo"), or each member
has an agent that gives its own ("mappo"); the weights are softmax(z). While it learns, z is drawn from a normal
distribution around that with a fixed width. PPO with a clipped ratio, of the joint action or of each agent's own,
advantages by GAE with one critic for all; a reward is normalised among the rollouts of its group, the answers to one
prompt, so that easy prompts teach as much as hard ones.

numpy at serving, torch to learn. Learnt parameters are an artefact: safetensors and a manifest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from outcomes.artefact import Manifest, load_artefact, save_artefact, tensor
from outcomes.embedder import embedder_id, load_embedder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

__all__ = ["Agents", "Learner", "Rollout", "Weigher", "WeightPolicy", "encoder"]

Agents = Literal["ppo", "mappo"]
METHOD = "rlae"
SEEN = 2000
"""Characters of prompt and text that the encoder is shown: the last ones, about what it reads."""
Encode = Callable[[str, str], "Floats"]
"""Prompt and text so far → φ, shape (D,)."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightPolicy:
    """`w1` has shape (A, D, H), `b1` (A, H), `w2` (A, H, O), `b2` (A, O), float32; A · O members."""

    w1: Floats
    b1: Floats
    w2: Floats
    b2: Floats

    @property
    def members(self) -> int:
        """How many it weighs."""
        return int(self.b2.size)

    def logits(self, features: Floats) -> Floats:
        """The mean of z, shape (members,), of φ, shape (D,)."""
        h = np.tanh(np.einsum("d,adh->ah", features, self.w1) + self.b1)
        z: Floats = (np.einsum("ah,aho->ao", h, self.w2) + self.b2).reshape(-1)
        return z

    def save(self, folder: Path, manifest: Manifest) -> Manifest:
        """Write an artefact."""
        return save_artefact(folder, manifest, {"w1": self.w1, "b1": self.b1, "w2": self.w2, "b2": self.b2})

    @classmethod
    def parse(cls, tensors: Mapping[str, NDArray[Any]], members: int, dimensions: int) -> Self:
        """Of an artefact's tensors. Raises `MethodError` where their shapes do not fit."""
        told = tensors["b1"].shape if "b1" in tensors and tensors["b1"].ndim == 2 else (1, 1)
        agents, outputs = (1, members) if told[0] == 1 else (members, 1)
        hidden = told[1]
        shapes = {
            "w1": (agents, dimensions, hidden),
            "b1": (agents, hidden),
            "w2": (agents, hidden, outputs),
            "b2": (agents, outputs),
        }
        return cls(**{name: tensor(tensors, name, shape=shape) for name, shape in shapes.items()})


def encoder(embed: Callable[[Sequence[str]], Floats], dimensions: int) -> Encode:
    """φ by an embedder: both texts' vectors, zeros for one that is empty."""

    def encode(prompt: str, text: str) -> Floats:
        seen = [prompt[-SEEN:], text[-SEEN:]]
        out = np.zeros((2, dimensions), dtype=np.float32)
        told = [i for i, one in enumerate(seen) if one.strip()]
        if told:
            out[told] = embed([seen[i] for i in told])
        return out.reshape(-1)

    return encode


@dataclass(frozen=True, slots=True, eq=False)
class Weigher:
    """A loaded policy with its encoder: text in, logits of the members out. `span` is what it was trained with."""

    policy: WeightPolicy
    encode: Encode
    models: tuple[str, ...]
    span: int

    @classmethod
    def load(cls, folder: Path, embedder: Path) -> Self:
        """Of an artefact and the weights folder of its embedder. Raises `ArtefactMismatch`, `MethodError`."""
        manifest, tensors = load_artefact(folder, method=METHOD)
        manifest.require(embedder=embedder_id(embedder))
        loaded = load_embedder(embedder)
        policy = WeightPolicy.parse(tensors, len(manifest.models), 2 * loaded.dimensions)
        encode = encoder(lambda texts: loaded.embed_counted(texts)[0], loaded.dimensions)
        return cls(policy, encode, manifest.models, int(manifest.parameters["span"]))

    def logits(self, prompt: str, text: str) -> list[float]:
        """The mean of z, one a member."""
        return [float(z) for z in self.policy.logits(self.encode(prompt, text))]


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer: φ of each span, shape (T, D), the z that was drawn, shape (T, members), the reward of the whole, and
    the group it is compared within."""

    features: Floats
    actions: Floats
    reward: float
    group: str


class Learner:
    """Learns from rollouts that were drawn with `act`. `width` of exploration, in logits; `clip` of the ratio."""

    def __init__(
        self,
        members: int,
        dimensions: int,
        *,
        agents: Agents = "ppo",
        hidden: int = 32,
        width: float = 0.7,
        clip: float = 0.2,
        rate: float = 3e-3,
        epochs: int = 4,
        trace: float = 0.95,
        seed: int = 0,
    ) -> None:
        import torch

        self._width, self._clip, self._epochs, self._trace = width, clip, epochs, trace
        self._each = agents == "mappo"
        self._draws = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        count, outputs = (members, 1) if self._each else (1, members)

        def drawn(*shape: int) -> Any:
            return (torch.randn(*shape, generator=generator) / math.sqrt(shape[-2])).requires_grad_()

        def zeros(*shape: int) -> Any:
            return torch.zeros(*shape, requires_grad=True)

        # Zeros in the last layer: learning begins with equal weights.
        self._policy = {
            "w1": drawn(count, dimensions, hidden),
            "b1": zeros(count, hidden),
            "w2": zeros(count, hidden, outputs),
            "b2": zeros(count, outputs),
        }
        self._critic = [drawn(dimensions, hidden), zeros(hidden), zeros(hidden, 1)]
        self._optimiser = torch.optim.Adam([*self._policy.values(), *self._critic], lr=rate)

    def policy(self) -> WeightPolicy:
        """What is learnt by now."""
        return WeightPolicy(**{name: value.detach().numpy().copy() for name, value in self._policy.items()})

    def act(self, features: Floats) -> Floats:
        """A z to try, shape (members,)."""
        mean = self.policy().logits(features)
        return (mean + self._width * self._draws.standard_normal(mean.shape)).astype(np.float32)

    def learn(self, rollouts: Sequence[Rollout]) -> None:
        """Some steps of PPO on rollouts of the present policy."""
        import torch

        features = torch.tensor(np.concatenate([r.features for r in rollouts]))
        actions = torch.tensor(np.concatenate([r.actions for r in rollouts]))
        with torch.no_grad():
            before = self._logp(features, actions)
            values = self._values(features)
        advantages, targets = self._advantages(rollouts, values.tolist())
        for _ in range(self._epochs):
            ratio = (self._logp(features, actions) - before).exp()
            gain = advantages[:, None]
            kept = torch.minimum(ratio * gain, ratio.clamp(1 - self._clip, 1 + self._clip) * gain)
            critic = (self._values(features) - targets).square().mean()
            loss = 0.5 * critic - kept.mean()
            self._optimiser.zero_grad()
            loss.backward()
            self._optimiser.step()

    def _logp(self, features: Any, actions: Any) -> Any:
        """Log-density of the actions up to a constant: of each agent's own, shape (n, agents)."""
        import torch

        p = self._policy
        h = torch.tanh(torch.einsum("nd,adh->nah", features, p["w1"]) + p["b1"])
        mean = (torch.einsum("nah,aho->nao", h, p["w2"]) + p["b2"]).flatten(1)
        logp = -((actions - mean) / self._width).square() / 2
        return logp if self._each else logp.sum(-1, keepdim=True)

    def _values(self, features: Any) -> Any:
        import torch

        w1, b1, w2 = self._critic
        return (torch.tanh(features @ w1 + b1) @ w2)[:, 0]

    def _advantages(self, rollouts: Sequence[Rollout], values: Sequence[float]) -> tuple[Any, Any]:
        """GAE without discount, and what the critic should have said; both of shape (n,)."""
        import torch

        rewards = normalised(rollouts)
        advantages, start = [], 0
        for rollout, reward in zip(rollouts, rewards, strict=True):
            steps = len(rollout.features)
            seen = [*values[start : start + steps], 0.0]
            run, own = 0.0, []
            for t in reversed(range(steps)):
                gained = reward if t == steps - 1 else 0.0
                run = gained + seen[t + 1] - seen[t] + self._trace * run
                own.append(run)
            advantages += own[::-1]
            start += steps
        advantage = torch.tensor(advantages, dtype=torch.float32)
        return advantage, advantage + torch.tensor(values, dtype=torch.float32)


def normalised(rollouts: Sequence[Rollout]) -> list[float]:
    """Rewards less their group's mean, by its standard deviation; 0 in a group in which all are equal."""
    groups: dict[str, list[float]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.group, []).append(rollout.reward)
    out = []
    for rollout in rollouts:
        mean, spread = float(np.mean(groups[rollout.group])), float(np.std(groups[rollout.group]))
        out.append((rollout.reward - mean) / spread if spread > 1e-9 else 0.0)
    return out
