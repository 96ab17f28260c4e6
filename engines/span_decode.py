"""One text written by several engines in spans: members draft, judge and go on from what was kept.

The method is a generator (`ensembles.spans.base`); this carries out what it yields. Each member has a `Seat`. Its
work waits in a line of its own, so members draft and judge in the same steps, beside everything else in the
batch; one that has nothing to do stalls.

A member that wrote what was kept goes on from its own tokens; for the others the text is retailed: encoded
together with their last word. So a member alone writes exactly what it would have written.

A search drafts from many places (`Draft.after`) before anything is kept: each is a *stand*, and how a member holds a
stand follows from how it holds the stand before it, so that going from branch to branch computes what differs."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engines.byte_vocab import Unencodable
from engines.choose import Chooser
from engines.decode import Joint, Team
from engines.engine import Engine
from engines.generation import Generation, MemberUsage, Sampling, Sink, Written
from engines.penalties import Penalties
from engines.seat import Seat, common_length
from engines.text_state import extended
from ensembles.spans.base import (
    Aside,
    Ask,
    Commit,
    Draft,
    Judge,
    Left,
    Propose,
    Reading,
    Score,
    Span,
    SpanFusion,
    Survey,
    Task,
    most_spent,
)
from protocol.errors import MethodError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SpanDecode"]

Beside = Callable[[Callable[[], Any], Callable[[Any], None]], None]
"""Has the first done by another thread, and the second told what came of it, in the step loop's thread."""
PIECE = 32
"""Tokens of a prompt read at once: a row of logits is as wide as the vocabulary."""


