"""What all requests have in common: how their text reaches the client, and how they end.

A `Decode` is the host's view of one request: `start` queues it in its engines, `requests` are to be dropped when it
is over, by itself (`done`) or because the client went. A `Joint` one is served by several engines, a `Team`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engines.byte_vocab import ByteVocab
from engines.engine import Engine
from engines.generation import Begun, End, Generation, LeftOut, MemberUsage, Piece, Sink, Written
from engines.own_words import OwnWords
from engines.text_state import Feedback
from engines.token_trail import TokenTrail
from engines.union import Union
from engines.visible_text import VisibleText
from ensembles.spans.base import SpanFusion
from ensembles.tokens.base import Fusion, Search

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Decode", "Joint", "Member", "Tally", "Team", "normalised"]


@dataclass(frozen=True, slots=True)
class Member:
    """An engine in a team, with its vocabulary and weight."""

    engine: Engine
    vocab: ByteVocab
    weight: float


@dataclass(slots=True)
class Tally:
    """Of a team whose members draft: forwards of members, symbols drafted, drafts verified and accepted, and
    symbols written. Counted over all requests since the start."""

    forwards: int = 0
    drafted: int = 0
    verified: int = 0
    accepted: int = 0
    written: int = 0


@dataclass(frozen=True, slots=True)
class Team:
    """A fusion ready to serve: members whose weights sum to 1, the union of their vocabularies, the method,
    and which member's tokens count against `max_tokens`. `readers` are the members' own, for a method in spans."""

    members: tuple[Member, ...]
    union: Union
    fusion: Fusion | Search | SpanFusion
    main: int = 0
    feedback: Feedback = "append"
    tally: Tally = field(default_factory=Tally)
    readers: tuple[OwnWords, ...] = ()
    drop: bool = False
    """Whether the others write on where a member fails; else the answer fails."""


class Decode(ABC):
    """One request. What it writes goes through `_add`, which ends it at a stop string."""

    waits = False
    """Whether it waits for something else than engines, so that no step can bring it on."""

    def __init__(self, generation: Generation, sink: Sink) -> None:
        self.id, self.model = generation.id, generation.model
        self.sink = sink
        self.done = False
        self._generation = generation
        self._visible = VisibleText(generation.sampling.stops, generation.sampling.before)
        self._trail = TokenTrail()
        self._written: list[Written] = []
        """Who wrote what, where that is told."""
        self._left_out: list[LeftOut] = []

    @abstractmethod
    def start(self) -> None:
        """Queue the request in its engines."""

    @abstractmethod
    def requests(self) -> list[tuple[Engine, str]]:
        """The engine requests to drop when this one is over."""

    @abstractmethod
    def _usage(self) -> tuple[MemberUsage, ...]:
        """What each member spent."""

    def _add(self, added: bytes, reason: str | None = None) -> None:
        """Show what the bytes make visible. They end the answer with a stop string, or where there is a `reason`."""
        shown = self._visible.push(added)
        if self._visible.stopped:
            reason = "stop"
        if reason is None:
            self._show(shown)
        else:
            self._end(reason, shown)

    def _end(self, reason: str, shown: str = "") -> None:
        self._show(shown + self._visible.finish())
        self.done = True
        self.sink(End(reason, self._usage(), tuple(self._written), tuple(self._left_out)))

    def _show(self, text: str) -> None:
        tokens = self._trail.release(self._visible.released)
        if text or tokens:
            self.sink(Piece(text, tokens))


class Joint(Decode):
    """A request that several engines serve.

    Each step: `advance` takes the rows that its engine requests produced and says which ids they go on with;
    `wake`, after the step, sets those going that were not in it."""

    def __init__(self, generation: Generation, team: Team, sink: Sink) -> None:
        super().__init__(generation, sink)
        self._team = team
        self._weights = normalised(generation.weights or [member.weight for member in team.members])
        self._absent: set[int] = set()
        """Members that were left out."""

    def requests(self) -> list[tuple[Engine, str]]:
        """The engine requests to drop when this one is over."""
        return list(self.member_requests().values())

    def begin_without(self, members: Collection[int]) -> None:
        """Give those members no part; called before `start`, for a method of which a member without weight has none."""
        self._weights = normalised([0.0 if m in members else w for m, w in enumerate(self._weights)])
        self._absent |= set(members)
        self._left_out += [LeftOut(self._team.members[m].engine.spec.name, "load") for m in sorted(members)]
        self.sink(Begun(tuple(self._left_out)))

    def lose(self, engine: Engine) -> bool:
        """Go on without the members of an engine that failed, and forgot its requests; False where that cannot be.
        Called between two steps."""
        return False

    def yield_room(self, engine: Engine) -> bool:
        """Give up what stands idle in an engine in which others wait for room; False where nothing does. It is
        computed anew when it is wanted. Called between two steps."""
        return False

    @abstractmethod
    def member_requests(self) -> dict[int, tuple[Engine, str]]:
        """Engine and id of every engine request, by the number that stands for it: its member's, where a member
        has one."""

    @abstractmethod
    def advance(self, rows: Mapping[int, Tensor]) -> dict[int, Sequence[int]]:
        """Take next-token logits, shape (|V_m|,) each; returns the ids each of *these* requests goes on with,
        none where it has to wait. The rows are views that die with the step."""

    @abstractmethod
    def wake(self) -> None:
        """Set going what was not in the step: called between two steps."""

    @abstractmethod
    def _member_usage(self, m: int) -> MemberUsage:
        """What a member spent."""

    def _usage(self) -> tuple[MemberUsage, ...]:
        return tuple(self._member_usage(m) for m in range(len(self._team.members)))

    def _room(self, m: int) -> int:
        """Tokens of an answer the member's context has room for."""
        return self._team.members[m].engine.spec.max_model_len - len(self._generation.prompts[m])


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights whose sum is 1. Raises `ValueError` where all are 0."""
    total = sum(weights)
    if not total > 0:
        raise ValueError("no member has a weight")
    return tuple(weight / total for weight in weights)
