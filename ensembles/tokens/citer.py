"""CITER: a small model writes, and a router on its hidden state says which tokens a large one has to write.

"CITER: Collaborative Inference for Efficient Large Language Model Decoding with Token-Level Routing", Zheng et
al., 2025, arXiv 2502.01976.

    s = sigmoid(MLP(h))        next token from the small model where s ≥ τ, else from the large one

h is the small model's state after its final norm (`Step.states`), before the token that is judged; the MLP is
Linear(d, 2d), BatchNorm, ReLU, Linear(2d, d), Linear(d, 1), with dropout 0.1 in training (`TokenRouter`). Labels
come from texts known to be right (`label`): 1 where the small model's token is the text's; else 0 where the large
one's is; where both are wrong, whether the answer comes out right when it goes on from the small one's token:
written by the small model alone in the first round, by both with the router of the round before after that.

A large model that is not called stays where it is, and reads all it has missed in one forward when it is.

*Needs* full logits of the member that writes, hidden states of the small one, and an artefact: `chorus teach`.
*Returns* the distribution p of the member that writes, which is also told (`author`).

*Differs from the paper.* Vocabularies may differ: tokens are compared as bytes, what one member writes is
encoded by itself for the other. The text may be sampled, each token from the member the router picks. Several large
members speak as their average by weight, and a member of weight 0 does not speak: the small one with all the weight
is alone. The authors train at a rate of 1e-7; ours is 1e-4, as there are far fewer
tokens. Labels read the large model in the tokens of the text, where it would have written some of them otherwise.

*Laws.* τ = 0 gives the small model's text, τ = 1 the large one's greedy text; the share of calls grows with τ; the
router's output is that of the trained network with its batch norm at rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ensembles.options import the_part, whole
from ensembles.tokens.base import Ask, Decision, Mixture, Step, alone
from outcomes.artefact import Manifest, load_artefact, save_artefact, tensor
from protocol.errors import ArtefactMismatch, SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CITER", "METHOD", "Point", "TokenRouter", "fit", "label"]

_SMALL = "tests/ensembles/tokens/test_citer.py"
_REAL = "tests/engines/test_inside.py"

METHOD = Method(
    id="citer",
    title="CITER: a router says, token by token, when a large model must write",
    year=2025,
    paper="arXiv:2502.01976",
    taxonomy="b1",
    contract="fusion",
    implementation="CITER",
    needs=frozenset({"full-logits", "hidden-states", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "with the shipped router, texts and q equal an independent loop on two real models, both writing; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_of_methods_that_look_inside_equal_a_plain_loop",
        ),
        Evidence(
            "exact equivalence",
            "on the real pair τ = 0 gives the small model's greedy text and τ = 1 the large one's, byte for byte",
            f"{_REAL}::test_citer_between_its_members",
        ),
        Evidence(
            "invariant",
            "the share of calls grows with τ",
            f"{_SMALL}::test_the_share_of_calls_grows_with_tau",
        ),
        Evidence("exact equivalence", "labels of hand-made cases", f"{_SMALL}::test_labels_by_hand"),
        Evidence(
            "exact equivalence",
            "the served router is the trained torch network in eval mode",
            f"{_SMALL}::test_the_router_is_the_trained_network_at_rest",
        ),
        Evidence(
            "invariant",
            "training finds what can be told from the state (AUC)",
            f"{_SMALL}::test_training_finds_what_the_state_tells",
        ),
    ),
    unverified="The network and the labels were read in the authors' code; their savings were not reproduced. What "
    "the shipped router is worth on the two small models is in benchmarks/results/citer.json.",
)


@dataclass(frozen=True, slots=True, eq=False)
class TokenRouter:
    """The MLP's tensors, by name as `fit` keeps them; d is the small model's width."""

    tensors: Mapping[str, Tensor]

    def logit(self, states: Tensor) -> Tensor:
        """Log s/(1 − s) of states, shape (…, d) → (…); float32. The batch norm uses what training gathered."""
        from torch.nn.functional import linear

        t = self.tensors
        x = linear(states.float(), t["first.weight"], t["first.bias"])
        x = (x - t["norm.mean"]) * (t["norm.var"] + EPSILON).rsqrt() * t["norm.weight"] + t["norm.bias"]
        x = linear(x.relu(), t["second.weight"], t["second.bias"])
        return linear(x, t["last.weight"], t["last.bias"])[..., 0]


EPSILON = 1e-5
"""Of the batch norm."""


@dataclass(frozen=True, slots=True)
class CITER:
    """`load` takes the `router` from what `chorus teach` wrote. `tau` τ in [0, 1]: 0 never
    calls the large model, 1 always. `small` is the member that proposes."""

    tau: float = 0.9
    small: int = 0
    router: TokenRouter | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        whole(METHOD.id, 0, small=self.small)
        if not isinstance(self.tau, int | float) or not 0 <= self.tau <= 1:
            raise SettingsError(f"citer: tau must be between 0 and 1, got {self.tau!r}.")

    def load(self, members: Sequence[str], artefacts: Mapping[str, Path]) -> Self:
        """With its router. Raises `MethodError`; `ArtefactMismatch` for a router of another small model."""
        import torch

        if (folder := the_part(METHOD.id, "router", artefacts)) is None:
            return self
        manifest, found = load_artefact(folder, method=METHOD.id)
        if manifest.models[0] != members[self.small]:
            raise ArtefactMismatch(
                f"The citer artefact {manifest.version} reads states of {manifest.models[0]}, not of "
                f"{members[self.small]}. Train anew with `chorus teach`."
            )
        d = tensor(found, "second.bias", (None,)).shape[0]
        tensors = {
            name: torch.from_numpy(tensor(found, name, shape).astype(np.float32))
            for name, shape in _shapes(d).items()
        }
        return replace(self, router=TokenRouter(tensors))

    def save(self, folder: Path, models: Sequence[str], **about: Any) -> Manifest:
        """Write the artefact: matrices in half precision. `about`: further fields of its manifest."""
        assert self.router is not None
        tensors = {
            name: value.numpy().astype(np.float16 if value.dim() > 1 else np.float32)
            for name, value in self.router.tensors.items()
        }
        return save_artefact(folder, Manifest(method=METHOD.id, models=tuple(models), **about), tensors)

    @property
    def layers(self) -> Mapping[int, Sequence[int]]:
        """The final norm of the small model."""
        return {self.small: (-1,)}

    def decide(self, step: Step) -> Decision:
        """The distribution of the member that writes; the small model is heard first."""
        large = frozenset(m for m, w in enumerate(step.weights) if w > 0 and m != self.small)
        if self.small not in step.logits:
            return Ask(frozenset({self.small}))
        if not large or self._suffices(step.states[self.small][0]):
            return alone(step, self.small)
        if missing := large - step.logits.keys():
            return Ask(missing)
        return alone(step, *large) if len(large) == 1 else Mixture(_average(step, sorted(large)))

    def _suffices(self, state: Tensor) -> bool:
        """Whether s ≥ τ, compared as logits: s is rounded to 1 long before they end."""
        if self.tau in (0, 1):
            return self.tau == 0
        if self.router is None:
            raise SettingsError("citer: has no router; name an artefact that `chorus teach` wrote.")
        return float(self.router.logit(state)) >= math.log(self.tau / (1 - self.tau))


def _average(step: Step, members: Sequence[int]) -> Tensor:
    """The members' distributions, averaged by their weights; shape (|U|,)."""
    import torch

    total = sum(step.weights[m] for m in members)
    shares = [step.alphabet.project(m, step.logits[m]) * (step.weights[m] / total) for m in members]
    return torch.stack(shares).sum(0)


