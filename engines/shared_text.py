"""The text that differing prompts have in common: each member's template goes around the same words."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["common_run", "tokens_within"]

LOOKED_AT = 2048
"""Bytes of each prompt looked at: the last ones."""


def common_run(texts: Sequence[bytes]) -> bytes:
    """The longest run of bytes that ends up in all `texts` (in the last 2 KiB of each); of several, any."""
    tails = [text[-LOOKED_AT:] for text in texts]

    def of_length(n: int) -> set[bytes]:
        runs = [{tail[i : i + n] for i in range(len(tail) - n + 1)} for tail in tails]
        return set.intersection(*runs)

    low, high, best = 0, min(map(len, tails)), b""
    while low < high:  # a common run of n bytes holds one of n - 1
        middle = (low + high + 1) // 2
        found = of_length(middle)
        if found:
            low, best = middle, min(found)
        else:
            high = middle - 1
    return best


def tokens_within(run: bytes, pieces: Sequence[bytes]) -> list[tuple[int, int]]:
    """Which of the tokens that emit `pieces` lie wholly in the last occurrence of `run`: (index, byte offset in
    the run), in order. Tokens that emit nothing are left out."""
    text = b"".join(pieces)
    start = text.rfind(run)
    out, at = [], 0
    for i, piece in enumerate(pieces):
        if piece and run and start <= at and at + len(piece) <= start + len(run):
            out.append((i, at - start))
        at += len(piece)
    return out
