"""One text written by several engines in spans: members draft, judge and go on from what was kept.

The method is a generator (`ensembles.spans.base`); this carries out what it yields. Each member has a `Seat`. Its
work waits in a line of its own, so members draft and judge in the same steps, beside everything else in the
batch; one that has nothing to do stalls.

A member that wrote what was kept goes on from its own tokens; for the others the text is retailed: encoded
together with their last word. So a member alone writes exactly what it would have written."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engines.byte_vocab import Unencodable
from engines.choose import Chooser
from engines.decode import Joint, Team
from engines.engine import Engine
from engines.generation import Generation, MemberUsage, Sink, Written
from engines.penalties import Penalties
from engines.seat import Seat, common_length
from engines.text_state import extended
from ensembles.spans.base import Ask, Commit, Draft, Judge, Propose, Score, Span, SpanFusion, Task, most_spent
from protocol.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SpanDecode"]


class SpanDecode(Joint):
    """A request that is written in spans; each member has one engine request."""

    def __init__(self, generation: Generation, team: Team, sink: Sink) -> None:
        super().__init__(generation, team, sink)
        assert isinstance(team.fusion, SpanFusion)
        self._seats = [
            Seat(member.engine, f"{self.id}/{m}", prompt)
            for m, (member, prompt) in enumerate(zip(team.members, generation.prompts, strict=True))
        ]
        self._text = b""
        self._ids: list[dict[bytes, list[int]]] = [{b"": []} for _ in team.members]
        """By member and text, from the answer's first byte: how the member holds it."""
        self._choosers: dict[tuple[int, float, float], Chooser] = {}
        self._penalties = [Penalties.of(generation.sampling.extra, prompt) for prompt in generation.prompts]
        self._lines: list[deque[_Drafting | _Reading]] = [deque() for _ in team.members]
        self._round: list[_Drafting | _Reading] = []
        self._spent = [0 for _ in team.members]
        prompts = tuple(
            member.vocab.text_of(prompt)
            for member, prompt in zip(team.members, generation.prompts, strict=True)
        )
        self._work = team.fusion.write(Task(self._weights, self._splits, prompts))

    def start(self) -> None:
        """Begin with what the method wants first."""
        self._go_on(None)
        self.wake()

    def member_requests(self) -> dict[int, tuple[Engine, str]]:
        """Engine and request id of every member that has joined."""
        return {m: (seat.engine, seat.name) for m, seat in enumerate(self._seats) if seat.started}

    def advance(self, rows: Mapping[int, Tensor]) -> dict[int, Sequence[int]]:
        """Take the logits of members, shape (|V_m|,) each. All of them stall: what comes next is fed by `wake`."""
        for m, row in rows.items():
            if (found := self._seats[m].take(row)) is not None:
                self._turn(m, found)
        if self._round and not any(self._lines):
            self._finish_round()
        return dict.fromkeys(rows, ())

    def wake(self) -> None:
        """Set members going: called between two steps."""
        for seat in self._seats:
            seat.wake()

    def yield_room(self, engine: Engine) -> bool:
        """Give up the seats of members that nobody asks anything."""
        given = [seat.give_up() for seat in self._seats if seat.engine is engine]
        return any(given)

    # ── the round
    # ─────────────────────────────────────────────────────────────────────────────────────────────

    def _go_on(self, result: Any) -> None:
        """Tell the method what came of its work, and take on what it wants next."""
        while not self.done:
            try:
                work = self._work.send(result)
            except StopIteration:
                self._end("stop")
                return
            result = None
            if isinstance(work, Commit):
                self._commit(work.span)
                continue
            if self._overspent():
                self._end("length")
                return
            if isinstance(work, Propose):
                self._round = [self._drafting(draft) for draft in work.drafts]
            elif isinstance(work, Judge):
                self._round = [self._reading(ask) for ask in work.asks]
            else:
                raise MethodError(f"the method yielded a {type(work).__name__}")
            if not self._round:
                raise MethodError("the method asked for nothing")
            for job in self._round:
                self._lines[job.member].append(job)
            for m in {job.member for job in self._round}:
                self._seats[m].ask(*self._lines[m][0].wanted())
            return

    def _overspent(self) -> bool:
        """Whether a member has worked more for this answer than it is worth: a budget was reserved for so much."""
        most = most_spent(len(self._seats))
        # A first span is let come, however short the answer.
        asked = self._generation.sampling.max_tokens if self._written else None
        return any(
            spent >= most * (self._room(m) if asked is None else asked) for m, spent in enumerate(self._spent)
        )

    def _turn(self, m: int, rows: list[Tensor]) -> None:
        """Let the job a member is at look at its rows, and go on to the next when it is through."""
        line = self._lines[m]
        if line[0].take(rows):
            line.popleft()
        if line:
            self._seats[m].ask(*line[0].wanted())

    def _finish_round(self) -> None:
        jobs, self._round = self._round, []
        if isinstance(jobs[0], _Reading):
            self._go_on([job.score() for job in jobs if isinstance(job, _Reading)])
            return
        drafts = [job for job in jobs if isinstance(job, _Drafting)]
        for job in drafts:  # all before any is looked up: its author holds a text as it wrote it
            self._ids[job.member].setdefault(job.before + job.text, job.ids)
        spans = [job.span() for job in drafts if self._fits(job.before + job.text)]
        if spans:
            self._go_on(tuple(spans))
        else:  # nothing that every member could hold
            self._end("length")

    def _fits(self, text: bytes) -> bool:
        """Whether every member can write `text` and has room for it."""
        try:
            return all(len(self._ids_of(m, text)) < self._room(m) for m in range(len(self._team.members)))
        except Unencodable:
            return False

    def _ids_of(self, m: int, text: bytes) -> list[int]:
        """How member m holds `text`. Raises `Unencodable`."""
        known = self._ids[m]
        if text not in known:
            added = text[len(self._text) :]
            vocab = self._team.members[m].vocab
            known[text] = extended(vocab, known[self._text], added, self._team.feedback)
        return known[text]

    def _splits(self, head: bytes, tail: bytes) -> bool:
        vocabs = {id(member.vocab): member.vocab for member in self._team.members}.values()
        try:
            return all(v.encode(head) + v.encode(tail) == v.encode(head + tail) for v in vocabs)
        except Unencodable:
            return False

    def _drafting(self, draft: Draft) -> _Drafting:
        asked, m = self._generation.sampling, draft.member
        temperature = asked.temperature if draft.temperature is None else draft.temperature
        if asked.temperature == 0:
            temperature = 0.0
        top_p = asked.top_p if draft.top_p is None else draft.top_p
        key = (m, temperature, top_p)
        if key not in self._choosers:
            seed = None if asked.seed is None else asked.seed * len(self._seats) + m
            self._choosers[key] = Chooser.of(replace(asked, temperature=temperature, top_p=top_p, seed=seed))
        before = self._text + draft.after
        ids = self._ids_of(m, before)
        most = min(draft.tokens, self._room(m) - 1 - len(ids))
        return _Drafting(self, draft, before, ids, max(1, most), self._choosers[key])

    def _reading(self, ask: Ask) -> _Reading:
        before = self._text + ask.after
        ids = self._ids_of(ask.member, before)
        return _Reading(self, ask, ids, self._ids_of(ask.member, before + ask.text))

    # ── the text
    # ──────────────────────────────────────────────────────────────────────────────────────────────

    def _commit(self, span: Span) -> None:
        """Go on from a span, and end where the answer ends."""
        if not span.text and not span.ended:
            raise MethodError("the method went on from an empty span")
        team, bound = self._team, self._generation.sampling.max_tokens
        text = self._text + span.text
        ids = self._ids_of(team.main, text)
        cut = bound is not None and len(ids) > bound
        if cut:
            text = max(self._text, team.members[team.main].vocab.text_of(ids[:bound]))
        # How drafts that were not taken up were written is forgotten.
        self._ids = [{text: self._ids_of(m, text)} for m in range(len(self._seats))]
        added, self._text = text[len(self._text) :], text
        self._written.append(Written(team.members[span.author].engine.spec.name, len(added)))
        reason = None
        if span.ended and not cut:
            reason = "stop"
        elif (bound is not None and len(ids) >= bound) or self._full():
            reason = "length"
        self._add(added, reason)

    def _full(self) -> bool:
        return any(len(self._ids_of(m, self._text)) + 1 >= self._room(m) for m in range(len(self._seats)))

    def _end(self, reason: str, shown: str = "") -> None:
        self._work.close()
        super()._end(reason, shown)

    def _member_usage(self, m: int) -> MemberUsage:
        seat = self._seats[m]
        prompt = len(self._generation.prompts[m]) if seat.started else 0
        return MemberUsage(seat.engine.spec.name, prompt, self._spent[m], seat.cached)


