"""RLAE: a policy, learnt by reinforcement, weighs the members of a token fusion anew every few tokens.

"RLAE: Reinforcement Learning-Assisted Ensemble for LLMs", Fu et al., 2025, arXiv 2506.00439.

    state: prompt and text so far    action: w = softmax(π(state)), held for the next L symbols    step: GaC with w
    reward: quality of the whole answer, 0 before

π is a head on a frozen text encoder (`outcomes.weight_policy`), trained by PPO as one agent with an output a member
("ppo") or as one agent a member with a common critic ("mappo"): `python -m engines.rlae`.

*Needs* full logits, and an artefact with the embedder it was trained with; without one the weights stay as configured,
which is GaC. *Returns* q as GaC's.

*Differs from the paper.* The encoder is all-MiniLM-L6-v2, frozen, which sees the main member's prompt and the end of
the text, each as one vector; the authors fine-tune a DeBERTa (recalled). "Tokens" of a span are symbols of the union.
At serving nothing is explored: w is the softmax of the mean. A member whose weight falls below 0.001 has none, and is
not run in that span. Rewards are normalised among the answers to one prompt.

*Laws.* A uniform policy gives GaC's text, byte for byte, a one-hot one that model's; weights change between spans only;
on a bandit with two topics the policy reaches more than 95 % of the oracle's reward."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ensembles.options import the_part, whole
from ensembles.tokens.base import Decision, Fusion, Step
from protocol.errors import ArtefactMismatch, SettingsError
from protocol.methods import Evidence, Method, find_method, load_method

if TYPE_CHECKING:
    from outcomes.weight_policy import Weigher

__all__ = ["METHOD", "RLAE"]

_SMALL = "tests/ensembles/tokens/test_rlae.py"
_LEARNING = "tests/outcomes/test_weight_policy.py"

METHOD = Method(
    id="rlae",
    title="RLAE: reinforcement learning-assisted ensemble",
    year=2025,
    paper="arXiv:2506.00439",
    taxonomy="b2",
    contract="fusion",
    implementation="RLAE",
    needs=frozenset({"full-logits", "embedding", "artefact"}),
    optional_members=True,
    evidence=(
        Evidence(
            "exact equivalence",
            "a policy that always gives the configured weights writes GaC's texts, byte for byte",
            f"{_SMALL}::test_a_constant_policy_is_gac",
        ),
        Evidence(
            "exact equivalence",
            "a one-hot policy writes the texts of that member",
            f"{_SMALL}::test_a_one_hot_policy_is_that_member",
        ),
        Evidence(
            "invariant",
            "weights change at the boundaries of spans only",
            f"{_SMALL}::test_weights_change_between_spans_only",
        ),
        Evidence(
            "invariant",
            "on a bandit with two topics both ways of training reach more than 95 % of the oracle's reward",
            f"{_LEARNING}::test_the_bandit_with_two_topics",
        ),
    ),
    unverified="Read were the abstract and a public decoder with its weights' queue; the agents, the span's length and "
    "the constants of PPO are recalled. The paper's scores were not reproduced; what training gives on two small "
    "models is in benchmarks/results/rlae.md.",
)

NOBODY = 1e-3
"""Below this weight a member has no part in the span."""


@dataclass(frozen=True, slots=True)
class RLAE:
    """`embedder`, the weights of the encoder the policy was trained with; `span` L in symbols, by default what it was
    trained with; `threshold` and `primary` are GaC's. `weigher` is set by `load`."""

    embedder: str | None = None
    span: int = 0
    threshold: float | None = None
    primary: int = 0
    weigher: Weigher | None = field(default=None, repr=False)
    fusion: Fusion | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        whole(METHOD.id, 0, 4096, span=self.span)
        if self.fusion is None:
            options: dict[str, Any] = {"threshold": self.threshold, "primary": self.primary}
            object.__setattr__(self, "fusion", load_method(find_method("gac", "fusion"))(**options))

    def load(self, members: Sequence[str], artefacts: Mapping[str, Path]) -> Self:
        """With the `policy` among the artefacts, where there is one. Raises `ArtefactMismatch` for one of other members
        or another embedder, `SettingsError` where the embedder is not named or an artefact is not known."""
        if (folder := the_part(METHOD.id, "policy", artefacts)) is None:
            return self
        if self.embedder is None:
            raise SettingsError("a policy needs options.embedder, the encoder it was trained with.")
        from outcomes.weight_policy import Weigher

        weigher = Weigher.load(folder, Path(self.embedder))
        if weigher.models != tuple(members):
            raise ArtefactMismatch(
                f"The rlae artefact weighs {', '.join(weigher.models)}, the fusion has {', '.join(members)}."
            )
        return replace(self, weigher=weigher, span=self.span or weigher.span)

    def weigh(self, prompt: str, text: str, weights: tuple[float, ...]) -> tuple[float, ...]:
        """W of the next span, sum 1; `weights`, the configured ones, where there is no policy."""
        if self.weigher is None:
            return weights
        z = self.weigher.logits(prompt, text)
        shares = [math.exp(x - max(z)) for x in z]
        kept = [share if share >= NOBODY * sum(shares) else 0.0 for share in shares]
        return tuple(share / sum(kept) for share in kept)

    def decide(self, step: Step) -> Decision:
        """GaC's decision under the weights of the span."""
        assert self.fusion is not None
        return self.fusion.decide(step)
