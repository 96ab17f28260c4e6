"""The laws of `ensembles.spans.base.SpanFusion`, one function each; every registered span method passes them all.

`play` stands in for the engine host: members are scripts that write words, and a table of likings judges them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ensembles.spans.base import (
    Aside,
    Ask,
    Commit,
    Draft,
    Judge,
    Propose,
    Reading,
    Score,
    Span,
    SpanFusion,
    Survey,
    Task,
    Writing,
    commit,
    propose,
    words,
)

Make = Callable[[], SpanFusion]


@dataclass
class Play:
    """An answer written by `scripts`, a text a member, each a token a letter. A member whose script is not what was
    committed so far goes on behind as much text. `order` lists what was asked."""

    scripts: Sequence[bytes]
    weights: tuple[float, ...] = ()
    text: bytes = b""
    ended: bool = False
    committed: list[Span] = field(default_factory=list)
    proposed: list[Span] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    judged: list[Ask] = field(default_factory=list)

    def run(self, method: SpanFusion, rounds: int = 200) -> Play:
        """Carry out the method's work."""
        weights = self.weights or (1 / len(self.scripts),) * len(self.scripts)
        work = method.write(Task(weights, lambda head, tail: True, (b"",) * len(weights)))
        self.carry(work, rounds)
        work.close()
        return self

    def carry(self, work: Writing, rounds: int) -> None:
        """Up to `rounds` pieces of work, or the end of the answer."""
        result: object = None
        for _ in range(rounds):
            if self.ended:
                return
            result = self.step(work, result)

    def step(self, work: Writing, result: object) -> object:
        """Carry out one piece of work; returns what came of it."""
        asked = work.send(result)
        self.order.append(type(asked).__name__)
        if isinstance(asked, Commit):
            self.committed.append(asked.span)
            self.text += asked.span.text
            self.ended = asked.span.ended
            return None
        if isinstance(asked, Propose):
            spans = tuple(self.draft(draft) for draft in asked.drafts)
            self.proposed += spans
            return spans
        if isinstance(asked, Aside):
            return asked.call()
        if isinstance(asked, Survey):
            return tuple(self.read(member) for member in asked.members)
        assert isinstance(asked, Judge)
        self.judged += asked.asks
        return tuple(self.score(a.member, a.text, a.ended) for a in asked.asks)

    def draft(self, draft: Draft) -> Span:
        """The script's next letters, as far as the stop lets them come."""
        rest = self.scripts[draft.member][len(self.text) + len(draft.after) :]
        for n in range(1, len(rest) + 1):
            size = draft.stop(rest[:n], final=n >= draft.tokens)
            if size is not None:
                return Span(draft.member, rest[:size], False, self.score(draft.member, rest[:size], False))
        return Span(draft.member, rest, True, self.score(draft.member, rest, True))

    def read(self, member: int) -> Reading:
        """A liking of the question drawn from a hash."""
        likings = self.score(member, b"the question", False).logprobs
        return Reading(likings, tuple(0.5 for _ in likings))

    def score(self, member: int, text: bytes, ended: bool) -> Score:
        """A liking drawn from a hash: the same for the same script, text and place."""
        seed = zlib.crc32(self.scripts[member] + b"|" + self.text + b"|" + text)
        likings = tuple(-0.1 - (seed >> i) % 97 / 20 for i in range(len(text) + ended))
        return Score(likings, tuple(10 + p for p in likings), len(text))


ONE, TWO, THREE = (
    b"the cat sat on the mat.\nIt purred .",
    b"a cat is a small animal which purrs",
    b"cats, who knows ?",
)


def check_proposes_before_it_judges_or_commits(make: Make) -> None:
    """There is nothing to judge or keep before something was written."""
    order = Play((ONE, TWO, THREE)).run(make()).order
    assert order[0] == "Propose"


def check_keeps_what_was_proposed(make: Make) -> None:
    """Every committed span is one that a member wrote, and what is judged was written too."""
    play = Play((ONE, TWO, THREE)).run(make())
    written = {(span.text, span.ended) for span in play.proposed}
    assert play.committed
    assert all(span in play.proposed for span in play.committed)
    assert all((ask.text, ask.ended) in written for ask in play.judged)


def check_reaches_an_end(make: Make) -> None:
    """Scripts that end lead to an answer that ends."""
    assert Play((ONE, TWO, THREE)).run(make()).ended


def check_one_member_is_itself(make: Make) -> None:
    """A member alone writes its own text, and nobody is asked what they think of it."""
    play = Play((ONE,)).run(make())
    assert (play.text, play.ended, play.judged) == (ONE, True, [])


def check_copies_are_one(make: Make) -> None:
    """Members that are the same write what one would."""
    assert Play((TWO,) * 3, (0.5, 0.25, 0.25)).run(make()).text == TWO


def check_repeats_itself(make: Make) -> None:
    """The same members give the same answer, from one method or from two."""
    method = make()
    first, second, third = (Play((ONE, TWO, THREE)).run(each) for each in (method, method, make()))
    assert first.committed == second.committed == third.committed


def check_answers_know_nothing_of_each_other(make: Make) -> None:
    """Two answers written in turns are those written one after the other."""
    method = make()
    alone = [Play(scripts).run(method).committed for scripts in ((ONE, TWO), (TWO, THREE))]
    plays = [Play((ONE, TWO)), Play((TWO, THREE))]
    works = [method.write(Task((0.5, 0.5), lambda head, tail: True, (b"", b""))) for _ in plays]
    results: list[object] = [None, None]
    for _ in range(200):
        for i, (play, work) in enumerate(zip(plays, works, strict=True)):
            if not play.ended:
                results[i] = play.step(work, results[i])
    assert [play.committed for play in plays] == alone


CHECKS: tuple[Callable[[Make], None], ...] = (
    check_proposes_before_it_judges_or_commits,
    check_keeps_what_was_proposed,
    check_reaches_an_end,
    check_one_member_is_itself,
    check_copies_are_one,
    check_repeats_itself,
    check_answers_know_nothing_of_each_other,
)


class Blurter:
    """Broken on purpose: commits before anybody wrote."""

    def write(self, task: Task) -> Writing:
        yield from commit(Span(0, b"well", True, Score((-1.0,), (1.0,), 4)))


class Embellisher:
    """Broken on purpose: adds words of its own."""

    def write(self, task: Task) -> Writing:
        while True:
            (span,) = yield from propose(Draft(0, words(1), 64))
            yield from commit(Span(0, span.text + b"!", span.ended, span.score))


class Stutterer:
    """Broken on purpose: hears that the answer ended, and says it did not."""

    def write(self, task: Task) -> Writing:
        while True:
            (span,) = yield from propose(Draft(0, words(1), 64))
            if not span.ended:
                yield from commit(span)


@dataclass
class Grudge:
    """Broken on purpose: remembers from answer to answer whose turn it is."""

    turn: int = 0

    def write(self, task: Task) -> Writing:
        while True:
            self.turn += 1
            (span,) = yield from propose(Draft(self.turn % len(task.weights), words(1), 64))
            yield from commit(span)


BROKEN: tuple[tuple[Callable[[], SpanFusion], Callable[[Make], None]], ...] = (
    (Blurter, check_proposes_before_it_judges_or_commits),
    (Blurter, check_keeps_what_was_proposed),
    (Embellisher, check_keeps_what_was_proposed),
    (Embellisher, check_one_member_is_itself),
    (Embellisher, check_copies_are_one),
    (Stutterer, check_reaches_an_end),
    (Grudge, check_repeats_itself),
    (Grudge, check_answers_know_nothing_of_each_other),
)
