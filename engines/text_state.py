"""The text several models write together, and where each of them stands in it.

Invariant: the ids a member was given emit exactly the text, `bytes(generated_m) = B[:c_m]`, and all cursors
c_m are |B| after every commit. How a commit extends a member's ids is the team's `Feedback`:

append      the new bytes are encoded alone: no id given earlier ever changes and no cache is lost (GaC, …);
rejoin      the same, but what a member has not read when it is wanted again is encoded as one text: for members that
            take turns writing;
retail      they are encoded together with the last word, at most four tokens: near to what the model would
            have written itself, and only the end of its cache is lost;
retokenise  the whole text is encoded anew: what several authors' programs do, for comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from engines.byte_vocab import ByteVocab, Unencodable

__all__ = ["Feedback", "TextState", "extended"]

Feedback = Literal["append", "rejoin", "retail", "retokenise"]

TAIL = 4
"""Tokens that "retail" may encode again."""


class TextState:
    """B and, for each member, its ids so far. `main` is the member whose tokens bound the answer's length."""

    def __init__(self, vocabs: Sequence[ByteVocab], main: int = 0, feedback: Feedback = "append") -> None:
        self._vocabs = tuple(vocabs)
        self._main = main
        self._feedback = feedback
        self.text = bytearray()
        self.ids: tuple[list[int], ...] = tuple([] for _ in vocabs)
        self.unfed: tuple[list[int], ...] = tuple([] for _ in vocabs)
        """Ids committed that the member has not computed yet, oldest first; all of them for one in `stale`."""
        self.stale: set[int] = set()
        """Members that computed ids which are no longer theirs: they have to start anew."""

    @property
    def length(self) -> int:
        """The main member's tokens so far."""
        return len(self.ids[self._main])

    def commit(self, symbol: bytes, room: int | None = None) -> bytes:
        """Append `symbol` for every member. Raises `Unencodable`, with nothing changed, where a vocabulary
        lacks its bytes.

        With `room`, the main member may add at most so many tokens; a longer symbol is cut there. Returns the
        bytes added."""
        main = self._vocabs[self._main]
        ids = main.encode(symbol)
        if room is not None and len(ids) > room:
            symbol = main.text_of(ids[:room])
        grown = [
            extended(vocab, given, symbol, self._feedback)
            for vocab, given in zip(self._vocabs, self.ids, strict=True)
        ]
        self.text += symbol
        for m, (given, unfed, new) in enumerate(zip(self.ids, self.unfed, grown, strict=True)):
            fed = len(given) - len(unfed)
            if m in self.stale or new[:fed] != given[:fed]:
                self.stale.add(m)
                fed = 0
            given[:] = new
            unfed[:] = new[fed:]
        return symbol

    def take_unfed(self, member: int) -> list[int]:
        """The ids the member has to compute to stand at the end of the text; from the first one where it is
        stale, which it then no longer is."""
        self.stale.discard(member)
        if self._feedback == "rejoin" and len(self.unfed[member]) > 1:
            self._encode_together(member)
        ids = self.unfed[member][:]
        self.unfed[member].clear()
        return ids

    def forget(self, member: int) -> None:
        """Let the member have computed nothing."""
        self.unfed[member][:] = self.ids[member]

    def _encode_together(self, member: int) -> None:
        """Encode the unfed ids' text anew, as one."""
        vocab, given, unfed = self._vocabs[member], self.ids[member], self.unfed[member]
        try:
            together = vocab.encode(vocab.text_of(unfed))
        except Unencodable:  # in pieces it can be written, as a whole not: rare bytes
            return
        given[len(given) - len(unfed) :] = together
        unfed[:] = together


def extended(vocab: ByteVocab, given: list[int], symbol: bytes, feedback: Feedback) -> list[int]:
    """A member's ids with `symbol` behind them. Raises `Unencodable`."""
    kept = len(given)
    if feedback == "retokenise":
        kept = 0
    elif feedback == "retail":
        least = max(0, kept - TAIL)
        while kept > least:
            kept -= 1
            if vocab.emits[given[kept]][:1].isspace():
                break
    return given[:kept] + vocab.encode(vocab.text_of(given[kept:]) + symbol)
