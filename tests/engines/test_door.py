"""Who is let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.door import Door
from engines.engine import EngineSpec
from engines.generation import Generation, Sampling
from protocol.errors import UpstreamBusy

SPECS = [EngineSpec(name, Path(), max_model_len=100, max_running=1, max_waiting=2) for name in "ab"]


def _enter(door: Door, id: str, *members: str, prompt: int = 10, answer: int | None = 20) -> None:
    prompts = ((1,) * prompt,) * len(members)
    door.enter(Generation(id, "m", prompts, Sampling(max_tokens=answer)), members)


def test_places() -> None:
    """A request takes a place in each of its engines, or none at all, and gives all back, once."""
    door = Door(SPECS)
    for id in "123":
        _enter(door, id, "a")
    with pytest.raises(UpstreamBusy, match="'a' has 3"):
        _enter(door, "4", "b", "a")
    for id in "567":
        _enter(door, id, "b")
    door.leave("1")
    door.leave("1")
    door.leave("5")
    _enter(door, "8", "b", "a")
    with pytest.raises(UpstreamBusy):
        _enter(door, "9", "a")


def test_cache_that_is_promised() -> None:
    """Prompt and longest answer count, the whole context where no length is named; one alone always gets in."""
    door = Door(SPECS)
    door.room["a"] = 90.0
    _enter(door, "1", "a", answer=None)
    with pytest.raises(UpstreamBusy, match="KV cache"):
        _enter(door, "2", "a")
    door.leave("1")
    _enter(door, "3", "a")
    _enter(door, "4", "a", answer=50)
    with pytest.raises(UpstreamBusy, match="KV cache"):
        _enter(door, "5", "a", answer=1, prompt=1)
