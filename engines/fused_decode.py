"""One text written by several engines: rows come in, the fusion decides, bytes are fed back to every member.

At each sync point the fusion is asked first with nothing, so that it names whom it wants to hear. Those
members compute what they have not seen of the text, in one forward; the others stay where they are. A member
that is early keeps its row and stalls until the last one arrives; nobody else in the batch waits for anybody.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from engines import shared_text
from engines.choose import Chooser
from engines.decode import Joint, Team, normalised
from engines.engine import Engine
from engines.generation import Generation, LeftOut, MemberUsage, Sink, TokenLogprob, Written
from engines.grammar import Reader
from engines.opening import TeamOpening
from engines.penalties import Penalties
from engines.text_state import TextState
from ensembles.spans.base import SpanFusion
from ensembles.tokens.base import (
    Ask,
    Fusion,
    Looks,
    Mixture,
    Opens,
    Prepares,
    Prompt,
    PromptRow,
    Search,
    Step,
    Visitor,
    Visits,
    Weighs,
)
from protocol.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FusedDecode"]

NEVER = -1e4
"""The logit of what a grammar rules out: finite, for methods that take one member's logits from another's."""


class FusedDecode(Joint):
    """A request that is fused token by token; each member has one engine request."""

    def __init__(self, generation: Generation, team: Team, sink: Sink) -> None:
        super().__init__(generation, team, sink)
        assert not isinstance(team.fusion, Search | SpanFusion)
        self._fusion: Fusion = team.fusion
        self._state = TextState([member.vocab for member in team.members], team.main, team.feedback)
        self._layers = dict(team.fusion.layers) if isinstance(team.fusion, Looks) else {}
        self._chooser = Chooser.of(generation.sampling)
        symbol_of = team.union.maps[team.main]
        # Looked up one by one, and only if a penalty counts them.
        prompt = (i for i in generation.prompts[team.main] if symbol_of[i] < team.union.size)
        self._penalties = Penalties.of(generation.sampling.extra, prompt, lambda i: int(symbol_of[i]))
        grammar = generation.sampling.grammar
        self._reader = None if grammar is None else Reader(grammar, team.union.size)
        self._symbols: Counter[int] = Counter()
        """How often each symbol stands in the text."""
        self._rows: dict[int, Tensor] = {}
        self._states: dict[int, Tensor] = {}
        self._memory: object = None
        self._visitor: Visitor | None = None
        self._ends: dict[int, list[int]] = {}
        """Of members that are visited, where each token ends: in bytes, 0 where the prompt does."""
        self._computing: set[int] = set()
        self._started: set[int] = set()
        self._restarts: Counter[int] = Counter()
        self._gone: dict[int, MemberUsage] = {}
        """What members had spent when they left."""
        self._wanted: set[int] = set()
        self._heard: frozenset[int] = frozenset()
        self._chosen: Counter[int] = Counter()
        """How many ids each member had when it was last heard and a symbol came of it."""
        self._end_tokens = 0
        self._unprepared = isinstance(team.fusion, Prepares)
        self._weighing = team.fusion if isinstance(team.fusion, Weighs) else None
        self._base = self._weights
        """The weights by configuration or request, where the method changes them as it goes."""
        self._run = b""

    @property
    def _short(self) -> bool:
        """Whether only the most likely symbol of a decision is wanted, and nothing else of it shown."""
        asked = self._generation.sampling
        bent = self._penalties is not None or self._reader is not None
        return self._chooser.greedy and asked.top_logprobs is None and not bent

    def start(self) -> None:
        """Queue the members the fusion asks for first; the others join when it first asks for them. A fusion
        that wants to see how they read the prompt has them all."""
        self._weigh()
        if isinstance(self._fusion, Opens):
            opening = TeamOpening(self._team, self._generation.prompts, self._weights)
            self._fusion = self._fusion.open(opening)
        if isinstance(self._fusion, Visits):
            self._visitor = self._fusion.visitor()
        if self._unprepared:
            self._run = shared_text.common_run(
                [
                    member.vocab.text_of(prompt)
                    for member, prompt in zip(self._team.members, self._generation.prompts, strict=True)
                ]
            )
            self._wanted = set(range(len(self._team.members)))
        else:
            self._decide()
        self.wake()

    def member_requests(self) -> dict[int, tuple[Engine, str]]:
        """Engine and request id of every member that has joined."""
        return {m: (self._team.members[m].engine, self.name_of(m)) for m in sorted(self._started)}

    def name_of(self, member: int) -> str:
        """Id of the member's engine request."""
        again = self._restarts[member]
        return f"{self.id}/{member}.{again}" if again else f"{self.id}/{member}"

    def advance(self, rows: Mapping[int, Tensor]) -> dict[int, Sequence[int]]:
        """Take the next-token logits of members, shape (|V_m|,) each; returns the ids each of *these* members
        goes on with, none where it has to wait. The rows are views that die with the step, so those kept are
        copied."""
        for m, row in rows.items():
            if m in self._computing:  # else a preempted member recomputed a row used already: no news
                self._computing.discard(m)
                self._rows[m] = row
                if m in self._layers:
                    self._states[m] = self._team.members[m].engine.inside(self.name_of(m))
        if self._rows and not self._computing:
            if self._unprepared:
                self._prepare()
            self._decide()
        going = (self._wanted & rows.keys()) - self._state.stale
        self._wanted -= going
        self._computing |= going
        self._rows = {m: row.clone() if m in rows else row for m, row in self._rows.items()}
        return {m: self._state.take_unfed(m) if m in going else () for m in rows}

    def wake(self) -> None:
        """Set members going that were not in the step: called between two steps."""
        for m in sorted(self._wanted):
            engine = self._team.members[m].engine
            if m in self._state.stale and m in self._started:
                # Its earlier ids changed: a new request, which finds what has not changed in the prefix cache.
                engine.abort([self.name_of(m)])
                self._restarts[m] += 1
                self._started.discard(m)
            name = self.name_of(m)
            ids = self._state.take_unfed(m)
            if m in self._started:
                engine.feed(name, ids)
            else:
                self._started.add(m)
                if self._visitor is not None and m in self._visitor.layers:
                    engine.visit(name, self._visitor.layers[m], partial(self._visit, m))
                watch = [i for i, _ in self._shown(m)] if self._unprepared else ()
                engine.add_forced(name, [*self._generation.prompts[m], *ids], watch)
                if m in self._layers:
                    engine.look_inside(name, self._layers[m])
        self._computing |= self._wanted
        self._wanted = set()

    def lose(self, engine: Engine) -> bool:
        """Write on with the members that are left, their weights in proportion."""
        lost = [m for m, member in enumerate(self._team.members) if member.engine is engine]
        left = [0.0 if m in lost else w for m, w in enumerate(self._weights)]
        if not any(left):  # who has a part in a later span may take this one
            left = [0.0 if m in lost or m in self._absent else w for m, w in enumerate(self._base)]
        if not self._team.drop or self._unprepared or not any(left):
            return False
        self._weights = normalised(left)
        self._absent |= set(lost)
        for m in lost:
            self._left_out.append(LeftOut(engine.spec.name, "failed", len(self._state.text)))
            self._leave(m)
            self._rows.pop(m, None)
            self._states.pop(m, None)
            self._wanted.discard(m)
            self._computing.discard(m)
        if not self._computing and not self._wanted:
            self._decide()  # all that is left was waiting for the lost
        return True

    def yield_room(self, engine: Engine) -> bool:
        """Give up the requests of stalled members."""
        idle = [
            m
            for m in self._started - self._computing - self._wanted
            if self._team.members[m].engine is engine and not self._unprepared
        ]
        for m in idle:
            engine.abort([self.name_of(m)])
            self._leave(m)
        return bool(idle)

    def _leave(self, m: int) -> None:
        """The member has no request any more; one that it makes later begins anew."""
        if m in self._started:
            self._gone[m] = self._member_usage(m)
            self._started.discard(m)
            self._restarts[m] += 1
            self._state.forget(m)

    def _visit(self, m: int, layer: int, first: int, states: Tensor) -> Tensor | None:
        """Send the visitor to a member that computes its tokens from `first` on."""
        import torch

        emits, prompt = self._team.members[m].vocab.emits, self._generation.prompts[m]
        if m not in self._ends:
            sizes = [len(emits[i]) for i in prompt]
            self._ends[m] = [end - sum(sizes) for end in accumulate(sizes)]
        ends, ids, behind = self._ends[m], self._state.ids[m], first + states.shape[0]
        while len(ends) < behind:
            ends.append(ends[-1] + len(emits[ids[len(ends) - len(prompt)]]))
        assert self._visitor is not None
        return self._visitor.visit(m, layer, first, states, torch.tensor(ends[first:behind]))

    def _shown(self, m: int) -> list[tuple[int, int]]:
        """The member's prompt tokens that the fusion is shown: index, and byte offset in the shared text."""
        emits = self._team.members[m].vocab.emits
        within = shared_text.tokens_within(self._run, [emits[i] for i in self._generation.prompts[m]])
        assert isinstance(self._team.fusion, Prepares)
        return [(i, start) for i, start in within if i > 0][-self._team.fusion.reach :]

    def _prepare(self) -> None:
        """Let the fusion see how the members read the prompt."""
        fusion, union = self._team.fusion, self._team.union
        assert isinstance(fusion, Prepares)
        rows = []
        for m, (member, prompt) in enumerate(zip(self._team.members, self._generation.prompts, strict=True)):
            seen = member.engine.seen(self.name_of(m))
            rows.append(
                tuple(
                    PromptRow(
                        start, len(member.vocab.emits[prompt[i]]), int(union.maps[m][prompt[i]]), seen[i]
                    )
                    for i, start in self._shown(m)
                )
            )
        self._fusion = fusion.prepare(Prompt(union, self._weights, tuple(rows)))
        self._unprepared = False

    def _decide(self) -> None:
        """Ask the fusion until it wants to hear somebody; commit what it chooses on the way."""
        while not self.done:
            found = self._next(self._rows)
            if isinstance(found, Ask):
                if not found.members or found.members & self._rows.keys():
                    raise MethodError(
                        f"the fusion asked for {sorted(found.members)} having {sorted(self._rows)}"
                    )
                self._wanted |= found.members
                return
            self._commit(*found)

    def _next(self, rows: Mapping[int, Tensor]) -> Ask | tuple[Mixture, int]:
        """The fusion's decision on `rows` and the symbol chosen from it."""
        rows = self._readable(rows)
        # Where the few symbols that a short answer names cannot be written: see all of them.
        for greedy in dict.fromkeys((self._short, False)):
            step = Step(self._team.union, self._weights, rows, greedy, self._states, self._memory)
            decision = self._fusion.decide(step)
            if isinstance(decision, Ask):
                return decision
            if (symbol := self._first(decision) if greedy else self._choose(decision)) is not None:
                return decision, symbol
        raise MethodError("the fusion gave no symbol that every member can write")

    def _readable(self, rows: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
        """The rows without what the request's grammar rules out, so that a method's candidates are among what it
        allows."""
        if self._reader is None:
            return rows
        allowed = self._reader.allowed()
        masked = {}
        for m, row in rows.items():
            # Controls stand behind all symbols, and are ruled out in any case.
            symbol_of = self._team.union.maps[m].clamp_max(allowed.shape[0] - 1)
            masked[m] = row[: symbol_of.shape[0]].masked_fill(~allowed[symbol_of], NEVER)
        return masked

    def _first(self, decision: Mixture) -> int | None:
        """The symbol to come by a short answer, which tells of no other; None where not every member can write it."""
        best = int(decision.q.argmax())
        symbol = best if decision.symbols is None else int(decision.symbols[best])
        return symbol if bool(self._team.union.feedable[symbol]) else None

    def _choose(self, decision: Mixture) -> int | None:
        """The symbol to come; None where no member-writable one is likely at all."""
        q, allowed = self._wished(decision)
        if decision.symbols is None:
            chosen = self._chooser.choose(q, allowed)
            return chosen if bool(allowed[chosen]) else None
        if not bool(allowed.any()) or float(q.masked_fill(~allowed, 0.0).max()) <= 0:
            return None
        return int(decision.symbols[self._chooser.choose(q, allowed)])

    def _wished(self, decision: Mixture) -> tuple[Tensor, Tensor]:
        """The decision's q as the request wants it, and which of its positions may come, bool of the same shape."""
        feedable, q = self._team.union.feedable, decision.q
        if self._penalties is not None:
            q = self._penalties.apply(q.log(), self._symbols, decision.symbols).softmax(-1)
        allowed = feedable if self._reader is None else feedable & self._reader.allowed()
        return q, allowed if decision.symbols is None else allowed[decision.symbols]

    def _commit(self, decision: Mixture, symbol: int) -> None:
        """Add a symbol to the text, and end where the answer ends."""
        team, asked = self._team, self._generation.sampling
        self._heard = frozenset(self._rows)
        self._rows, self._states, self._memory = {}, {}, decision.memory
        if symbol == team.union.eos:
            self._end_tokens = 1
            self._end("stop")
            return
        bound = asked.max_tokens
        room = None if bound is None else bound - self._state.length
        added = self._state.commit(team.union.symbols[symbol], room)
        self._chosen.update({m: len(self._state.ids[m]) - self._chosen[m] for m in self._heard})
        if decision.author is not None:
            self._sign(decision.author, len(added))
        self._symbols[symbol] += 1
        if self._reader is not None:
            self._reader.accept(symbol)
        self._weigh()
        if asked.top_logprobs is not None:
            self._trail.push(self._logprob(decision, symbol, added))
        full = (bound is not None and self._state.length >= bound) or self._full()
        self._add(added, "length" if full else None)

    def _sign(self, author: int, size: int) -> None:
        """Note whose words were added; what one member wrote in a row is one part."""
        name = self._team.members[author].engine.spec.name
        if self._written and self._written[-1].model == name:
            size += self._written.pop().size
        self._written.append(Written(name, size))

    def _weigh(self) -> None:
        """At the boundary of a span, let the method weigh its members anew; those that were left out stay so."""
        if (fusion := self._weighing) is None:
            return
        written = self._symbols.total()
        if written % fusion.span if fusion.span else written:
            return
        main = self._team.main
        prompt = self._team.members[main].vocab.text_of(self._generation.prompts[main])
        text = bytes(self._state.text)
        weights = fusion.weigh(prompt.decode(errors="replace"), text.decode(errors="replace"), self._base)
        here = [0.0 if m in self._absent else w for m, w in enumerate(weights)]
        # Where only those had a weight, the others go by what they have without the method.
        left = [0.0 if m in self._absent else w for m, w in enumerate(self._base)]
        self._weights = normalised(here if any(here) else left)

    def _logprob(self, decision: Mixture, symbol: int, added: bytes) -> TokenLogprob:
        def log(p: float) -> float:
            return math.log(p) if p > 0 else -9999.0

        wanted = self._generation.sampling.top_logprobs or 0
        values, best = decision.q.topk(min(wanted, decision.q.shape[0]))
        place = symbol
        if decision.symbols is not None:
            best = decision.symbols[best]
            place = int((decision.symbols == symbol).nonzero()[0])
        top = tuple(
            (self._team.union.symbols[u], log(p)) for u, p in zip(best.tolist(), values.tolist(), strict=True)
        )
        return TokenLogprob(added, log(float(decision.q[place])), top)

    def _full(self) -> bool:
        """Whether the context of a member that has a part has no room for another token."""
        return any(
            len(ids) >= self._room(m) for m, ids in enumerate(self._state.ids) if m not in self._absent
        )

    def _member_usage(self, m: int) -> MemberUsage:
        engine = self._team.members[m].engine
        if m not in self._started:
            return self._gone.get(m, MemberUsage(engine.spec.name, 0, 0))
        prompt = len(self._generation.prompts[m])
        cached = min(prompt, engine.cached(self.name_of(m)))
        return MemberUsage(engine.spec.name, prompt, self._tokens(m), cached)

    def _tokens(self, m: int) -> int:
        """What a member chose or computed: not the text it was never asked to catch up with."""
        ids, unfed = self._state.ids[m], self._state.unfed[m]
        # What it chose last it has not computed yet, and may never do.
        spent = max(len(ids) - len(unfed), min(self._chosen[m], len(ids)))
        return spent + self._end_tokens if m in self._heard else spent
