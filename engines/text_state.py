"""The text several models write together, and where each of them stands in it.

Invariant: the ids a member was given emit exactly the text, `bytes(generated_m) = B[:c_m]`, and all cursors
c_m are |B| after every commit. Commits *append*: the new bytes are encoded alone, so no id given earlier ever
changes and no cache is lost."""

from __future__ import annotations

from collections.abc import Sequence

from engines.byte_vocab import ByteVocab

__all__ = ["TextState"]


class TextState:
    """B and, for each member, its ids so far. `main` is the member whose tokens bound the answer's length."""

    def __init__(self, vocabs: Sequence[ByteVocab], main: int = 0) -> None:
        self._vocabs = tuple(vocabs)
        self._main = main
        self.text = bytearray()
        self.ids: tuple[list[int], ...] = tuple([] for _ in vocabs)
        self.unfed: tuple[list[int], ...] = tuple([] for _ in vocabs)
        """Ids committed that the member has not computed yet, oldest first."""

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
        encoded = [vocab.encode(symbol) for vocab in self._vocabs]
        self.text += symbol
        for given, unfed, new in zip(self.ids, self.unfed, encoded, strict=True):
            given += new
            unfed += new
        return symbol

    def take_unfed(self, member: int) -> list[int]:
        """The ids the member has to compute to stand at the end of the text."""
        ids = self.unfed[member][:]
        self.unfed[member].clear()
        return ids
