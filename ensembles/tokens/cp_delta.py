"""CP-Δ: purify a large model by a small one that was trained on clean data.

"Purifying Large Language Models by Ensembling a Small Language Model", Li et al., 2024, arXiv 2402.14845, on
the CP-Δ of Vyas et al., "On Provable Copyright Protection for Generative Models", 2023, arXiv 2302.10870.

    q ∝ exp( (α log p_l + β log p_s) / T )

p_l, p_s are the large and the small model's next-token distributions, α and β their weights
(`Step.weights`, α + β = 1; any number of members), T `temperature`. With α = β = ½ this q minimises
KL(q‖p_l) + KL(q‖p_s), and the minimum is −2 log Σ √(p_l p_s): a token that the clean model finds impossible
becomes impossible.

*Needs* full logits of every member with a weight. *Returns* q over the symbols considered.

*Differs from the paper*, which needs one vocabulary, where nothing differs. For different vocabularies, ours:
`unmatched="drop"` considers the symbols that all members with a weight have; `"begin"` considers those of the
member `large`, and the others read a symbol they lack by the first token with which they would write its
bytes. Controls of the models are no symbols.

*Laws.* The closed form above; each KL ≤ −2 log Σ √(p_l p_s), which bounds how much more likely than in the
clean model anything can become; α = 1 is the large model; with one vocabulary adding a constant to a member's
logits changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ensembles.options import one_of, whole
from ensembles.tokens.base import Ask, Decision, Mixture, Step
from protocol.errors import SettingsError
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METHOD", "CPDelta"]

Unmatched = Literal["drop", "begin"]

_SMALL = "tests/ensembles/tokens/test_cp_delta.py"

METHOD = Method(
    id="cp-delta",
    title="CP-Δ: purify a large model by a small clean one",
    year=2024,
    paper="arXiv:2402.14845",
    taxonomy="b1",
    contract="fusion",
    optional_members=True,
    implementation="CPDelta",
    needs=frozenset({"full-logits"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "at α = β = ½ the sum of the divergences is its closed-form minimum",
            f"{_SMALL}::test_it_is_the_nearest_distribution_to_both",
        ),
        Evidence(
            "invariant",
            "each divergence stays below the bound that CP-Δ promises",
            f"{_SMALL}::test_the_bound_of_cp_delta",
        ),
        Evidence(
            "exact equivalence",
            "texts and q equal an independent computation with transformers on two real models; "
            "benchmarks/results/exactness.md says on how many prompts",
            "tests/engines/test_plain_loop.py::test_texts_equal_a_plain_loop",
        ),
    ),
    unverified="The formula and its scope are from summaries of the paper; its tables were not read. That the "
    "small model is benign is the operator's claim.",
)


@dataclass(frozen=True, slots=True)
class CPDelta:
    """`temperature` T flattens or sharpens the mixture before the request's own; `unmatched` and `large` say
    what happens to symbols that not every member has."""

    temperature: float = 1.0
    unmatched: Unmatched = "drop"
    large: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < float("inf"):
            raise SettingsError(f"cp-delta: temperature must be positive, got {self.temperature!r}.")
        one_of(METHOD.id, Unmatched, unmatched=self.unmatched)
        whole(METHOD.id, 0, large=self.large)

    def decide(self, step: Step) -> Decision:
        """The q of the step, or the members still wanted: all that have a weight."""
        heard = frozenset(m for m, w in enumerate(step.weights) if w > 0)
        if missing := heard - step.logits.keys():
            return Ask(missing)
        owners = heard if self.unmatched == "drop" else frozenset({self.large})
        symbols = step.alphabet.shared(owners)
        first, *others = (step.weights[m] * self._values(step, m, symbols) for m in sorted(heard))
        z = sum(others, first)
        return Mixture((z / self.temperature).softmax(-1), symbols)

    def _values(self, step: Step, member: int, symbols: Tensor) -> Tensor:
        """Log p of the member up to a constant, which the softmax takes away."""
        read_as = symbols if self.unmatched == "drop" else step.alphabet.begin(member, symbols)
        return step.alphabet.read(member, step.logits[member], read_as)
