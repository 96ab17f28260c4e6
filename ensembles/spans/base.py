"""The `SpanFusion` contract: several models draft what comes next, and judge each other's drafts.

A method is a generator. It yields what it wants done and is sent what came of it; the host owns engines,
caches, vocabularies, stop strings, streams and bounds, and ends the generator when the answer ends:

    spans = yield from propose(Draft(0, words(4), 64), Draft(1, words(4), 64))
    table = yield from judge(spans, judges=range(2))
    yield from commit(spans[best(table)])

What is no engine's work, such as a reward model's, is done `aside`: by another thread, while the step loop goes on.

All state of a method is in its generator's frame: one answer, one generator.

Laws (`tests/contracts/span_checks.py`): it proposes before it judges or commits; commits what was proposed,
and goes on until something that ends the answer is committed; members that write the same give that text, one
member its own; the order of equal work changes nothing; two answers know nothing of each other."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

from protocol.methods import Evidence

__all__ = [
    "ON_ENGINES",
    "Aside",
    "Ask",
    "Commit",
    "Draft",
    "Judge",
    "Left",
    "Propose",
    "Reading",
    "Score",
    "Searches",
    "Span",
    "SpanFusion",
    "Stop",
    "Survey",
    "Table",
    "Task",
    "Work",
    "Writing",
    "agree",
    "aside",
    "commit",
    "judge",
    "last_word",
    "lowest",
    "most_spent",
    "propose",
    "survey",
    "words",
]

T = TypeVar("T")

_HOST = "tests/engines/test_span_decode.py"
_REAL = "tests/engines/test_plain_spans.py"

ON_ENGINES = (
    Evidence(
        "exact equivalence",
        "copies of one model write its own greedy text, byte for byte",
        f"{_REAL}::test_copies_of_a_model_write_its_text",
    ),
    Evidence(
        "exact equivalence",
        "so does a member alone, on tiny models",
        f"{_HOST}::test_one_member_and_copies_are_the_model",
    ),
    Evidence(
        "exact equivalence",
        "greedy texts equal a loop written with transformers alone on two real models, up to where rounding could "
        "decide",
        f"{_REAL}::test_spans_equal_a_plain_loop",
    ),
    Evidence(
        "exact equivalence",
        "the same on two tiny models with different vocabularies, every answer to its end",
        f"{_HOST}::test_texts_equal_an_independent_loop",
    ),
)
"""What every method in spans is held to."""


class Stop(Protocol):
    """Where a draft is complete."""

    def __call__(self, text: bytes, *, final: bool) -> int | None:
        """How many bytes of the draft `text` are the span; None to let its author go on. With `final` nothing
        more comes, so there must be an answer."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Have `member` write on from the committed text and `after`, at most `tokens` of its own, until `stop`.

    `temperature` and `top_p` None: the request's. A request at temperature 0 is greedy whatever stands here. With
    `stops`, a stop string of the request ends the answer there, as an end token does, and is no part of the span;
    without, that is seen when the span is committed."""

    member: int
    stop: Stop
    tokens: int
    temperature: float | None = None
    top_p: float | None = None
    after: bytes = b""
    stops: bool = False


@dataclass(frozen=True, slots=True)
class Score:
    """How a member reads a text: natural-log probability and raw logit of each of its own tokens for it, an end of
    the answer being one token more, and the text's `size` in bytes."""

    logprobs: tuple[float, ...]
    logits: tuple[float, ...]
    size: int

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood a token, in nats."""
        return -sum(self.logprobs) / max(1, len(self.logprobs))

    @property
    def nll_per_byte(self) -> float:
        """Negative log-likelihood a byte, in nats, whatever the member's tokens; an end counts as one byte."""
        return -sum(self.logprobs) / max(1, self.size)

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite where that overflows."""
        return math.exp(self.nll) if self.nll < 700 else math.inf


@dataclass(frozen=True, slots=True)
class Span:
    """What `author` wrote: `text`, whether it `ended` its answer there, and how it read that itself, at
    temperature 1."""

    author: int
    text: bytes
    ended: bool
    score: Score


@dataclass(frozen=True, slots=True)
class Ask:
    """Have `member` read `text`, an end of the answer behind it where `ended`, as following the committed text and
    `after`."""

    member: int
    text: bytes
    ended: bool = False
    after: bytes = b""


@dataclass(frozen=True, slots=True)
class Reading:
    """How a member reads its own prompt: natural-log probability of each token that is text, and the largest
    probability that it gave to any token there."""

    logprobs: tuple[float, ...]
    peaks: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-likelihood; 1 for a prompt of one token."""
        return math.exp(-sum(self.logprobs) / max(1, len(self.logprobs)))

    @property
    def confidence(self) -> float:
        """Mean largest probability, in (0, 1]."""
        return sum(self.peaks) / len(self.peaks) if self.peaks else 1.0


@dataclass(frozen=True, slots=True)
class Propose:
    """Sent back: the spans, in the order of the drafts. One that some member could not write, or has no room for,
    is left out; if none is left the host ends the answer, unless some draft went on from ahead of it (`after`)."""

    drafts: tuple[Draft, ...]


