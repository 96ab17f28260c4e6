"""The `Fusion` contract: several models, at one point of one text, and what comes next.

At a *sync point* every member has the same text before it, each in tokens of its own vocabulary. The host
hands over the logits it has; the fusion answers with a distribution over symbols of all vocabularies, or asks
for the members it still wants to hear. The host owns the rest: it samples the symbol, feeds its bytes to
every member, and keeps engines, caches, stop strings and streams. A member nobody asks costs nothing and
catches up, in one forward, when it is asked again.

Steps come before the first sync point, for methods that need them: `bind`, once, when the models are loaded,
gives a method their embeddings (`Binds`); once a request, `open` shows it the prompt (`Opens`), or `prepare` how
the members read that (`Prepares`). All return a fusion and change nothing. A method may also see hidden states
of its members (`Looks`) or change them (`Visits`), and what it has to know of the text so far it hands itself
on, from a decision to the next step (`memory`).

Laws (`tests/contracts/fusion_checks.py`): decide() changes nothing and depends on nothing but its step; q ≥ 0
and Σq = 1 (of a greedy step: the same most likely symbol); it never asks for a member it was given; given all
members, it decides; one-hot weights, or members that agree, give that member's distribution."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CANDIDATES",
    "Alphabet",
    "Ask",
    "Binds",
    "Decision",
    "Drafts",
    "Fusion",
    "HandsOver",
    "Hypothesis",
    "Looks",
    "Mixture",
    "Opening",
    "Opens",
    "Prepares",
    "Prompt",
    "PromptRow",
    "Search",
    "SearchStep",
    "Step",
    "SymbolOrder",
    "Tables",
    "Visitor",
    "Visits",
    "Weighs",
    "alone",
    "surely_best",
]

CANDIDATES = 16
"""Symbols looked at where only the most likely one of a member's is wanted."""


class Alphabet(Protocol):
    """The symbols that the members' vocabularies have together: byte strings, and one end of the answer.

    A symbol's logit in a member is log Σ exp of the logits of its ids there (most have one); control tokens
    are no symbols and their logits count nowhere. `logits` always has shape (≥ |V_m|,), raw, and stays
    unchanged; tensors of symbols are int64, of values float32."""

    @property
    def symbols(self) -> Sequence[bytes]:
        """What each symbol emits; the end of the answer emits nothing."""

    @property
    def size(self) -> int:
        """Number of symbols |U|, the end among them."""

    @property
    def eos(self) -> int:
        """The symbol that ends the answer."""

    def project(self, member: int, logits: Tensor) -> Tensor:
        """p_m A_m of shape (|U|,), sum 1: the member's softmax by symbol."""

    def top(self, member: int, logits: Tensor, k: int) -> tuple[Tensor, float]:
        """The symbols of the member's k largest logits, best first, each once, and a bound: no other symbol's
        logit is larger."""

    def log_mass(self, member: int, logits: Tensor) -> float:
        """The log of Σ exp of the logits of all symbols: a symbol's logit minus this is its log-probability."""

    def read(self, member: int, logits: Tensor, symbols: Tensor) -> Tensor:
        """The logits of `symbols`, same shape; −inf where the member has no id for one (a symbol of −1 is
        nobody's)."""

    def begin(self, member: int, symbols: Tensor) -> Tensor:
        """The symbols with which the member begins to write `symbols`: themselves where it has an id for
        them, else the first of its own segmentation of their bytes, −1 where it cannot write them."""

    def shared(self, members: frozenset[int]) -> Tensor:
        """The symbols that all of `members` have an id for, ascending."""


