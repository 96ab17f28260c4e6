"""Speculative Ensemble: any fusion, faster, by members that write ahead in turn.

"Fast Large Language Model Collaborative Decoding via Speculation" (first "Speculative Ensemble"), Fu et al.,
2025, arXiv 2502.01662.

    x_i ~ q_i of the member that drafts        r_i = E(p¹_i, …, pⁿ_i)        (E: the fusion `rule`)
    keep x_i with probability min(1, r_i(x_i) / q_i(x_i)), else draw from norm(max(0, r_i − q_i))

Members alternate ("alternate proposal"): the forward with which a member scores the draft ends on its own
next-token distribution, from which it drafts the next γ_m symbols. They are verified when all members have
scored them. A symbol is never taken from the last scorer alone: that is its draft and no bonus, for the text
must have the distribution r. Members take turns by γ, the largest first (the smallest model, usually), and
after a rejection the first begins anew.

*Needs* what its rule needs, of every member, also of those with weight 0. *Returns* the rule's q: the host
(`engines/spec_decode.py`) drafts and verifies, and the text is that of the rule alone.

*Differs from the paper.* Members may have different vocabularies: symbols are drafted, and since appended
text never changes earlier tokens, each member has one path of ids through a draft. Temperature and top-p act on
the fused distribution, as everywhere here, and on a drafter's own; the authors apply them to each model before
mixing. Batches need no common acceptance length. The rule may be any fusion that looks neither at
prompts nor into models.

*Laws.* Greedy, the text is the rule's, token for token; sampled, each symbol has distribution r; the expected
acceptance is 1 − TV(q, r), for averages at least the drafter's weight; copies of one model accept all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ensembles.tokens.base import Binds, Decision, Fusion, Looks, Opens, Prepares, Step, Tables, Weighs
from protocol.errors import SettingsError
from protocol.methods import Evidence, Method, find_method, load_method

__all__ = ["METHOD", "SpecEnsemble"]

_SMALL = "tests/engines/test_spec_decode.py"
_REAL = "tests/engines/test_fused_decode.py"

METHOD = Method(
    id="spec-ensemble",
    title="Speculative Ensemble: lossless drafting by the members in turn",
    year=2025,
    paper="arXiv:2502.01662",
    taxonomy="b1",
    contract="fusion",
    implementation="SpecEnsemble",
    needs=frozenset({"full-logits"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "greedy texts equal the plain loop's, token for token, on small random models",
            f"{_SMALL}::test_greedy_texts_are_those_of_the_plain_loop",
        ),
        Evidence(
            "exact equivalence",
            "sampled texts have the plain loop's distribution (χ² over whole texts)",
            f"{_SMALL}::test_sampled_texts_have_the_fused_distribution",
        ),
        Evidence(
            "invariant",
            "drafts of copies of one model are all accepted",
            f"{_SMALL}::test_copies_accept_every_draft",
        ),
        Evidence(
            "invariant",
            "the share of accepted drafts is at least the drafter's weight",
            f"{_SMALL}::test_acceptance_is_at_least_the_weight",
        ),
        Evidence(
            "exact equivalence",
            "on the real pair, whose vocabularies differ, greedy texts equal the plain fusion's",
            f"{_REAL}::test_a_drafted_text_is_the_plain_one",
        ),
    ),
    unverified="Texts are compared with an independent loop on two real models in "
    "benchmarks/results/exactness.md. The paper's speed-ups per pair are recalled; ours are in "
    "benchmarks/results/spec_ensemble.md.",
)


@dataclass(frozen=True, slots=True)
class SpecEnsemble:
    """`rule` is the id of the fusion to be accelerated, `rule_options` its options; `drafts` γ, of all members
    or of each."""

    rule: str = "gac"
    drafts: int | Sequence[int] = 1
    rule_options: Mapping[str, Any] = field(default_factory=dict)
    bound: Fusion | None = None

    def __post_init__(self) -> None:
        lengths = (self.drafts,) if isinstance(self.drafts, int) else tuple(self.drafts)
        if not lengths or not all(n in range(1, 17) for n in lengths):
            raise SettingsError(f"spec-ensemble: drafts must be between 1 and 16, got {self.drafts!r}.")
        if self.bound is None:
            object.__setattr__(self, "bound", self._load())

    def _load(self) -> Fusion:
        if self.rule == METHOD.id:
            raise SettingsError("spec-ensemble: rule must be another method.")
        try:
            rule: Fusion = load_method(find_method(self.rule, "fusion"))(**self.rule_options)
        except TypeError as error:
            raise SettingsError(f"spec-ensemble: rule_options: {error}") from None
        if isinstance(rule, Prepares | Opens):
            raise SettingsError(f"spec-ensemble: rule {self.rule!r} looks at prompts and cannot be drafted.")
        if isinstance(rule, Looks):
            raise SettingsError(f"spec-ensemble: rule {self.rule!r} looks into models and cannot be drafted.")
        if isinstance(rule, Weighs):
            raise SettingsError(
                f"spec-ensemble: rule {self.rule!r} changes its weights and cannot be drafted."
            )
        return rule

    def bind(self, tables: Tables) -> SpecEnsemble:
        """With the rule bound to its models."""
        if not isinstance(self.drafts, int) and len(self.drafts) != tables.members:
            raise SettingsError(
                f"spec-ensemble: drafts names {len(self.drafts)} members of {tables.members}."
            )
        rule = self.bound
        return replace(self, bound=rule.bind(tables)) if isinstance(rule, Binds) else self

    def turns(self, members: int) -> tuple[tuple[int, int], ...]:
        """The members by γ, the largest first."""
        lengths = [self.drafts] * members if isinstance(self.drafts, int) else list(self.drafts)
        return tuple(sorted(enumerate(lengths), key=lambda turn: -turn[1]))

    def decide(self, step: Step) -> Decision:
        """The rule's decision."""
        assert self.bound is not None
        return self.bound.decide(step)
