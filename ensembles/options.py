"""A method's options and parts: a config's become a method, and what several methods check of theirs.

Each function raises `SettingsError` at the first that is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, get_args, runtime_checkable

from protocol.errors import SettingsError
from protocol.methods import Method, load_method

__all__ = ["Learnt", "configured", "number", "one_of", "the_part", "whole"]


@runtime_checkable
class Learnt(Protocol):
    """A method of which parts were trained or measured beforehand."""

    def load(self, members: Sequence[str], artefacts: Mapping[str, Path]) -> Self:
        """The method with its parts, for a team of these models, in order; called once, when the config is read.
        Raises `ChorusError`."""


def configured(method: Method, options: Mapping[str, Any], where: str) -> Any:
    """The method with these options, which stand at `where` in the config."""
    try:
        return load_method(method)(**options)
    except TypeError as error:
        raise SettingsError(f"{where}: {error}.") from None


def the_part(method: str, name: str, artefacts: Mapping[str, Path]) -> Path | None:
    """The folder of the one part that was trained, if the config has it."""
    if strange := artefacts.keys() - {name}:
        raise SettingsError(f"{method} has a {name}, no {', '.join(sorted(strange))}.")
    return artefacts.get(name)


def whole(method: str, low: int, high: int | None = None, **options: object) -> None:
    """Each is an integer from `low` to `high`, both included; without `high` there is no upper bound."""
    for name, value in options.items():
        if type(value) is not int or value < low or (high is not None and value > high):
            bounds = f"of at least {low}" if high is None else f"between {low} and {high}"
            raise SettingsError(f"{method}: {name} must be an integer {bounds}, got {value!r}.")


def number(method: str, low: float, high: float = math.inf, **options: object) -> None:
    """Each is a finite number from `low` to `high`, both included."""
    for name, value in options.items():
        real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not real or not low <= value <= high:  # type: ignore[operator]  # a number by now
            bounds = f"of at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise SettingsError(f"{method}: {name} must be a number {bounds}, got {value!r}.")


def one_of(method: str, choices: Any, **options: object) -> None:
    """Each is among `choices`, a `Literal`."""
    for name, value in options.items():
        if value not in get_args(choices):
            raise SettingsError(f"{method}: {name} must be one of {get_args(choices)}, got {value!r}.")
