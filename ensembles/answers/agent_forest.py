"""Agent-Forest: More Agents Is All You Need. Li et al., TMLR 2024, arXiv 2402.05120.

    V(i) = Σ_{j≠i} sim(i, j);  answer = argmax_i V(i), the first on ties

i, j run over N samples of one prompt at temperature 1 and top_p 1: `samples` from each of `members`. sim(i,
j) is 1 when the two extracted answers are equal (a closed question: then V is a vote), and sentence BLEU of
i against j (lower case, directed) for open text. What counts as the extracted answer is `answer`, a profile
of `outcomes.extraction`; "auto" reads it off the request (JSON format, lettered options, yes or no) and the
answers (numbers), and is "free", hence BLEU, otherwise.

Needs: text only; N calls a request.

Returns: `Combined` with V as scores (None: abstained), the vote table, and the index of the answer returned.

Differs from the paper: an answer without a key abstains, where the released code counts unparsed answers as
one class; boxed answers are read with balanced braces and compared as strings, not symbolically; code is
not executed first; samples asked to call tools are compared by their calls. BLEU's words are split a little
more simply than sacreBLEU's 13a. A caller's own temperature and top_p are kept; at temperature 0 the method
is a no-op, as in the paper.

Laws: with sim = equality the answer is a plurality vote's; one sample or unanimity is returned; permuting
samples permutes V.
"""

from __future__ import annotations

from collections.abc import Sequence

from ensembles.answers.base import Candidate, Combined, Slot
from ensembles.answers.keys import CHOICES, answer_keys
from ensembles.answers.similarity import bleu, cumulative, first_best, token_f1
from ensembles.answers.vote import tally
from protocol.chat import ChatRequest
from protocol.errors import BadRequest
from protocol.methods import Evidence, Method

__all__ = ["METHOD", "AgentForest"]

METHOD = Method(
    id="agent-forest",
    title="More Agents Is All You Need",
    year=2024,
    paper="arXiv 2402.05120",
    taxonomy="c1",
    contract="aggregator",
    implementation="AgentForest",
    needs=frozenset({"text", "samples"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "with sim = equality the winner is the plurality vote's, on random ballots with abstentions",
            "tests/ensembles/answers/test_agent_forest.py::test_equality_is_plurality",
        ),
        Evidence(
            "invariant",
            "accuracy climbs with N on recorded samples of real models and reaches the recorded full vote",
            "tests/ensembles/answers/test_agent_forest.py::test_accuracy_climbs_with_samples",
        ),
    ),
    unverified="The paper's own headline figures are recalled and were not reproduced.",
)

SIMILARITIES = {"bleu": bleu, "token-f1": token_f1}
MAX_SLOTS = 64
"""Calls one request may fan out to."""

NO_CALL = "(no tool call)"


class AgentForest:
    """Several samples of every member; the most supported one is the answer.

    Raises ValueError for no member, more than `MAX_SLOTS` samples in all, or an unknown `answer` or
    `similarity`.
    """

    def __init__(
        self, members: Sequence[str], samples: int = 2, *, answer: str = "auto", similarity: str = "bleu"
    ) -> None:
        if not 1 <= len(members) * samples <= MAX_SLOTS:
            raise ValueError(f"{len(members)} members × {samples} samples: need 1 to {MAX_SLOTS} in all")
        if answer not in CHOICES:
            raise ValueError(f"answer must be one of {', '.join(CHOICES)}; got {answer!r}")
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}; got {similarity!r}")
        self.members = tuple(members)
        self.samples = samples
        self.answer = answer
        self.similarity = similarity

    def slots(self, request: ChatRequest) -> list[Slot]:
        """Step 1: N samples at temperature 1 and top_p 1, members in turn; each has a seed of its own when
        one was given.

        Raises `BadRequest` for `n` > 1: the merged answer is one.
        """
        if (request.body.get("n") or 1) > 1:
            raise BadRequest(
                "'n' above 1 is not supported by an answer ensemble: it merges its samples into one.",
                param="n",
            )
        unset = [name for name in ("temperature", "top_p") if request.body.get(name) is None]
        seed = request.body.get("seed")
        slots = []
        for i in range(self.samples * len(self.members)):
            fields: dict[str, float] = dict.fromkeys(unset, 1)
            if seed is not None:
                # Counted downwards from large seeds: 64 bits are all that JSON and backends carry.
                fields["seed"] = seed + i if seed < 2**62 else seed - i
            slots.append(Slot(self.members[i % len(self.members)], fields))
        return slots

    def combine(self, request: ChatRequest, candidates: Sequence[Candidate]) -> Combined:
        """Steps 2 and 3: V(i) by equality of answers where they have keys, else by similarity of texts."""
        by, keys = _keys(request, candidates, self.answer)
        scores: list[float | None]
        if any(key is not None for key in keys):
            by = f"equal {by}"
            scores = [
                None if key is None else float(sum(key == other for j, other in enumerate(keys) if j != i))
                for i, key in enumerate(keys)
            ]
        else:
            by = self.similarity
            scores = [*cumulative([c.text for c in candidates], SIMILARITIES[self.similarity])]
        return Combined(first_best(scores) or 0, tuple(scores), tuple(keys), tally(keys), by)


def _keys(request: ChatRequest, candidates: Sequence[Candidate], answer: str) -> tuple[str, list[str | None]]:
    """(what is compared, a key or None for each candidate)."""
    if any(c.tool_calls for c in candidates):
        return "tool calls", [c.tool_calls or NO_CALL for c in candidates]
    return answer_keys(request, [c.text for c in candidates], answer)
