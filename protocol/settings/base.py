"""What the sections share: names, and the choice of one thing among several."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

__all__ = ["Name", "Positive", "exactly_one_of"]

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}$")]
Positive = Annotated[float, Field(gt=0)]


def exactly_one_of(value: BaseModel, kinds: tuple[str, ...], told: tuple[str, ...] = ()) -> None:
    """Raises ValueError unless just one of the fields `kinds` is given; `told`: what they are called
    in the message, where that is more than `kinds`."""
    given = [kind for kind in kinds if getattr(value, kind) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise ValueError(f"give exactly one of {', '.join(told or kinds)} (found {found})")
