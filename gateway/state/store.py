"""What a shared store can do. Each ask concerns one account or bucket: no operation spans two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.state.accounts import Ask, Grant, Taken, Want

__all__ = ["Store", "StoreAway"]


class StoreAway(Exception):
    """The store did not answer within its bound, or is known not to. `sure`: it is not even asked any more for a
    while."""

    def __init__(self, message: str, *, sure: bool = False) -> None:
        super().__init__(message)
        self.sure = sure


class Store(Protocol):
    """Where accounts and buckets are kept. Every method raises `StoreAway`."""

    async def sync(self, asks: Sequence[Ask]) -> list[Grant]:
        """Apply the asks in order; grants stand in the same order."""
        ...

    async def take(self, want: Want) -> Taken: ...

    async def open(self) -> None:
        """Reach it, before anybody has to wait for that. Whether it answers, the first use tells."""
        ...

    @property
    def degraded(self) -> bool:
        """Whether it is known to be away at present."""
        ...

    async def close(self) -> None: ...
