"""UniTE: average over the union of each model's few most likely tokens.

"Determine-Then-Ensemble: Necessity of Top-k Union for Large Language Model Ensembling", Yao et al., 2024, ICLR
2025, arXiv 2410.03777.

    U_t = ∪_m top-k(z_m)      p_m(u) = softmax over u ∈ U_t of ẑ_m(u)      q(u) = Σ_m w_m p_m(u)

z_m are member m's logits at the sync point, k `top_k`, w_m the members' weights. ẑ_m(u) is z_m(u) where u is
among m's own top-k, or elsewhere in its vocabulary; a u that is not in it takes the logit of the first token
with which m would write its bytes. Next is argmax q, the first in order of entry among equals.

*Needs* the k largest logits of every member and single others. *Returns* q over U_t, k ≤ |U_t| ≤ Mk.

*Differs from the paper.* Symbols are byte strings, where the authors compare token strings after replacing
`▁`, `Ċ` and `<0x0A>`; the ends of all models are one symbol, where the authors have no end. A first token
that stands in U_t already, for itself or another symbol, counts once (`repeats="drop"`), so that no
probability is counted twice; the authors set it to logit 0 for byte-level vocabularies (`"zero"`, the same as
long as real logits are far above 0) and count it again for SentencePiece ones (`"keep"`). Bytes are appended
to every model's tokens, where the authors have all models but the first read the whole text anew. Choosing
compatible models beforehand is the operator's: it is the list of members.

*Laws.* Σ p_m = 1 on U_t; k ≥ |V| is GaC on any vocabularies; one model, copies of one, and one-hot weights
give its greedy text; members heard in any order give the same q."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ensembles.options import one_of, whole
from ensembles.tokens.base import Ask, Decision, Mixture, Step
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHOD", "UniTE"]

Repeats = Literal["drop", "zero", "keep"]

_SMALL = "tests/ensembles/tokens/test_unite.py"
_REAL = "tests/engines/test_fused_decode.py"

METHOD = Method(
    id="unite",
    title="UniTE: determine, then ensemble on the union of top-k tokens",
    year=2024,
    paper="arXiv:2410.03777",
    taxonomy="b1",
    contract="fusion",
    optional_members=True,
    implementation="UniTE",
    needs=frozenset({"full-logits"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "k of at least a vocabulary's size gives GaC's q, on shared and on different vocabularies",
            f"{_SMALL}::test_all_tokens_are_gac",
        ),
        Evidence(
            "exact equivalence",
            "the three value rules on hand-made byte vocabularies, worked by hand",
            f"{_SMALL}::test_the_three_value_rules",
        ),
        Evidence(
            "exact equivalence",
            "copies of one model, and one-hot weights, give its greedy text, byte for byte",
            f"{_REAL}::test_members_that_are_one_model_write_its_text",
        ),
        Evidence(
            "exact equivalence",
            "texts and q equal an independent computation with transformers on two real models; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_equal_a_plain_loop",
        ),
    ),
    unverified="How the authors choose compatible models is recalled in part; no score was reproduced.",
)


@dataclass(frozen=True, slots=True)
class UniTE:
    """`top_k`: logits taken from each member; `repeats`: what a first token counts that is in U_t already."""

    top_k: int = 10
    repeats: Repeats = "drop"

    def __post_init__(self) -> None:
        whole(METHOD.id, 1, top_k=self.top_k)
        one_of(METHOD.id, Repeats, repeats=self.repeats)

    def decide(self, step: Step) -> Decision:
        """The q of the step over U_t, or the members still wanted: all of them."""
        heard = [m for m, w in enumerate(step.weights) if w > 0]
        if missing := frozenset(heard) - step.logits.keys():
            return Ask(missing)
        union = self._union(step, heard)
        q = sum(step.weights[m] * self._values(step, m, union).softmax(-1) for m in heard)
        return Mixture(q, union)  # type: ignore[arg-type]  # the sum is over tensors, not 0

    def _union(self, step: Step, heard: Sequence[int]) -> Tensor:
        """U_t in order of entry."""
        tops = [step.alphabet.top(m, step.logits[m], self.top_k)[0] for m in heard]
        order = dict.fromkeys(u for top in tops for u in top.tolist())
        return tops[0].new_tensor(list(order))

    def _values(self, step: Step, member: int, union: Tensor) -> Tensor:
        """ẑ_m on U_t."""
        begins = step.alphabet.begin(member, union)
        z = step.alphabet.read(member, step.logits[member], begins)
        if self.repeats != "keep":
            again = _repeated(union, begins)
            z = z.masked_fill(again, float("-inf") if self.repeats == "drop" else 0.0)
        return z


def _repeated(union: Tensor, begins: Tensor) -> Tensor:
    """Which entries borrow a token that stands for another entry: its own, or one that borrowed it before."""
    owned = {u for u, b in zip(union.tolist(), begins.tolist(), strict=True) if u == b}
    taken: set[int] = set()
    again = []
    for u, b in zip(union.tolist(), begins.tolist(), strict=True):
        again.append(u != b and (b in owned or b in taken))
        if u != b:
            taken.add(b)
    return union.new_tensor(again).bool()
