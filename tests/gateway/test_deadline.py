"""One timer for a tree of calls."""

from __future__ import annotations

import asyncio

import pytest

from gateway.deadline import Deadline


async def test_no_call_is_made_once_it_is_over() -> None:
    """A call after the deadline is late before it is made, and leaves nothing behind in its task."""
    loop = asyncio.get_running_loop()
    deadline = Deadline(loop.time(), lambda: ValueError("late"))
    deadline.start()
    with pytest.raises(ValueError, match="late"), deadline:
        await asyncio.sleep(60)
    with pytest.raises(ValueError, match="late"), deadline:
        raise KeyError("refused without waiting")
    await asyncio.sleep(0)
    deadline.close(None)
