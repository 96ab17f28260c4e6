"""What `chorus doctor` tells of one thing it looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found. "wrong": it will not work; "note": it works, though not well or not safely."""

    level: Literal["ok", "note", "wrong"]
    what: str
    remedy: str = ""
