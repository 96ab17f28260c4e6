"""Values that cost little to make.

    @value                     like @dataclass(frozen=True, slots=True), to the type checker
    class Usage: …             like @dataclass(slots=True), to the interpreter

A frozen dataclass stores each of its fields by a call, which takes ten times as long as an assignment: of a request's
processor time a tenth went into making a handful of them. So whoever writes to a value is stopped by mypy, which all of
this code passes, and not at run time. For what is made for every request; anything else is a frozen dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

__all__ = ["value"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make `cls` a dataclass with slots, equal and hashed by its fields, of which nobody may write to an instance."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
