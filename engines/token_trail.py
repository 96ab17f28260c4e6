"""Log-probabilities of tokens, held back until the text they begin in becomes visible."""

from __future__ import annotations

from collections import deque

from engines.generation import TokenLogprob

__all__ = ["TokenTrail"]


class TokenTrail:
    """Tokens go in as they are chosen and come out with the text; those behind a stop string never do."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenLogprob]] = deque()
        self._end = 0

    def push(self, token: TokenLogprob) -> None:
        """Add a chosen token; one without bytes (a control token) is not text and is left out."""
        if token.token:
            self._waiting.append((self._end, token))
            self._end += len(token.token)

    def release(self, visible: int) -> tuple[TokenLogprob, ...]:
        """The tokens that begin within the first `visible` bytes and were not released before."""
        out = []
        while self._waiting and self._waiting[0][0] < visible:
            out.append(self._waiting.popleft()[1])
        return tuple(out)
