"""One text written by several engines: rows come in, the fusion decides, bytes are fed back to every member.

At each sync point the fusion is asked first with nothing, so that it names whom it wants to hear. Those
members compute what they have not seen of the text, in one forward; the others stay where they are. A member
that is early keeps its row and stalls until the last one arrives; nobody else in the batch waits for anybody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.byte_vocab import ByteVocab
from engines.choose import Chooser
from engines.engine import Engine
from engines.generation import End, Generation, MemberUsage, Piece, Sink, TokenLogprob
from engines.text_state import TextState
from engines.token_trail import TokenTrail
from engines.union import Union
from engines.visible_text import VisibleText
from ensembles.tokens.base import Ask, Fusion, Step
from protocol.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FusedDecode", "Member", "Team"]


@dataclass(frozen=True, slots=True)
class Member:
    """An engine in a team, with its vocabulary and weight."""

    engine: Engine
    vocab: ByteVocab
    weight: float


@dataclass(frozen=True, slots=True)
class Team:
    """A fusion ready to serve: members whose weights sum to 1, the union of their vocabularies, the method,
    and which member's tokens count against `max_tokens`."""

    members: tuple[Member, ...]
    union: Union
    fusion: Fusion
    main: int = 0


class FusedDecode:
    """The host's view of a fused request.

    Each step: `advance` takes the rows that its members produced and says which ids they go on with; `wake`,
    after the step, feeds members that were not in it."""

    def __init__(self, generation: Generation, team: Team, sink: Sink) -> None:
        self.id = generation.id
        self.sink = sink
        self.done = False
        self._generation, self._team = generation, team
        self._state = TextState([member.vocab for member in team.members], team.main)
        self._text = VisibleText(generation.sampling.stops, generation.sampling.before)
        self._chooser = Chooser(
            generation.sampling.temperature, generation.sampling.top_p, generation.sampling.seed
        )
        self._trail = TokenTrail()
        self._rows: dict[int, Tensor] = {}
        self._computing: set[int] = set()
        self._started: set[int] = set()
        self._wanted: set[int] = set()
        self._heard: frozenset[int] = frozenset()
        self._end_tokens = 0

    def start(self) -> None:
        """Queue the members the fusion asks for first; the others join when it first asks for them."""
        self._decide()
        self.wake()

    def requests(self) -> list[tuple[Engine, str]]:
        """The engine requests to drop when this one is over."""
        return list(self.member_requests().values())

    def member_requests(self) -> dict[int, tuple[Engine, str]]:
        """Engine and request id of every member that has joined."""
        return {m: (self._team.members[m].engine, self.name_of(m)) for m in sorted(self._started)}

    def name_of(self, member: int) -> str:
        """Id of the member's engine request."""
        return f"{self.id}/{member}"

    def advance(self, rows: Mapping[int, Tensor]) -> dict[int, Sequence[int]]:
        """Take the next-token logits of members, shape (|V_m|,) each; returns the ids each of *these* members
        goes on with, none where it has to wait. The rows are views that die with the step, so those kept are
        copied."""
        for m, row in rows.items():
            if m in self._computing:  # else a preempted member recomputed a row used already: no news
                self._computing.discard(m)
                self._rows[m] = row
        if self._rows and not self._computing:
            self._decide()
        going = self._wanted & rows.keys()
        self._wanted -= going
        self._computing |= going
        self._rows = {m: row.clone() if m in rows else row for m, row in self._rows.items()}
        return {m: self._state.take_unfed(m) if m in going else () for m in rows}

    def wake(self) -> None:
        """Set members going that were not in the step: called between two steps."""
        for m in sorted(self._wanted):
            engine, name = self._team.members[m].engine, self.name_of(m)
            ids = self._state.take_unfed(m)
            if m in self._started:
                engine.feed(name, ids)
            else:
                self._started.add(m)
                engine.add_forced(name, [*self._generation.prompts[m], *ids])
        self._computing |= self._wanted
        self._wanted = set()

    def _decide(self) -> None:
        """Ask the fusion until it wants to hear somebody; commit what it chooses on the way."""
        team = self._team
        weights = tuple(member.weight for member in team.members)
        while not self.done:
            decision = team.fusion.decide(Step(team.union, weights, self._rows))
            if isinstance(decision, Ask):
                if not decision.members or decision.members & self._rows.keys():
                    raise MethodError(
                        f"the fusion asked for {sorted(decision.members)} having {sorted(self._rows)}"
                    )
                self._wanted |= decision.members
                return
            self._commit(decision.q)

    def _commit(self, q: Tensor) -> None:
        """Choose a symbol, add it to the text, and end where the answer ends."""
        team, asked = self._team, self._generation.sampling
        symbol = self._chooser.choose(q, team.union.feedable)
        self._heard = frozenset(self._rows)
        self._rows = {}
        if symbol == team.union.eos:
            self._end_tokens = 1
            self._end("stop", "")
            return
        bound = asked.max_tokens
        room = None if bound is None else bound - self._state.length
        added = self._state.commit(team.union.symbols[symbol], room)
        if asked.top_logprobs is not None:
            self._trail.push(self._logprob(q, symbol, added))
        shown = self._text.push(added)
        if self._text.stopped:
            self._end("stop", shown)
        elif (bound is not None and self._state.length >= bound) or self._full():
            self._end("length", shown)
        else:
            self._show(shown)

    def _logprob(self, q: Tensor, symbol: int, added: bytes) -> TokenLogprob:
        def log(p: float) -> float:
            return math.log(p) if p > 0 else -9999.0

        values, best = q.topk(self._generation.sampling.top_logprobs or 1)
        top = tuple(
            (self._team.union.symbols[u], log(p)) for u, p in zip(best.tolist(), values.tolist(), strict=True)
        )
        return TokenLogprob(
            added, log(float(q[symbol])), top if self._generation.sampling.top_logprobs else ()
        )

    def _full(self) -> bool:
        """Whether some member's context has no room for another token."""
        return any(
            len(prompt) + len(ids) >= member.engine.spec.max_model_len
            for member, prompt, ids in zip(
                self._team.members, self._generation.prompts, self._state.ids, strict=True
            )
        )

    def _show(self, text: str) -> None:
        tokens = self._trail.release(self._text.released)
        if text or tokens:
            self.sink(Piece(text, tokens))

    def _end(self, reason: str, shown: str) -> None:
        self._show(shown + self._text.finish())
        self.done = True
        self.sink(End(reason, tuple(self._spent(m) for m in range(len(self._team.members)))))

    def _spent(self, m: int) -> MemberUsage:
        """What a member chose or computed: not the text it was never asked to catch up with."""
        name = self._team.members[m].engine.spec.name
        if m not in self._started:
            return MemberUsage(name, 0, 0)
        chose = m in self._heard
        tokens = len(self._state.ids[m]) - (0 if chose else len(self._state.unfed[m]))
        return MemberUsage(
            name, len(self._generation.prompts[m]), tokens + (self._end_tokens if chose else 0)
        )