class _Drafting:
    """A member writes on, token by token, until the draft's stop says how much of it is the span."""

    def __init__(
        self, decode: SpanDecode, draft: Draft, before: bytes, ids: list[int], most: int, chooser: Chooser
    ) -> None:
        self.member, self.before, self.text, self.ids = draft.member, before, b"", list(ids)
        self._decode, self._draft, self._most, self._chooser = decode, draft, most, chooser
        self._own = decode._team.readers[draft.member]  # noqa: SLF001  part of the same machine
        self._emits = decode._team.members[draft.member].vocab.emits  # noqa: SLF001
        self._start = len(ids)
        self._reads: list[tuple[float, float]] = []
        self._ended = False
        self._again: _Reading | None = None
        """The span ends within one of the author's tokens: it reads its own words once more."""

    def wanted(self) -> tuple[list[int], int]:
        """What the member's seat has to hold, and the first row wanted."""
        return self._again.wanted() if self._again else (self.ids, len(self.ids))

    def take(self, rows: list[Tensor]) -> bool:
        """Look at the rows; True when the span is complete."""
        if self._again is not None:
            return self._again.take(rows)
        penalties = self._decode._penalties[self.member]  # noqa: SLF001
        chosen = self._own.choose(rows[-1], self._chooser, penalties, self.ids)
        self._reads += self._own.read(rows, [chosen])
        self._decode._spent[self.member] += 1  # noqa: SLF001
        if chosen is None:
            self._ended = True
            return True
        self.ids.append(chosen)
        self.text += self._emits[chosen]
        final = len(self.ids) - self._start >= self._most
        size = self._draft.stop(self.text, final=final)
        if size is None and not final:
            return False
        self._cut(size or len(self.text))
        return self._again is None

    def _cut(self, size: int) -> None:
        self.text = whole_characters(self.text[:size])
        kept, emitted = self._start, 0
        while emitted < len(self.text):
            emitted += len(self._emits[self.ids[kept]])
            kept += 1
        del self.ids[kept:], self._reads[kept - self._start :]
        if emitted > len(self.text):
            decode, m = self._decode, self.member
            base = self.ids[: self._start]
            self.ids = decode._ids_of(m, self.before + self.text)  # noqa: SLF001
            self._again = _Reading(decode, Ask(m, self.text), base, self.ids)

    def span(self) -> Span:
        """What came of it."""
        score = self._again.score() if self._again else _score(self._reads, self.text)
        return Span(self.member, self.text, self._ended, score)