@dataclass(frozen=True, slots=True)
class Judge:
    """Sent back: a `Score` for each."""

    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """Sent back: nothing. The span's text is every member's from now on. An ended one ends the answer."""

    span: Span


@dataclass(frozen=True, slots=True)
class Survey:
    """Have members read their prompts. Sent back: a `Reading` for each."""

    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Aside:
    """Have `call` done by another thread than the step loop's. Sent back: what it returned; what it raises fails the
    answer."""

    call: Callable[[], Any]


Work = Propose | Judge | Commit | Survey | Aside
Writing = Generator[Work, Any, None]
Table = tuple[tuple[Score, ...], ...]
"""Scores by judge, then by span."""


@dataclass(frozen=True, slots=True)
class Left:
    """What may still be spent on an answer: tokens, by the member that spent most, and seconds until the caller's
    deadline."""

    tokens: float = math.inf
    seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class Task:
    """What a method knows of the answer to write: its members' `weights`, sum 1; `splits(head, tail)`, whether
    every member would begin a new token between the two; the `prompts` as text, a member's each, and the `question`
    in them as the caller put it; a `seed` for its own chance; `most`, the main member's tokens that the answer may
    have; and what is `left`."""

    weights: tuple[float, ...]
    splits: Callable[[bytes, bytes], bool]
    prompts: tuple[bytes, ...] = ()
    question: str = ""
    seed: int = 0
    most: int | None = None
    left: Callable[[], Left] = Left


@runtime_checkable
class SpanFusion(Protocol):
    """A method: options in its fields, and `write`."""

    def write(self, task: Task) -> Writing:
        """The work of one answer."""


@runtime_checkable
class Searches(Protocol):
    """A method that writes many answers to give one."""

    @property
    def spends(self) -> int:
        """How many tokens each member may spend for one that the answer may have; beyond them the host ends the
        answer, so the method looks at what is `left`."""


def propose(*drafts: Draft) -> Generator[Work, Any, tuple[Span, ...]]:
    """The spans that came of the drafts."""
    spans: tuple[Span, ...] = yield Propose(drafts)
    return spans


def commit(span: Span) -> Generator[Work, Any, None]:
    """Go on from the span."""
    yield Commit(span)


def judge(spans: Sequence[Span], judges: Iterable[int], after: bytes = b"") -> Generator[Work, Any, Table]:
    """How each judge reads each span. What an author thinks of its own words is known from the writing, and a text
    that stands there twice is read once."""
    judges = tuple(judges)
    known = {(span.author, span.text, span.ended): span.score for span in spans}
    wanted = dict.fromkeys((i, span.text, span.ended) for i in judges for span in spans)
    missing = [key for key in wanted if key not in known]
    if missing:
        scores: Sequence[Score] = yield Judge(tuple(Ask(i, text, end, after) for i, text, end in missing))
        known.update(zip(missing, scores, strict=True))
    return tuple(tuple(known[i, span.text, span.ended] for span in spans) for i in judges)


def survey(members: Iterable[int]) -> Generator[Work, Any, tuple[Reading, ...]]:
    """How each of them reads its prompt."""
    readings: tuple[Reading, ...] = yield Survey(tuple(members))
    return readings


def aside(call: Callable[[], T]) -> Generator[Work, Any, T]:
    """What `call` returns, from another thread."""
    found: T = yield Aside(call)
    return found


def agree(spans: Sequence[Span]) -> bool:
    """Whether they all are the same words, and ended alike."""
    return len({(span.text, span.ended) for span in spans}) == 1


def lowest(
    spans: Sequence[Span], table: Table, value: Callable[[Score], float], weights: Sequence[float]
) -> Span:
    """The span whose mean value over judges, weighted, is the lowest; of equal ones the first. A judge without weight
    is not heard, whatever its value: an infinite one would count otherwise."""
    heard = [(w, row) for w, row in zip(weights, table, strict=True) if w]
    means = [sum(w * value(row[k]) for w, row in heard) for k in range(len(spans))]
    return spans[means.index(min(means))]


def most_spent(members: int, method: object = None) -> int:
    """How many tokens each of so many members may spend for one that the answer may have; where it is more, the host
    ends the answer. It reads what the others drafted, and drafts more than is kept."""
    return method.spends if isinstance(method, Searches) else 4 * max(2, members)


def words(n: int) -> Stop:
    """Complete when `n` words are, that is when white space follows the n-th: a span is words with the white space
    before them, and never half a word. At the end of its tokens a draft is cut behind its last whole word; one
    without white space (a long word, or a script that has none) is a span as it is."""
    whole = re.compile(rb"\s*\S+(?:\s+\S+){%d}(?=\s)" % (n - 1))

    def stop(text: bytes, *, final: bool) -> int | None:
        if found := whole.match(text):
            return found.end()
        if not final:
            return None
        return last_word(text) or len(text)

    return stop


def last_word(text: bytes) -> int:
    """Where the last word of `text` ends that white space follows; 0 where there is none."""
    found = re.match(rb"\s*\S.*\S(?=\s)|\s*\S(?=\s)", text, re.DOTALL)
    return found.end() if found else 0
