"""Dying with one's parent, however it dies: no child of the supervisor outlives it.

On Linux the kernel sends SIGKILL to a child whose parent is gone (`prctl(PR_SET_PDEATHSIG)`), which holds
across `exec`, so it covers programs that know nothing of this module. Elsewhere, and should that fail, our
own children look themselves (`watch`).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
from collections.abc import Callable

__all__ = ["dies_with", "watch"]

PR_SET_PDEATHSIG = 1
LOOK_S = 1.0


def dies_with(parent: int) -> Callable[[], None]:
    """What a child of process `parent` runs between fork and exec.

    The library is loaded before the fork: the child of a process with threads may do little more than system
    calls.
    """
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def bind() -> None:
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before the kernel was asked.
        if os.getppid() != parent:
            os._exit(1)

    return bind


async def watch(parent: int) -> None:
    """End this process once `parent` is not its parent any more."""
    while os.getppid() == parent:  # noqa: ASYNC110 - no event tells of a parent's death
        await asyncio.sleep(LOOK_S)
    os._exit(1)
