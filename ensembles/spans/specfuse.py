"""SpecFuse and SpecEM: members draft a short segment in parallel, verify all drafts, and those that win count more.

"SpecFuse: Ensembling Large Language Models via Next-Segment Prediction", Lv et al., 2024, arXiv 2412.07380, in its
later form, SpecEM, with weights that learn online.

    s_ji = score of segment i by member j, divided by its sum over i      next = argmax_i Σ_j w_j s_ji
    wins_i = #{(j, k): j ≠ i, k ≠ i, s_ji ≥ s_jk}, at least 1             reward_i = wins_i / (K − 1)²
    w_i ← w_i exp(η_t reward_i), normalised                              η_t = rate/10 · √(1/K) / t

*Needs* members that write and score text. *Returns* spans, each by one member.

*Differs from the paper.* A score is the geometric mean of the token probabilities, exp(mean log p); the authors take
the mean of raw logits (`faithful: true`), which may be negative, and then dividing by the sum turns the order round.
Segments are cut behind the last whole word, as theirs, but one that is a single word stays as it is where they
would write " .". Each verifier's candidates are rows that share its prefix, not one masked sequence. w starts at the
members' weights. `rate` is 1 here; theirs is not known to us. SpecFuse's first version, in which weak members
leave for good, is not offered: its rule is recalled only.

*Laws.* One member, and copies of one at temperature 0, give its greedy text; w stays on the simplex; the weight of
a member that always wins never falls; `rate: 0` keeps the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ensembles.options import whole
from ensembles.spans.base import (
    ON_ENGINES,
    Draft,
    Score,
    Span,
    Table,
    Task,
    Writing,
    agree,
    commit,
    judge,
    last_word,
    propose,
)
from protocol.errors import SettingsError
from protocol.methods import Evidence, Method

__all__ = ["METHOD", "SpecFuse", "learned", "shares", "wins"]

_SMALL = "tests/ensembles/spans/test_specfuse.py"
_HOST = "tests/engines/test_span_decode.py"

METHOD = Method(
    id="specfuse",
    title="SpecFuse and SpecEM: ensembling via next-segment prediction",
    year=2024,
    paper="arXiv:2412.07380",
    taxonomy="b2",
    contract="span",
    implementation="SpecFuse",
    needs=frozenset({"scoring"}),
    aliases=("specem",),
    evidence=(
        *ON_ENGINES,
        Evidence(
            "exact equivalence",
            "wins of a 3 × 3 table counted by hand",
            f"{_SMALL}::test_wins_counted_by_hand",
        ),
        Evidence(
            "invariant",
            "weights stay on the simplex, and who always wins never loses weight",
            f"{_SMALL}::test_weights_stay_on_the_simplex",
        ),
        Evidence(
            "exact equivalence",
            "scores read beside other candidates equal scores read alone",
            f"{_HOST}::test_scores_do_not_depend_on_what_is_scored_beside",
        ),
    ),
    unverified="The first version's rule for members that leave is recalled and not built; the learning rate's "
    "default is not known. The papers' scores were not reproduced.",
)


@dataclass(frozen=True, slots=True)
class SpecFuse:
    """`window` is a segment's tokens; `rate` that of the weights, 0 keeps them; `fast` lets the first member that ends
    its answer win at once; `temperature` and `top_p` of the drafts, None for the request's."""

    window: int = 10
    rate: float = 1.0
    fast: bool = False
    temperature: float | None = 0.6
    top_p: float | None = 0.9
    faithful: bool = False

    def __post_init__(self) -> None:
        whole(METHOD.id, 1, 512, window=self.window)
        if not isinstance(self.rate, int | float) or not 0 <= self.rate < math.inf:
            raise SettingsError(f"specfuse: rate must be at least 0, got {self.rate!r}.")

    def write(self, task: Task) -> Writing:
        """Segment by segment."""
        members, weights = range(len(task.weights)), task.weights
        drafts = [Draft(m, _window, self.window, self.temperature, self.top_p) for m in members]
        t = 0
        while True:
            t += 1
            spans = yield from propose(*drafts)
            best = spans[0]
            if self.fast and any(span.ended for span in spans):
                best = next(span for span in spans if span.ended)
            elif not agree(spans):
                table = shares((yield from judge(spans, members)), faithful=self.faithful)
                votes = [
                    sum(w * row[k] for w, row in zip(weights, table, strict=True)) for k in range(len(spans))
                ]
                best = spans[votes.index(max(votes))]
                weights = learned(weights, spans, table, self.rate / 10 * math.sqrt(1 / len(spans)) / t)
            yield from commit(best)


def _window(text: bytes, *, final: bool) -> int | None:
    """All of the draft, less a last word that may go on."""
    if not final:
        return None
    return len(text) if not text[-1:].isalnum() and text[-1:] < b"\x80" else last_word(text) or len(text)


def shares(table: Table, *, faithful: bool = False) -> tuple[tuple[float, ...], ...]:
    """s_ji: each judge's scores, their sum 1."""

    def value(score: Score) -> float:
        return sum(score.logits) / len(score.logits) if faithful else math.exp(-score.nll)

    rows = [[value(score) for score in row] for row in table]
    return tuple(tuple(v / (sum(row) or 1.0) for v in row) for row in rows)


def wins(table: Sequence[Sequence[float]], authors: Sequence[int]) -> tuple[int, ...]:
    """By span: how often a member that did not write it puts it at least level with another span."""
    spans = range(len(authors))
    return tuple(
        max(
            1,
            sum(row[i] >= row[k] for j, row in enumerate(table) if j != authors[i] for k in spans if k != i),
        )
        for i in spans
    )


def learned(
    weights: Sequence[float], spans: Sequence[Span], table: Sequence[Sequence[float]], rate: float
) -> tuple[float, ...]:
    """The weights after a round (Hedge); a member without a span keeps its share of trust."""
    authors = [span.author for span in spans]
    if len(spans) < 2:
        return tuple(weights)
    rewards = dict(zip(authors, wins(table, authors), strict=True))
    raw = [w * math.exp(rate * rewards.get(m, 0) / (len(spans) - 1) ** 2) for m, w in enumerate(weights)]
    return tuple(w / sum(raw) for w in raw)