class SpanDecode(Joint):
    """A request that is written in spans; each member has one engine request."""

    def __init__(
        self, generation: Generation, team: Team, sink: Sink, beside: Beside, clock: Callable[[], float]
    ) -> None:
        super().__init__(generation, team, sink)
        assert isinstance(team.fusion, SpanFusion)
        prompts = tuple(zip(team.members, generation.prompts, strict=True))
        self._seats = [Seat(a.engine, f"{self.id}/{m}", prompt) for m, (a, prompt) in enumerate(prompts)]
        # Behind the members' own, a seat of each for reading its prompt, of which it holds the first token.
        self._seats += [Seat(a.engine, f"{self.id}/{m}p", ids[:1]) for m, (a, ids) in enumerate(prompts)]
        self._members = range(len(prompts))
        self._surveyed: set[int] = set()
        self._text = b""
        self._ids: list[dict[bytes, list[int]]] = [{b"": []} for _ in self._members]
        """By member and text, from the answer's first byte: how the member holds it."""
        self._stands = {b""}
        """Texts from which drafts were written."""
        self._tails: dict[bytes, bytes] = {}
        """By text that a stop string ended: what of that string was written behind it."""
        self._choosers: dict[tuple[int, float, float], Chooser] = {}
        self._penalties = [Penalties.of(generation.sampling.extra, prompt) for prompt in generation.prompts]
        self._lines: list[deque[_Job]] = [deque() for _ in self._seats]
        self._round: list[_Job] = []
        self._spent = [0 for _ in self._members]
        self._most = most_spent(len(prompts), team.fusion)
        self._beside, self._clock = beside, clock
        asked = generation.sampling
        self._work = team.fusion.write(
            Task(
                self._weights,
                self._splits,
                tuple(member.vocab.text_of(prompt) for member, prompt in prompts),
                generation.question,
                _seed(asked),
                asked.max_tokens,
                self._left,
            )
        )

    def start(self) -> None:
        """Begin with what the method wants first."""
        self._go_on(None)
        self.wake()

    def member_requests(self) -> dict[int, tuple[Engine, str]]:
        """Engine and request id of every seat that is taken."""
        return {k: (seat.engine, seat.name) for k, seat in enumerate(self._seats) if seat.started}

    def advance(self, rows: Mapping[int, Tensor]) -> dict[int, Sequence[int]]:
        """Take the logits of seats, shape (|V_m|,) each. All of them stall: what comes next is fed by `wake`."""
        for k, row in rows.items():
            if (found := self._seats[k].take(row)) is not None:
                self._turn(k, found)
        if self._round and not any(self._lines):
            self._finish_round()
        return dict.fromkeys(rows, ())

    def wake(self) -> None:
        """Set members going: called between two steps."""
        for k, seat in enumerate(self._seats):
            if k >= len(self._members) and not self._lines[k]:
                seat.leave()
            seat.wake()

    def yield_room(self, engine: Engine) -> bool:
        """Give up the seats of members that nobody asks anything."""
        given = [seat.give_up() for seat in self._seats if seat.engine is engine]
        return any(given)

    # ── the round ───────────────────────────────────────────────────────────────────────────────────────────

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
            if isinstance(work, Aside):
                self.waits = True
                self._beside(work.call, self._heard)
                return
            if self._overspent():
                self._end("length")
                return
            if isinstance(work, Propose):
                self._round = [self._drafting(draft) for draft in work.drafts]
            elif isinstance(work, Judge):
                self._round = [self._reading(ask) for ask in work.asks]
            elif isinstance(work, Survey):
                self._round = [_Surveying(self, m) for m in work.members]
            else:
                raise MethodError(f"the method yielded a {type(work).__name__}")
            if not self._round:
                raise MethodError("the method asked for nothing")
            for job in self._round:
                self._lines[job.seat].append(job)
            for k in {job.seat for job in self._round}:
                self._seats[k].ask(*self._lines[k][0].wanted())
            return

    def _heard(self, result: Any) -> None:
        """What was done aside is done: called between two steps."""
        self.waits = False
        self._go_on(result)
        self.wake()

    def _left(self) -> Left:
        """What may still be spent. A budget was reserved for so many tokens."""
        tokens = self._unspent(self._generation.sampling.max_tokens)
        return Left(tokens, self._generation.deadline - self._clock())

    def _unspent(self, asked: int | None) -> int:
        return min(
            self._most * (self._room(m) if asked is None else asked) - self._spent[m] for m in self._members
        )

    def _overspent(self) -> bool:
        """Whether a member has worked more for this answer than it is worth."""
        # A first span is let come, however short the answer.
        return self._unspent(self._generation.sampling.max_tokens if self._written else None) <= 0

    def _turn(self, k: int, rows: list[Tensor]) -> None:
        """Let the job a seat is at look at its rows, and go on to the next when it is through."""
        line = self._lines[k]
        if line[0].take(rows):
            line.popleft()
        if line:
            self._seats[k].ask(*line[0].wanted())

    def _finish_round(self) -> None:
        jobs, self._round = self._round, []
        if isinstance(jobs[0], _Reading):
            self._go_on([job.score() for job in jobs if isinstance(job, _Reading)])
            return
        if isinstance(jobs[0], _Surveying):
            self._go_on(tuple(job.reading() for job in jobs if isinstance(job, _Surveying)))
            return
        drafts = [job for job in jobs if isinstance(job, _Drafting)]
        for job in drafts:  # all before any is looked up: its author holds a text as it wrote it
            self._ids[job.member].setdefault(job.before + job.text, job.ids)
        spans = [job.span() for job in drafts if self._fits(job.before + job.text)]
        if spans:
            self._go_on(tuple(spans))
        elif any(job.before != self._text for job in drafts):
            self._go_on(())
        else:  # nothing that every member could hold
            self._end("length")

    def _fits(self, text: bytes) -> bool:
        """Whether every member can write `text` and has room for it."""
        try:
            return all(len(self._ids_of(m, text)) < self._room(m) for m in self._members)
        except Unencodable:
            return False

    def _ids_of(self, m: int, text: bytes) -> list[int]:
        """How member m holds `text`. Raises `Unencodable`."""
        known = self._ids[m]
        if text not in known:
            # The committed text is a stand, and known: here it ends.
            stand = max((s for s in self._stands if s != text and text.startswith(s)), key=len)
            vocab = self._team.members[m].vocab
            held = self._ids_of(m, stand)
            known[text] = extended(vocab, held, text[len(stand) :], self._team.feedback)
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
            seed = None if asked.seed is None else asked.seed * len(self._members) + m
            self._choosers[key] = Chooser.of(replace(asked, temperature=temperature, top_p=top_p, seed=seed))
        before = self._text + draft.after
        ids = self._ids_of(m, before)
        self._stands.add(before)
        most = min(draft.tokens, self._room(m) - 1 - len(ids))
        return _Drafting(self, draft, before, ids, max(1, most), self._choosers[key])

    def _reading(self, ask: Ask) -> _Reading:
        before = self._text + ask.after
        ids = self._ids_of(ask.member, before)
        return _Reading(self, ask, ids, self._ids_of(ask.member, before + ask.text))

    # ── the text ────────────────────────────────────────────────────────────────────────────────────────────

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
        held = [self._ids_of(m, text) for m in self._members]
        # How drafts were written is forgotten, but for those that go on from a stand ahead.
        ahead = {stand for stand in self._stands if stand.startswith(text)}
        self._ids = [
            {t: ids for t, ids in known.items() if any(t != s and t.startswith(s) for s in ahead)}
            | {text: held[m]}
            for m, known in enumerate(self._ids)
        ]
        self._stands = ahead | {text}
        added, self._text = text[len(self._text) :], text
        self._written.append(Written(team.members[span.author].engine.spec.name, len(added)))
        reason = None
        if span.ended and not cut:
            reason = "stop"
        elif (bound is not None and len(ids) >= bound) or self._full():
            reason = "length"
        self._add(added + (self._tails.get(text, b"") if reason == "stop" else b""), reason)

    def _stopped(self, before: bytes, text: bytes) -> tuple[int, int] | None:
        """From where to where in `text`, which is written behind `before`, a stop string stands that ends in it; None
        without one. One that begins before it stands from 0."""
        asked = self._generation.sampling
        longest = max(map(len, asked.stops), default=0)
        lead = (asked.before + before)[-longest:]
        found = [
            (at, at + len(stop))
            for stop in asked.stops
            if (at := (lead + text).find(stop, max(0, len(lead) - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        start, end = min(found)
        return max(0, start - len(lead)), end - len(lead)

    def _full(self) -> bool:
        return any(len(self._ids_of(m, self._text)) + 1 >= self._room(m) for m in self._members)

    def _end(self, reason: str, shown: str = "") -> None:
        self._work.close()
        super()._end(reason, shown)

    def _member_usage(self, m: int) -> MemberUsage:
        seat, surveyed = self._seats[m], m in self._surveyed
        prompt = len(self._generation.prompts[m]) if seat.started or surveyed else 0
        # Who read its prompt finds it in the cache when it begins to write: it was computed all the same.
        return MemberUsage(seat.engine.spec.name, prompt, self._spent[m], 0 if surveyed else seat.cached)


class _Drafting:
    """A member writes on, token by token, until the draft's stop says how much of it is the span."""

    def __init__(
        self, decode: SpanDecode, draft: Draft, before: bytes, ids: list[int], most: int, chooser: Chooser
    ) -> None:
        self.member = self.seat = draft.member
        self.before, self.text, self.ids = before, b"", list(ids)
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
        if self._draft.stops and (stopped := self._decode._stopped(self.before, self.text)):  # noqa: SLF001
            start, end = stopped
            tail, self._ended = self.text[start:end], True
            self._cut(start)
            self._decode._tails[self.before + self.text] = tail  # noqa: SLF001
            return self._again is None
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
        self.member = self.seat = ask.member
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


class _Surveying:
    """A member reads its prompt, some tokens at a time."""

    def __init__(self, decode: SpanDecode, member: int) -> None:
        self.member, self.seat = member, len(decode._members) + member  # noqa: SLF001
        decode._surveyed.add(member)  # noqa: SLF001
        self._own = decode._team.readers[member]  # noqa: SLF001
        self._emits = decode._team.members[member].vocab.emits  # noqa: SLF001
        self._ids = list(decode._generation.prompts[member][1:])  # noqa: SLF001
        self._at = 0
        self._reads: list[tuple[float, float]] = []

    def wanted(self) -> tuple[list[int], int]:
        """What the member's second seat has to hold, and the first row wanted: what comes last needs no row after."""
        return self._ids[: max(0, min(self._at + PIECE, len(self._ids)) - 1)], self._at

    def take(self, rows: list[Tensor]) -> bool:
        """Look at the rows; True when the prompt is read. Control tokens are no words to be expected."""
        for row, i in zip(rows, self._ids[self._at :], strict=False):
            if self._emits[i]:
                ((logprob, _),) = self._own.read([row], [i])
                self._reads.append((logprob, self._own.peak(row)))
        self._at += PIECE
        return self._at >= len(self._ids)

    def reading(self) -> Reading:
        """What came of it."""
        return Reading(tuple(p for p, _ in self._reads), tuple(peak for _, peak in self._reads))


_Job = _Drafting | _Reading | _Surveying


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


def _seed(asked: Sampling) -> int:
    """For the method's own chance. A greedy answer without a seed is the same each time, whoever was drawn to write."""
    if asked.seed is not None:
        return asked.seed
    return 0 if asked.temperature == 0 else random.getrandbits(63)
