"""How the host's peers wait for their threads: as it does itself on cores of its own, so that only work differs."""

from __future__ import annotations

from engines.waiting import SPIN_MS, set_spin

__all__ = ["spin"]


def spin() -> None:
    """For the models that the calling thread runs."""
    if (choose := set_spin()) is not None:
        choose(SPIN_MS)
