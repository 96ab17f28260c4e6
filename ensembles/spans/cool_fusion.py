"""Cool-Fusion: every member writes the next segment, all score all, the lowest average perplexity is kept.

"Cool-Fusion: Fuse Large Language Models without Training", Liu et al., 2024, arXiv 2407.19807.

    PPL_i(s) = exp(mean over i's tokens of s of −log p_i)      next = argmin_s 1/M Σ_i PPL_i(s)

A segment ends at a word's end: in "aligned" mode (the paper's default) at the first one that is a token boundary
for the tokenizers of all members, in "shortest" mode at the first one.

*Needs* members that write and score text. *Returns* spans, each by one member.

*Differs from the paper.* Averages are weighted by the members' weights, equal ones being the paper's. A boundary is
white space, where the authors use the tokenizer's word ids or decoding that is reversible. `measure: byte`
compares negative log-likelihoods a byte, which no member's tokenizer favours. An end of the answer counts as one
token. Where all members write the same, nothing is scored. Cool+R, reranking whole answers, is the `words` of
sweetspan with n beyond the answer; it is not offered here.

*Laws.* One member, and copies of one, give its greedy text; what is kept is the argmin of the table."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ensembles.options import one_of, whole
from ensembles.spans.base import (
    ON_ENGINES,
    Draft,
    Score,
    Stop,
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

__all__ = ["METHOD", "CoolFusion"]

Boundary = Literal["aligned", "shortest"]
Measure = Literal["token", "byte"]

_SMALL = "tests/ensembles/spans/test_cool_fusion.py"
_REAL = "tests/engines/test_plain_spans.py"

METHOD = Method(
    id="cool-fusion",
    title="Cool-Fusion: fuse large language models without training",
    year=2024,
    paper="arXiv:2407.19807",
    taxonomy="b2",
    contract="span",
    implementation="CoolFusion",
    needs=frozenset({"scoring"}),
    evidence=(
        *ON_ENGINES,
        Evidence(
            "exact equivalence",
            "scores equal transformers' on two real models: mean log-likelihoods differ by less than 2e-4 nats, 1.7e-5 "
            "when measured",
            f"{_REAL}::test_scores_equal_plain_transformers",
        ),
        Evidence(
            "invariant",
            "aligned segments end where every member's tokenizer splits",
            f"{_REAL}::test_aligned_segments_end_between_tokens_of_both",
        ),
        Evidence(
            "invariant",
            "the segment kept has the lowest average perplexity of the table",
            f"{_SMALL}::test_the_lowest_average_perplexity_is_kept",
        ),
    ),
    unverified="There is no official code; the procedure is read from paper notes, and incremental details are "
    "recalled. The paper's scores were not reproduced.",
)


@dataclass(frozen=True, slots=True)
class CoolFusion:
    """`boundary` and `measure` as above; `tokens` bounds a segment of a text without white space; `temperature`
    of the drafts, 0 (greedy) in the paper, None for the request's."""

    boundary: Boundary = "aligned"
    measure: Measure = "token"
    tokens: int = 32
    temperature: float | None = 0.0

    def __post_init__(self) -> None:
        one_of(METHOD.id, Boundary, boundary=self.boundary)
        one_of(METHOD.id, Measure, measure=self.measure)
        whole(METHOD.id, 1, 512, tokens=self.tokens)

    def write(self, task: Task) -> Writing:
        """Segment by segment."""
        members = range(len(task.weights))
        stop = _aligned(task) if self.boundary == "aligned" else words(1)
        while True:
            spans = yield from propose(*(Draft(m, stop, self.tokens, self.temperature) for m in members))
            best = spans[0]
            if not agree(spans):
                best = lowest(spans, (yield from judge(spans, members)), self._value, task.weights)
            yield from commit(best)

    def _value(self, score: Score) -> float:
        return score.perplexity if self.measure == "token" else score.nll_per_byte


def _aligned(task: Task) -> Stop:
    """The first word's end at which every member's tokenizer splits the draft."""
    one = words(1)

    def stop(text: bytes, *, final: bool) -> int | None:
        for found in re.finditer(rb"(?<=\S)(?=\s)", text):
            if text[: found.end()].strip() and task.splits(text[: found.end()], text[found.end() :]):
                return found.end()
        return one(text, final=True) if final else None

    return stop
