"""GaC: token generation as classification, ensembled over the union of the vocabularies.

"Breaking the Ceiling of the LLM Community by Treating Token Generation as a Classification for Ensembling",
Yu et al., 2024, arXiv 2406.12585.

    q = Σ_m w_m p_m A_m

p_m is the softmax of member m's logits over its own vocabulary V_m, A_m the 0/1 map from V_m to the union U
of all vocabularies (`Alphabet.project`), w_m the members' weights. The next token is argmax q. In threshold
mode a primary member speaks alone while it is sure, max p_primary > τ, and the others run only where it is
not.

Of a greedy step only argmax q is wanted, and it needs few entries of q: with C = ∪_m top-k(p_m), no symbol
outside C has more than Σ_m w_m p_m^(k) (p^(k): the k-th largest), so if some q(u), u ∈ C, is above that, the
largest one in C is the argmax. Where the bound does not hold, all of q is computed. Where all members like one symbol
best, not even their softmax is.

*Needs* full logits of every member at the sync point. *Returns* q, shape (|U|,).

*Differs from the paper.* Tokens are the same symbol when their *bytes* are equal; the authors compare token
strings after replacing `Ġ` and `▁`, which mangles non-ASCII byte-level tokens (their README warns of it). The
ends of all models are one symbol, where the authors let each model's end compete as an ordinary string. q may
also be sampled, not only maximised. In threshold mode members left out catch up on their KV cache, where the
authors recompute it. τ = 0.5 is from memory.

*Laws.* Σq = 1; the short cut changes no argmax; one-hot weights, and copies of one model, give that model;
on a shared vocabulary q is the plain average; τ = 0 gives the primary alone, τ = 1 every step of all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensembles.options import whole
from ensembles.tokens.base import CANDIDATES, Ask, Decision, Mixture, Step, surely_best
from protocol.errors import SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["METHOD", "GaC"]

_SMALL = "tests/ensembles/tokens/test_gac.py"
_REAL = "tests/engines/test_fused_decode.py"

METHOD = Method(
    id="gac",
    title="GaC: token generation as classification",
    year=2024,
    paper="arXiv:2406.12585",
    taxonomy="b1",
    contract="fusion",
    implementation="GaC",
    needs=frozenset({"full-logits"}),
    optional_members=True,
    evidence=(
        Evidence(
            "exact equivalence",
            "texts and q equal an independent computation with transformers on two real models; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_equal_a_plain_loop",
        ),
        Evidence(
            "exact equivalence",
            "members that are one model give its greedy text, byte for byte",
            f"{_REAL}::test_members_that_are_one_model_write_its_text",
        ),
        Evidence(
            "exact equivalence",
            "one-hot weights give that model's greedy text, byte for byte",
            f"{_REAL}::test_degenerate_weights_give_one_member",
        ),
        Evidence(
            "exact equivalence",
            "on a shared vocabulary q is the plain average of the probabilities",
            f"{_SMALL}::test_shared_vocabulary_is_plain_averaging",
        ),
        Evidence(
            "exact equivalence",
            "q equals an independent computation with transformers on two real models",
            f"{_REAL}::test_fused_distribution_equals_an_independent_computation",
        ),
        Evidence(
            "exact equivalence",
            "τ = 0 gives the primary alone, τ = 1 the ensemble of every step",
            f"{_REAL}::test_a_shut_gate_is_the_whole_ensemble",
        ),
        Evidence(
            "exact equivalence",
            "the short cut of greedy steps has the argmax of the whole q",
            f"{_SMALL}::test_the_short_cut_has_the_argmax",
        ),
        Evidence(
            "invariant",
            "the projection keeps all probability mass",
            "tests/engines/test_union.py::test_projection_keeps_all_mass_and_masks_controls",
        ),
    ),
    unverified="τ = 0.5 of the threshold mode is recalled, not read; the paper's scores were not reproduced.",
)


@dataclass(frozen=True, slots=True)
class GaC:
    """`threshold` τ in [0, 1] switches threshold mode on; `primary` is the member that may then speak
    alone."""

    threshold: float | None = None
    primary: int = 0

    def __post_init__(self) -> None:
        if self.threshold is not None and not (
            isinstance(self.threshold, int | float) and 0 <= self.threshold <= 1
        ):
            raise SettingsError(f"gac: threshold must be between 0 and 1, got {self.threshold!r}.")
        whole(METHOD.id, 0, primary=self.primary)

    def decide(self, step: Step) -> Decision:
        """The q of the step, or the members still wanted: all of them, or first the primary."""
        if self.threshold is not None and step.weights[self.primary] > 0:
            if self.primary not in step.logits:
                return Ask(frozenset({self.primary}))
            own = _own(step, self.primary)
            if float(own.q.max()) > self.threshold:
                return own
        if missing := frozenset(m for m, w in enumerate(step.weights) if w > 0) - step.logits.keys():
            return Ask(missing)
        return (_likeliest(step) if step.greedy else None) or Mixture(_mix(step))


def _own(step: Step, member: int) -> Mixture:
    """The member's p; of a greedy step for its likeliest symbols, where these are sure to have the largest."""
    alphabet, row = step.alphabet, step.logits[member]
    if (few := surely_best(step, member)) is not None:
        symbols, z = few
        return Mixture((z - alphabet.log_mass(member, row)).exp(), symbols)
    return Mixture(alphabet.project(member, row))


def _likeliest(step: Step) -> Mixture | None:
    """The entries of q on C, ascending, or its argmax alone; None where the bound leaves open whether the argmax is
    among them."""
    import torch

    alphabet = step.alphabet
    heard = [(m, w, step.logits[m]) for m, w in enumerate(step.weights) if w > 0]
    tops = [alphabet.top(m, row, CANDIDATES) for m, _, row in heard]
    found = sorted({u for symbols, _ in tops for u in symbols.tolist()})
    candidates = tops[0][0].new_tensor(found)
    z = [alphabet.read(m, row, candidates).tolist() for m, _, row in heard]
    bounds = [bound for _, bound in tops]
    if (best := _unanimous(z, bounds)) is not None:
        return Mixture(candidates.new_ones(1).float(), candidates[best : best + 1])
    mass = [alphabet.log_mass(m, row) for m, _, row in heard]
    q = [0.0] * len(found)
    rest = 0.0
    for (_, w, _), values, bound, total in zip(heard, z, bounds, mass, strict=True):
        q = [part + w * math.exp(value - total) for part, value in zip(q, values, strict=True)]
        rest += w * math.exp(bound - total)
    if max(q) <= rest * (1 + ROUNDING):
        return None
    return Mixture(candidates.new_tensor(q, dtype=torch.float32), candidates)


def _unanimous(z: Sequence[list[float]], bounds: Sequence[float]) -> int | None:
    """Which candidate every member likes better than all other symbols, whose logits are at most `bounds`, if there is
    one. It is the argmax of any mixture, so that nobody's mass has to be known."""
    best = max(range(len(z[0])), key=z[0].__getitem__)
    for values, bound in zip(z, bounds, strict=True):
        largest = values[best]
        others = max(values[:best] + values[best + 1 :], default=-math.inf)
        if not largest > max(bound, others):
            return None
    return best


ROUNDING = 1e-4
"""By how much, relatively, sums in another order may differ."""


def _mix(step: Step) -> Tensor:
    """The mixture q = Σ_m w_m p_m A_m."""
    first, *others = (m for m, w in enumerate(step.weights) if w > 0)
    q = step.alphabet.project(first, step.logits[first]) * step.weights[first]
    for m in others:
        q += step.alphabet.project(m, step.logits[m]) * step.weights[m]
    return q
