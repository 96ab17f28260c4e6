"""One text written by several engines, of which one writes ahead and the others check its draft in one
forward.

The text is that of `FusedDecode` under the same fusion: token for token when greedy, in distribution when
sampled. Members take turns. A member whose turn it is reads, in one forward, whatever it has not seen of text
and draft; every drafted symbol whose row all members have by then is verified against the fused distribution
r; then the member, which stands at the end of the draft, drafts the next symbols from its own distribution q.
So the forward that verifies also drafts, and nobody's forward is for checking alone.

Verification: x drawn from q stays with probability min(1, r(x) / q(x)), else a symbol drawn from
norm(max(0, r − q)) takes its place and the rest of the draft is void. Either way the symbol has distribution r
(Leviathan et al., 2023, arXiv 2211.17192). Greedy, q and r are one-hot: x stays where it is the fused choice.
Members that read a void draft forget it: the engine rewinds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from engines.decode import Team
from engines.engine import Engine
from engines.fused_decode import FusedDecode
from engines.generation import Generation, Sink
from ensembles.tokens.base import Ask, Drafts, Mixture, Step
from protocol.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SpecDecode"]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A symbol written ahead, and where it was drawn and not merely the best, its drafter's distribution over
    the symbols."""

    symbol: int
    q: Tensor | None


