"""SweetSpan: spans of a few words, long enough to judge and short enough to correct.

"Hit the Sweet Spot! Span-Level Ensemble for Large Language Models", Xu et al., 2024, arXiv 2409.18583.

Each round every member writes a span of n words; every member i gives every span j its perplexity P_ij; of each
round's evaluators those that stand out are left out; the span with the lowest average of the rest is kept.

*Needs* members that write and score text. *Returns* spans, each by one member.

*Differs from the paper.* Words are what white space divides. The statistic of the paper's filter is not known to us:
here an evaluator is left out of a round when the standard deviation of its log-perplexities over the spans is more
than one standard deviation above the evaluators' mean of that number (one whose opinions swing wildly). Of two
evaluators neither can stand out. Averages are weighted by the members' weights. n = 4 is from a survey.

*Laws.* One member, and copies of one, give its greedy text; with n = 1 and no filter it is cool-fusion's "shortest"
mode; with n beyond the answer it reranks whole answers by average perplexity."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from operator import attrgetter

from ensembles.options import whole
from ensembles.spans.base import (
    ON_ENGINES,
    Draft,
    Table,
    Task,
    Writing,
    agree,
    commit,
    judge,
    lowest,
    propose,
    words,
)
from protocol.methods import Evidence, Method

__all__ = ["METHOD", "SweetSpan"]

_SMALL = "tests/ensembles/spans/test_sweetspan.py"
_HOST = "tests/engines/test_span_decode.py"

METHOD = Method(
    id="sweetspan",
    title="SweetSpan: span-level ensemble for large language models",
    year=2024,
    paper="arXiv:2409.18583",
    taxonomy="b2",
    contract="span",
    implementation="SweetSpan",
    needs=frozenset({"scoring"}),
    evidence=(
        *ON_ENGINES,
        Evidence(
            "exact equivalence",
            "with spans of one word and no filter it is cool-fusion's shortest mode",
            f"{_SMALL}::test_one_word_without_a_filter_is_cool_fusion",
        ),
        Evidence(
            "exact equivalence",
            "with spans as long as the answer it reranks whole answers",
            f"{_HOST}::test_long_spans_rerank_whole_answers",
        ),
    ),
    unverified="Only abstract and digests were read: the length of spans is from a survey and the filter is ours. The "
    "paper's scores were not reproduced.",
)


@dataclass(frozen=True, slots=True)
class SweetSpan:
    """`words` in a span; `filter` leaves evaluators out; `tokens` bounds a span, by default 16 a word;
    `temperature` of the drafts, 0 for greedy, None for the request's."""

    words: int = 4
    filter: bool = True
    tokens: int | None = None
    temperature: float | None = 0.0

    def __post_init__(self) -> None:
        whole(METHOD.id, 1, 100_000, words=self.words, tokens=self.tokens or 1)

    def write(self, task: Task) -> Writing:
        """Round by round."""
        members = range(len(task.weights))
        stop, tokens = words(self.words), self.tokens or 16 * self.words
        while True:
            spans = yield from propose(*(Draft(m, stop, tokens, self.temperature) for m in members))
            best = spans[0]
            if not agree(spans):
                table = yield from judge(spans, members)
                kept = steady(table) if self.filter else members
                weights = [w if i in kept else 0.0 for i, w in enumerate(task.weights)]
                best = lowest(spans, table, attrgetter("perplexity"), weights)
            yield from commit(best)


def steady(table: Table) -> frozenset[int]:
    """The evaluators that do not stand out: at least two, and all of fewer than three."""
    swings = [statistics.pstdev(score.nll for score in row) for row in table]
    limit = statistics.fmean(swings) + statistics.pstdev(swings)
    kept = frozenset(i for i, swing in enumerate(swings) if swing <= limit + 1e-12)
    return kept if len(table) > 2 else frozenset(range(len(table)))