@dataclass(frozen=True, slots=True)
class Step:
    """One sync point. `logits[m]` has shape (|V_m|,), raw, for the members heard so far; `weights` sum to 1.

    `greedy`: the host will take the most likely symbol and look at nothing else, so the decision's q may be
    anything with the right maximum: that is where a method may save work. `states[m]`, shape (layers, d_m), has
    the hidden states of the members heard that the method looks into. `memory` is that of the decision before;
    None at the first."""

    alphabet: Alphabet
    weights: tuple[float, ...]
    logits: Mapping[int, Tensor]
    greedy: bool = False
    states: Mapping[int, Tensor] = field(default_factory=dict)
    memory: object = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Decide again when these members, none of them heard yet, have spoken."""

    members: frozenset[int]


@dataclass(frozen=True, slots=True)
class Mixture:
    """The fused next-symbol distribution. Without `symbols`, `q` has shape (|U|,); with them, q[i] belongs to
    symbols[i], both of shape (n,), and no other symbol can come. Of equally likely ones the first is taken.

    `author`: the member whose word this is, where it is one's alone; the answer then tells who wrote what.
    `memory` goes into the next step, and is not changed."""

    q: Tensor
    symbols: Tensor | None = None
    author: int | None = None
    memory: object = None


Decision = Ask | Mixture


def alone(step: Step, member: int, memory: object = None) -> Mixture:
    """What one of the members heard would write, signed. Of a greedy step few symbols, where these are sure to have the
    most likely one."""
    if (few := surely_best(step, member)) is not None:
        symbols, z = few
        return Mixture(z.softmax(-1), symbols, member, memory)
    return Mixture(step.alphabet.project(member, step.logits[member]), None, member, memory)


def surely_best(step: Step, member: int) -> tuple[Tensor, Tensor] | None:
    """Of a greedy step a few symbols, ascending, and the member's logits of them, where these are sure to have the most
    likely one; None elsewhere."""
    if not step.greedy:
        return None
    alphabet, logits = step.alphabet, step.logits[member]
    symbols, bound = alphabet.top(member, logits, CANDIDATES)
    symbols = symbols.sort().values  # of equally likely ones the first is taken, here as elsewhere
    z = alphabet.read(member, logits, symbols)
    return (symbols, z) if float(z.max()) > bound else None


class Fusion(Protocol):
    """A method. It is called at every sync point, first with no logits at all, so that it says whom it
    needs."""

    def decide(self, step: Step) -> Decision:
        """Pure: the same step gives the same decision, and the step's tensors stay unchanged."""


class Tables(Protocol):
    """What a loaded team knows about its members, beside their logits."""

    @property
    def alphabet(self) -> Alphabet:
        """The members' symbols."""

    @property
    def members(self) -> int:
        """Number of members M."""

    def digest(self, member: int) -> str:
        """Which weights the member has: what was trained for them is to be refused with others."""

    def embeddings(self, member: int, symbols: Tensor, side: Literal["input", "output"]) -> Tensor:
        """Rows of the member's embedding table (input) or of its output head, for symbols it has an id for:
        shape (n, d_m), float32."""


@runtime_checkable
class Binds(Protocol):
    """A fusion that needs `Tables`."""

    def bind(self, tables: Tables) -> Fusion:
        """The fusion for this team; may compute for seconds. Called once, before any request."""


class Opening(Protocol):
    """What a request begins with."""

    @property
    def alphabet(self) -> Alphabet:
        """The members' symbols."""

    @property
    def weights(self) -> tuple[float, ...]:
        """The members' weights; they sum to 1."""

    @property
    def prompts(self) -> tuple[Tensor, ...]:
        """The symbols of each member's prompt, controls left out, shape (n_m,)."""

    @property
    def text(self) -> bytes:
        """What all prompts have in common, whatever their templates put around it."""


@runtime_checkable
class Opens(Protocol):
    """A fusion that wants to know the prompt, but not how the members read it."""

    def open(self, opening: Opening) -> Fusion:
        """The fusion for this request. Pure."""


@dataclass(frozen=True, slots=True)
class PromptRow:
    """What a member expected before one token of the prompt: `logits`, shape (|V_m|,), raw, at byte `start`
    of the shared text, and the `symbol` that came, `size` bytes long."""

    start: int
    size: int
    symbol: int
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Prompt:
    """How the members read the text that all their prompts have in common: its longest run of equal bytes
    (prompts differ by template). `rows[m]` are the member's tokens that lie inside it, in order, each member
    in its own segmentation; where two members have a row with the same `start`, they stood at one point."""

    alphabet: Alphabet
    weights: tuple[float, ...]
    rows: tuple[tuple[PromptRow, ...], ...]


@runtime_checkable
class Prepares(Protocol):
    """A fusion that looks at the prompt before it begins, say to weigh its members. Reading the prompt then
    makes no use of the prefix cache, and costs a row of logits for each token looked at."""

    @property
    def reach(self) -> int:
        """How many tokens of the shared text each member shows at most: the last ones."""

    def prepare(self, prompt: Prompt) -> Fusion:
        """The fusion for this request. Pure."""


@runtime_checkable
class Looks(Protocol):
    """A fusion that sees hidden states of its members: at the token after which the next one is chosen."""

    @property
    def layers(self) -> Mapping[int, Sequence[int]]:
        """By member, the layers it wants to see, in this order, as transformers' `hidden_states` numbers them:
        0 the embeddings, l what block l gives, -1 what the final norm makes of the last one's (the head's
        input)."""