class SpecDecode(FusedDecode):
    """The host's view of a request whose members draft; `advance` and `wake` as in `FusedDecode`."""

    def __init__(self, generation: Generation, team: Team, sink: Sink) -> None:
        super().__init__(generation, team, sink)
        assert isinstance(team.fusion, Drafts)
        turns = team.fusion.turns(len(team.members))
        self._order = [m for m, _ in turns]
        self._lengths = dict(turns)
        self._draft: list[_Draft] = []
        # _seen[m][i]: the member's logits before the i-th drafted symbol, or at the draft's end.
        self._seen: list[list[Tensor]] = [[] for _ in team.members]
        # What each member's engine request holds behind its prompt.
        self._held: list[list[int]] = [[] for _ in team.members]
        self._left = 0

    def start(self) -> None:
        """Queue all members: the first symbol is chosen by all, as the prompts have to be read anyway."""
        self._wanted = set(self._order)
        self.wake()

    def advance(self, rows: Mapping[int, Tensor]) -> dict[int, Sequence[int]]:
        """Take the row at the end of what the member read; with those on the way, that lets the text go on."""
        out: dict[int, Sequence[int]] = dict.fromkeys(rows, ())
        for m, row in rows.items():
            if m in self._computing:  # else a preempted member recomputed what it knows: no news
                self._computing.discard(m)
                between = self._team.members[m].engine.seen(self.name_of(m))
                self._seen[m] += [between[i] for i in sorted(between)] + [row.clone()]
                if not self._computing:
                    out[m] = self._go_on(m)
        return out

    def wake(self) -> None:
        """Let the member whose turn it is read text and draft: called between two steps."""
        for m in sorted(self._wanted):
            member = self._team.members[m]
            held, ids, starts = self._held[m], list(self._state.ids[m]), []
            for draft in self._draft:
                starts.append(len(ids))
                ids += self._ids(m, draft)
            # The rows to come are those before each further draft, and the one at the end.
            unseen = [*starts, len(ids)][len(self._seen[m]) :]
            keep = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(held, ids, strict=False)))
            if m in self._started:
                # The token before the first of them has to be computed, if only again: what was void may
                # begin as what came in its place does, where a symbol is several tokens.
                keep = min(keep, unseen[0] - 1)
            prompt = self._generation.prompts[m]
            if keep < len(held) and not member.engine.rewind(self.name_of(m), len(prompt) + keep):
                member.engine.abort([self.name_of(m)])
                self._restarts[m] += 1
                self._started.discard(m)
            watch = [len(prompt) + start for start in unseen[:-1]]
            if m in self._started:
                member.engine.watch(self.name_of(m), watch)
                member.engine.feed(self.name_of(m), ids[keep:])
            else:
                self._started.add(m)
                member.engine.add_forced(self.name_of(m), [*prompt, *ids], watch)
            self._held[m] = ids
            self._team.tally.forwards += 1
        self._computing |= self._wanted
        self._wanted = set()

    def lose(self, engine: Engine) -> bool:
        """Never: every drafted symbol is verified with all members."""
        return False

    def _leave(self, m: int) -> None:
        super()._leave(m)
        self._held[m] = []

    def _give(self, member: int) -> None:
        """Make it the member's turn."""
        self._wanted = {member}
        self._left = self._lengths[member]

    def _go_on(self, m: int) -> list[int]:
        """Verify, draft, and pass the turn; the ids with which the member goes on where it keeps it."""
        if not self._verify():
            self._draft.clear()
            for rows in self._seen:
                rows.clear()
            if not self.done:
                self._give(self._order[0])
            return []
        if self.done:
            return []
        if self._may_draft() and self._fits(draft := self._propose(m)):
            self._draft.append(draft)
            self._team.tally.drafted += 1
            self._left -= 1
            if self._may_draft():
                ids = self._ids(m, draft)
                self._held[m] += ids
                self._computing.add(m)
                self._team.tally.forwards += 1
                return ids
        self._give(min(self._order, key=lambda k: len(self._seen[k])))
        return []

    def _verify(self) -> bool:
        """Commit what all members have rows for. False where a draft was replaced, or the text ended."""
        while all(self._seen) and not self.done:
            rows = {m: seen[0] for m, seen in enumerate(self._seen)}
            if not self._draft:  # everybody stands at the end: a plain step
                self._write(*self._decided(rows))
                return False
            draft = self._draft[0]
            self._team.tally.verified += 1
            if draft.q is None:
                decision, symbol = self._decided(rows)
            else:
                decision, symbol = self._judge(rows, draft.symbol, draft.q)
            self._write(decision, symbol)
            if symbol != draft.symbol:
                return False
            self._team.tally.accepted += 1
            del self._draft[0]
            for seen in self._seen:
                del seen[0]
        return not self.done

    def _write(self, decision: Mixture, symbol: int) -> None:
        self._team.tally.written += 1
        self._commit(decision, symbol)

    def _decided(self, rows: Mapping[int, Tensor]) -> tuple[Mixture, int]:
        found = self._next(rows)
        if isinstance(found, Ask):
            raise MethodError(f"the fusion asked for {sorted(found.members)} having all members")
        return found

    def _judge(self, rows: Mapping[int, Tensor], drafted: int, q: Tensor) -> tuple[Mixture, int]:
        """The drafted symbol, or the one that takes its place."""
        decision = self._fusion.decide(Step(self._team.union, self._weights, self._readable(rows)))
        if isinstance(decision, Ask):
            raise MethodError(f"the fusion asked for {sorted(decision.members)} having all members")
        r = self._chooser.distribution(*self._wished(decision))
        if decision.symbols is not None:
            r = r.new_zeros(self._team.union.size).index_copy_(0, decision.symbols, r)
        if self._chooser.uniform(q) * float(q[drafted]) < float(r[drafted]):
            return decision, drafted
        rest = (r - q).clamp_min(0.0)
        # Rounding alone can leave nothing: then r and q are one distribution.
        return decision, self._chooser.draw(rest if float(rest.sum()) > 0 else r)

    def _propose(self, m: int) -> _Draft:
        """A symbol of the member's own, at the end of the draft."""
        union = self._team.union
        p = union.project(m, self._seen[m][len(self._draft)])
        if self._chooser.greedy:
            return _Draft(self._chooser.choose(p, union.feedable), None)
        q = self._chooser.distribution(p, union.feedable)
        return _Draft(self._chooser.draw(q), q)

    def _ids(self, m: int, draft: _Draft) -> list[int]:
        return self._team.members[m].vocab.encode(self._team.union.symbols[draft.symbol])

    def _may_draft(self) -> bool:
        """Whether the member whose turn it is writes another symbol: neither is its turn over, nor the
        answer."""
        if not self._left or (self._draft and self._draft[-1].symbol == self._team.union.eos):
            return False
        bound, main = self._generation.sampling.max_tokens, self._team.main
        ahead = sum(len(self._ids(main, draft)) for draft in self._draft)
        return bound is None or self._state.length + ahead < bound

    def _fits(self, draft: _Draft) -> bool:
        """Whether every context has room for the draft with this symbol more."""
        return all(
            len(ids) + sum(len(self._ids(m, one)) for one in [*self._draft, draft]) < self._room(m)
            for m, ids in enumerate(self._state.ids)
        )

    def _tokens(self, m: int) -> int:
        """The text's tokens, which every member had a say in; void drafts are not counted."""
        return len(self._state.ids[m]) + self._end_tokens