# ── learning ────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a text known to be right: the next token there in the small and in the large model's own
    segmentation, and the one that each would write greedily, as bytes; an end of the answer is no bytes."""

    target: tuple[bytes, bytes]
    small: bytes
    large: bytes


def label(point: Point, comes_out_right: Callable[[], bool]) -> bool:
    """Whether the small model suffices here. `comes_out_right` is asked where both are wrong: goes the answer on from
    the small model's token to a right end?"""
    wanted_small, wanted_large = point.target
    if point.small == wanted_small:
        return True
    if point.large == wanted_large:
        return False
    return comes_out_right()


def fit(
    states: Tensor,
    labels: Tensor,
    *,
    rate: float = 1e-4,
    batch: int = 64,
    epochs: int = 1000,
    patience: int = 5,
    held_out: float = 0.2,
    seed: int = 0,
) -> tuple[TokenRouter, list[float]]:
    """Train the MLP on states, shape (n, d), and labels, bool, (n,): cross-entropy, Adam, until the loss on the part
    held out has not fallen for `patience` epochs. Returns the best router and that loss, in nats, by epoch."""
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        states, wanted = states.float(), labels.float()
        order = torch.randperm(len(states), generator=generator)
        count = int(len(order) * held_out)
        kept, learnt = order[:count], order[count:]
        d = states.shape[1]
        network = nn.Sequential(
            nn.Linear(d, 2 * d),
            nn.BatchNorm1d(2 * d, eps=EPSILON),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(2 * d, d),
            nn.Dropout(0.1),
            nn.Linear(d, 1),
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=rate)
        loss_of = nn.BCEWithLogitsLoss()
        losses: list[float] = []
        best = _kept(network)
        for _ in range(epochs):
            network.train()
            shuffled = learnt[torch.randperm(len(learnt), generator=generator)]
            for begin in range(0, len(shuffled), batch):
                rows = shuffled[begin : begin + batch]
                if len(rows) > 1:  # a batch of one has no variance to norm by
                    loss = loss_of(network(states[rows])[:, 0], wanted[rows])
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
            network.eval()
            with torch.no_grad():
                losses.append(float(loss_of(network(states[kept])[:, 0], wanted[kept])))
            if losses[-1] == min(losses):
                best = _kept(network)
            elif len(losses) - losses.index(min(losses)) > patience:
                break
    return TokenRouter(best), losses


def _kept(network: Any) -> dict[str, Tensor]:
    """The network's tensors, by the names of `_shapes`; copies."""
    first, norm, _, _, second, _, last = network
    found = {
        "first.weight": first.weight, "first.bias": first.bias, "norm.weight": norm.weight, "norm.bias": norm.bias,
        "norm.mean": norm.running_mean, "norm.var": norm.running_var, "second.weight": second.weight,
        "second.bias": second.bias, "last.weight": last.weight, "last.bias": last.bias,
    }  # fmt: skip
    return {name: value.detach().clone() for name, value in found.items()}


def _shapes(d: int) -> dict[str, tuple[int, ...]]:
    wide = (2 * d,)
    return {
        "first.weight": (2 * d, d), "first.bias": wide, "norm.weight": wide, "norm.bias": wide, "norm.mean": wide,
        "norm.var": wide, "second.weight": (d, 2 * d), "second.bias": (d,), "last.weight": (1, d), "last.bias": (1,),
    }  # fmt: skip