class Visitor(Protocol):
    """Goes along with one request, from model to model while they compute, and may keep what it saw."""

    @property
    def layers(self) -> Mapping[int, Sequence[int]]:
        """By member, the layers it comes to, in this order: l is behind block l, the last one before the final
        norm. A member that is visited shares no prefix cache with other requests."""

    def visit(self, member: int, layer: int, first: int, states: Tensor, ends: Tensor) -> Tensor | None:
        """The member's states there, shape (n, d), of its tokens `first`, `first` + 1, … (prompt and text counted
        together), and where these end, (n,): in bytes, 0 where its prompt ends. Returns what is to be added to
        them, if anything. Tokens may come again after a preemption."""


@runtime_checkable
class Visits(Protocol):
    """A fusion whose members meet inside: what one thinks goes into another while that one computes. Such a fusion
    asks for a member's row when those have computed whose thoughts it needs."""

    def visitor(self) -> Visitor:
        """A new one, for this request."""


@runtime_checkable
class Weighs(Protocol):
    """A fusion whose members' weights follow the text. The host asks for them before the first symbol, and again
    whenever `span` more have been written; in between they stay."""

    @property
    def span(self) -> int:
        """Symbols that one weighting is held for; 0: all of the answer."""

    def weigh(self, prompt: str, text: str, weights: tuple[float, ...]) -> tuple[float, ...]:
        """The `weights` of the steps to come, ≥ 0 and sum 1, by the main member's `prompt` and the `text` so far.
        `weights` are the configured ones. Pure; may take some milliseconds, in which the host does nothing else."""


@runtime_checkable
class HandsOver(Protocol):
    """A fusion in which one member at a time writes, and hands the text over. Who takes over reads what it has missed
    as one text, in tokens as it would have written it."""

    @property
    def switches(self) -> int:
        """How often the text changes hands at most."""


@runtime_checkable
class Drafts(Protocol):
    """A fusion that gives the same text, in distribution, when one member writes ahead and the others read
    its draft at once: the host then asks `decide` at each drafted position with all members' logits, and
    accepts or replaces the draft by rejection sampling."""

    def turns(self, members: int) -> tuple[tuple[int, int], ...]:
        """Who drafts in which order and how many symbols at a turn: (member, ≥ 1), each member once."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One text of a search, as far as each member has written it: bytes, symbols, the sum of their natural-log
    probabilities (the end's included), and whether the member has ended it."""

    texts: tuple[bytes, ...]
    written: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]
    ended: tuple[bool, ...]


class SymbolOrder:
    """The symbols of an alphabet in the order of their bytes: those with a prefix lie side by side."""

    def __init__(self, symbols: Sequence[bytes]) -> None:
        self._order = sorted((text, u) for u, text in enumerate(symbols) if text)
        self._index = dict(self._order)

    def fitting(self, missing: bytes) -> list[int]:
        """Symbols that begin with `missing` (not empty), or with which `missing` begins."""
        shorter = [self._index[missing[:n]] for n in range(1, len(missing)) if missing[:n] in self._index]
        first = bisect_left(self._order, (missing, -1))
        longer = takewhile(lambda item: item[0].startswith(missing), self._order[first:])
        return shorter + [u for _, u in longer]


@dataclass(frozen=True, slots=True)
class SearchStep:
    """A beam and, of each hypothesis, the logits of the members that write next, (|V_m|,) each, raw.
    `feedable`, bool of shape (|U|,): symbols that every member could read."""

    alphabet: Alphabet
    weights: tuple[float, ...]
    beam: tuple[Hypothesis, ...]
    logits: tuple[Mapping[int, Tensor], ...]
    order: SymbolOrder
    feedable: Tensor


@runtime_checkable
class Search(Protocol):
    """A method that keeps several texts and chooses among them at the end, where a `Fusion` writes one."""

    @property
    def beams(self) -> int:
        """How many hypotheses live at once."""

    def writers(self, hypothesis: Hypothesis) -> frozenset[int]:
        """The members whose logits the hypothesis needs next."""

    def extend(self, step: SearchStep) -> list[Hypothesis]:
        """The next hypotheses, best first, finished ones among them. Pure."""

    def score(self, hypothesis: Hypothesis, weights: Sequence[float]) -> float:
        """By which hypotheses are compared; larger is better."""
