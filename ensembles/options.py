"""What several methods check of their options: each function raises `SettingsError` at the first that is wrong."""

from __future__ import annotations

from typing import Any, get_args

from protocol.errors import SettingsError

__all__ = ["one_of", "whole"]


def whole(method: str, low: int, high: int | None = None, **options: object) -> None:
    """Each is an integer from `low` to `high`, both included; without `high` there is no upper bound."""
    for name, value in options.items():
        if type(value) is not int or value < low or (high is not None and value > high):
            bounds = f"of at least {low}" if high is None else f"between {low} and {high}"
            raise SettingsError(f"{method}: {name} must be an integer {bounds}, got {value!r}.")


def one_of(method: str, choices: Any, **options: object) -> None:
    """Each is among `choices`, a `Literal`."""
    for name, value in options.items():
        if value not in get_args(choices):
            raise SettingsError(f"{method}: {name} must be one of {get_args(choices)}, got {value!r}.")
