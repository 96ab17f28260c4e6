"""Several texts written by several engines at once, of which one will be the answer.

A hypothesis needs the logits of those members that write next. Each (member, ids) is a *node*: one engine
request, shared by all hypotheses that stand there, fed where a hypothesis goes on from it, and added anew,
through the prefix cache, where two go on from one. A member that waits costs nothing: its node stays where it
is. Requests that stand idle are given up where others wait for room in the engine, so that searches cannot
block each other.

The client sees the text that all hypotheses begin with, and the rest of the best one at the end. Usage counts
every token that was computed, those of hypotheses that lost included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import TYPE_CHECKING

from engines.decode import Joint, Team
from engines.engine import Engine
from engines.generation import Generation, MemberUsage, Sink
from ensembles.tokens.base import Hypothesis, Search, SearchStep
from protocol.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SearchDecode"]

Node = tuple[int, tuple[int, ...]]
"""A member, and its ids behind the prompt."""


class SearchDecode(Joint):
    """A request that searches; its engine requests are numbered as they are made."""

    def __init__(self, generation: Generation, team: Team, sink: Sink) -> None:
        super().__init__(generation, team, sink)
        assert isinstance(team.fusion, Search)
        self._search = team.fusion
        none = ((),) * len(team.members)
        self._beam = [Hypothesis((b"",) * len(none), none, (0.0,) * len(none), (False,) * len(none))]
        self._finished: list[Hypothesis] = []
        self._rows: dict[Node, Tensor] = {}
        self._requests: dict[int, Node] = {}
        self._computing: set[int] = set()
        self._serial = count()
        self._shown = 0
        self._spent = [0] * len(team.members)

    def start(self) -> None:
        """Queue the members that write first."""
        self.wake()

    def member_requests(self) -> dict[int, tuple[Engine, str]]:
        """Engine and id of every engine request, by its number."""
        return {n: (self._team.members[m].engine, f"{self.id}/{n}") for n, (m, _) in self._requests.items()}

    def advance(self, rows: Mapping[int, Tensor]) -> dict[int, Sequence[int]]:
        """Take rows; once all that the beam needs are there, extend it. Nobody goes on in the same step."""
        for n, row in rows.items():
            if n in self._computing:
                self._computing.discard(n)
                self._rows[self._requests[n]] = row.clone()
                self._spent[self._requests[n][0]] += 1
        while not self.done and not self._missing():
            self._extend()
        return dict.fromkeys(rows, ())

    def wake(self) -> None:
        """Have the rows computed that the beam needs, and give up what it no longer does."""
        wanted = self._missing() - {self._requests[n] for n in self._computing}
        needed = {(m, self._ids(m, h)) for h in self._beam for m in range(len(self._weights))}
        kept, crowded = self._kept(needed), self._crowded()
        for n in [n for n in self._requests if n not in self._computing]:
            m, _ = self._requests[n]
            if n not in kept or m in crowded:
                self._team.members[m].engine.abort([f"{self.id}/{n}"])
                del self._requests[n]
        for m, ids in sorted(wanted):
            engine, prompt = self._team.members[m].engine, self._generation.prompts[m]
            near = self._ancestor((m, ids), needed - {(m, ids)})
            n = next(self._serial) if near is None else near
            if near is not None:
                engine.feed(f"{self.id}/{n}", ids[len(self._requests[n][1]) :])
            else:
                engine.add_forced(f"{self.id}/{n}", [*prompt, *ids])
            self._requests[n] = (m, ids)
            self._computing.add(n)

    def _missing(self) -> set[Node]:
        """The nodes whose rows the beam still needs."""
        nodes = {(m, self._ids(m, h)) for h in self._beam for m in self._search.writers(h)}
        return nodes - self._rows.keys()

    def _kept(self, needed: set[Node]) -> set[int]:
        """Requests from which a needed node can go on."""
        found = {self._nearest(node) for node in needed}
        return {n for n in found if n is not None}

    def _nearest(self, node: Node) -> int | None:
        """The request that holds most of the node's ids, not busy; None where none holds a part."""
        m, ids = node
        best = None
        for n, (member, held) in self._requests.items():
            fits = member == m and n not in self._computing and ids[: len(held)] == held
            if fits and (best is None or len(held) > len(self._requests[best][1])):
                best = n
        return best

    def _ancestor(self, node: Node, others: set[Node]) -> int | None:
        """The nearest request, where no other needed node stands there and something is left to feed."""
        n = self._nearest(node)
        if n is None or self._requests[n] == node or self._requests[n] in others:
            return None
        return n

    def _crowded(self) -> set[int]:
        """Members in whose engine somebody waits for room."""
        return {m for m, member in enumerate(self._team.members) if member.engine.counts()[1]}

    def _ids(self, m: int, hypothesis: Hypothesis) -> tuple[int, ...]:
        vocab, symbols = self._team.members[m].vocab, self._team.union.symbols
        return tuple(i for symbol in hypothesis.written[m] for i in vocab.encode(symbols[symbol]))

    def _extend(self) -> None:
        """The next beam; the end of the answer where there is none, or enough texts are finished."""
        union, beam = self._team.union, tuple(self._beam)
        logits = tuple(
            {m: self._rows[m, self._ids(m, h)] for m in sorted(self._search.writers(h))} for h in beam
        )
        found = self._search.extend(
            SearchStep(union, self._weights, beam, logits, union.order, union.feedable)
        )
        if not found and not self._finished:
            raise MethodError("there is no further text on which the members agree")
        self._beam, self._rows = [], {}
        for hypothesis in found:
            over = all(hypothesis.ended) or self._full(hypothesis)
            (self._finished if over else self._beam).append(hypothesis)
        if not self._beam or len(self._finished) >= self._search.beams:
            self._conclude()
            return
        texts = [h.texts[self._team.main] for h in (*self._beam, *self._finished)]
        self._reveal(_common(texts))

    def _full(self, hypothesis: Hypothesis) -> bool:
        """Whether the main member has written all it may, or some member's context is full."""
        bound, main = self._generation.sampling.max_tokens, self._team.main
        if bound is not None and len(self._ids(main, hypothesis)) >= bound:
            return True
        return any(len(self._ids(m, hypothesis)) >= self._room(m) for m in range(len(self._weights)))

    def _reveal(self, text: bytes, reason: str | None = None) -> None:
        """Add what of `text` was not added before."""
        shown, self._shown = self._shown, max(self._shown, len(text))
        self._add(text[shown:], reason)

    def _conclude(self) -> None:
        """The rest of the best text, and the end."""
        best = max(self._finished, key=lambda h: self._search.score(h, self._weights))
        self._reveal(best.texts[self._team.main], "stop" if all(best.ended) else "length")

    def _member_usage(self, m: int) -> MemberUsage:
        name, prompt = self._team.members[m].engine.spec.name, self._generation.prompts[m]
        return MemberUsage(name, len(prompt), self._spent[m])


def _common(texts: Sequence[bytes]) -> bytes:
    """What all texts begin with."""
    low, high = min(texts), max(texts)
    same = takewhile(lambda pair: pair[0] == pair[1], zip(low, high, strict=False))
    return low[: sum(1 for _ in same)]