class _Reading:
    """A member reads a text in one forward, its own tokens forced."""

    def __init__(self, decode: SpanDecode, ask: Ask, before: list[int], ids: list[int]) -> None:
        self.member = ask.member
        self._decode, self._ask, self._ids = decode, ask, ids
        # Where the text changes how the member's last word is written, that word is read again with it.
        self._first = common_length(before, ids)
        self._reads: list[tuple[float, float]] = []

    def wanted(self) -> tuple[list[int], int]:
        """What the member's seat has to hold, and the first row wanted: what comes last needs no row after it."""
        return (self._ids if self._ask.ended else self._ids[:-1]), self._first

    def take(self, rows: list[Tensor]) -> bool:
        """Look at the rows; always complete."""
        ids: list[int | None] = [*self._ids[self._first :]]
        ids += [None] if self._ask.ended else []
        self._reads = self._decode._team.readers[self.member].read(rows, ids)  # noqa: SLF001
        self._decode._spent[self.member] += len(ids)  # noqa: SLF001
        return True

    def score(self) -> Score:
        """How the member reads it."""
        return _score(self._reads, self._ask.text)


def _score(reads: Sequence[tuple[float, float]], text: bytes) -> Score:
    return Score(tuple(p for p, _ in reads), tuple(z for _, z in reads), len(text))


def whole_characters(text: bytes) -> bytes:
    """`text` without a character at its end of which bytes are missing; all of it where nothing would be left."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # no continuation byte: the last character begins here
            size = 1 if byte < 0xC0 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return (text[:-back] or text) if size > back else text
    return text
