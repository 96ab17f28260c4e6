"""ABE: each model keeps its own tokens, and a joint beam search keeps their texts in agreement.

"Token-level Ensembling of Models with Different Vocabularies", Wicks, Thompson & Post, 2025, arXiv 2502.21265.

    score(h) = Σ_m w_m S_m(h) / len_m(h)        S_m: log-probability of m's own tokens, len_m: how many

A hypothesis is one string per member. All must be prefixes of the longest. Members that have written all of
the longest string wait while others lag; a lagging one may only write what is a prefix of its missing bytes
or begins with them. When nobody lags, all write. The extensions of a beam are searched best first over the
members' sorted candidates (cube pruning) until enough of them agree. An end agrees with equal strings; a
hypothesis is finished when every member has ended.

*Needs* full logits of the members that write, for every hypothesis. *Returns* the next beam; the host
(`engines/search_decode.py`) shows the text that all hypotheses begin with.

*Differs from the paper.* Texts are bytes, not decoded strings; ids with equal bytes are one token. Lagging
members use the vocabulary's byte order to find their candidates at once (the authors: a trie, as an option).
A member brings its `candidates` best symbols where it lags behind nobody, not all; waiting members run no
forward. The search ends when `beams` hypotheses are finished; where the answer's length bounds it, unfinished
ones count. Only the search is built, no sampling: temperature and top_p are not used.

*Laws.* One member: beam search with length normalisation; a large beam finds the best of all texts; all
members' strings agree; members in another order, the same texts; copies of one model with one beam write its
greedy text where no two of its tokens begin with each other."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensembles.options import whole
from ensembles.tokens.base import Alphabet, Hypothesis, SearchStep
from protocol.methods import Evidence, Method

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ABE", "METHOD"]

_SMALL = "tests/ensembles/tokens/test_abe.py"
_LOOP = "tests/engines/test_search_decode.py"

METHOD = Method(
    id="abe",
    title="ABE: agreement-based ensembling by joint beam search",
    year=2025,
    paper="arXiv:2502.21265",
    taxonomy="b1",
    contract="search",
    implementation="ABE",
    needs=frozenset({"full-logits"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "one member's texts equal an independent beam search",
            f"{_LOOP}::test_one_member_is_beam_search",
        ),
        Evidence(
            "exact equivalence",
            "a large beam finds the best of all texts, by exhaustive enumeration",
            f"{_SMALL}::test_a_large_beam_finds_the_best_of_all",
        ),
        Evidence(
            "exact equivalence",
            "with single-byte tokens a step's score is the weighted mean of the members' log-probabilities",
            f"{_SMALL}::test_prefix_free_tokens_are_log_linear",
        ),
        Evidence(
            "invariant",
            "every hypothesis's strings are prefixes of the longest, and equal at the end",
            f"{_SMALL}::test_strings_agree",
        ),
    ),
    unverified="Texts are compared with an independent loop on two real models in "
    "benchmarks/results/exactness.md. The paper's scores were not reproduced; its sampling mode is not built.",
)

DEPTH = 10_000
"""Combinations looked at in one step before the search makes do with what it found."""


@dataclass(frozen=True, slots=True)
class ABE:
    """`beams` hypotheses are kept; `candidates` is how many symbols a member that lags behind nobody
    brings."""

    beams: int = 5
    candidates: int = 64

    def __post_init__(self) -> None:
        whole(METHOD.id, 1, 16, beams=self.beams)
        whole(METHOD.id, 1, 4096, candidates=self.candidates)

    def writers(self, hypothesis: Hypothesis) -> frozenset[int]:
        """The members that have to write next: those that lag, or all where none does."""
        texts, ended = hypothesis.texts, hypothesis.ended
        longest = max(map(len, texts))
        lag = {m for m, text in enumerate(texts) if not ended[m] and (len(text) < longest or any(ended))}
        return frozenset(lag or (m for m in range(len(texts)) if not ended[m]))

    def score(self, hypothesis: Hypothesis, weights: Sequence[float]) -> float:
        """Σ_m w_m S_m / len_m; 0 of nothing written."""
        return sum(
            w * s / max(1, len(written) + ended)
            for w, s, written, ended in zip(
                weights, hypothesis.scores, hypothesis.written, hypothesis.ended, strict=True
            )
        )

    def extend(self, step: SearchStep) -> list[Hypothesis]:
        """The best extensions, best first, until `beams` of them are unfinished or there are no more. Raises
        nothing where none agrees: then the list is empty."""
        heap: list[tuple[float, int, tuple[int, ...]]] = []
        axes = [self._axes(step, i) for i in range(len(step.beam))]
        visited: set[tuple[int, tuple[int, ...]]] = set()

        def push(beam: int, spot: tuple[int, ...]) -> None:
            if (beam, spot) in visited or any(
                i >= len(axis) for i, axis in zip(spot, axes[beam], strict=True)
            ):
                return
            visited.add((beam, spot))
            joint = sum(axis[i].part for i, axis in zip(spot, axes[beam], strict=True))
            heapq.heappush(heap, (-joint, beam, spot))

        for i, hypothesis in enumerate(step.beam):
            push(i, (0,) * len(hypothesis.texts))
        found: list[Hypothesis] = []
        alive = 0
        while heap and alive < self.beams and len(visited) < DEPTH:
            _, beam, spot = heapq.heappop(heap)
            for m in range(len(spot)):
                push(beam, (*spot[:m], spot[m] + 1, *spot[m + 1 :]))
            moves = [axis[i] for i, axis in zip(spot, axes[beam], strict=True)]
            extended = _moved(step.alphabet, step.beam[beam], moves)
            if extended is not None:
                found.append(extended)
                alive += not all(extended.ended)
        return found

    def _axes(self, step: SearchStep, beam: int) -> list[list[_Move]]:
        """Of each member, its possible moves, best first."""
        hypothesis, rows = step.beam[beam], step.logits[beam]
        longest = max(hypothesis.texts, key=len)
        axes = []
        for m, weight in enumerate(step.weights):
            length = max(1, len(hypothesis.written[m]) + hypothesis.ended[m])
            if m not in rows:
                axes.append([_Move(None, hypothesis.scores[m], weight * hypothesis.scores[m] / length)])
                continue
            missing = longest[len(hypothesis.texts[m]) :]
            symbols = self._symbols(step, m, rows[m], missing, any(hypothesis.ended))
            mass = step.alphabet.log_mass(m, rows[m])
            logp = step.alphabet.read(m, rows[m], symbols) - mass
            pairs = sorted(zip((-logp).tolist(), symbols.tolist(), strict=True))
            count = len(hypothesis.written[m]) + 1
            moves = []
            for negative, symbol in pairs:
                total = hypothesis.scores[m] - negative
                if total > float("-inf"):
                    moves.append(_Move(symbol, total, weight * total / count))
            axes.append(moves)
        return axes

    def _symbols(self, step: SearchStep, member: int, row: Tensor, missing: bytes, closing: bool) -> Tensor:
        """The symbols worth looking at: the best, or all that fit the missing bytes."""
        import torch

        alphabet = step.alphabet
        if missing:
            fit = step.order.fitting(missing)
        elif closing:
            fit = [alphabet.eos]
        else:
            best, _ = alphabet.top(member, row, self.candidates)
            return best[step.feedable[best]]
        found = torch.tensor(fit, dtype=torch.long, device=row.device)
        return found[step.feedable[found]]


@dataclass(frozen=True, slots=True)
class _Move:
    """A member's next symbol (None: it waits), its S_m then, and the share of the score."""

    symbol: int | None
    total: float
    part: float


def _moved(alphabet: Alphabet, hypothesis: Hypothesis, moves: Sequence[_Move]) -> Hypothesis | None:
    """The hypothesis after the moves; None where the strings disagree."""
    texts, written, ended = list(hypothesis.texts), list(hypothesis.written), list(hypothesis.ended)
    for m, move in enumerate(moves):
        if move.symbol is None:
            continue
        if move.symbol == alphabet.eos:
            ended[m] = True
        else:
            texts[m] += alphabet.symbols[move.symbol]
            written[m] = (*written[m], move.symbol)
    longest = max(texts, key=len)
    if not all(longest.startswith(text) for text in texts):
        return None
    if any(end and len(text) < len(longest) for end, text in zip(ended, texts, strict=True)):
        return None
    return Hypothesis(tuple(texts), tuple(written), tuple(move.total for move in moves), tuple(ended))
