"""What is wrong with a file, in words: the path, what was found, and the nearest known key."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from protocol.redaction import Redaction
from protocol.settings.whole import Settings

__all__ = ["fault"]

_UNTOLD = ("key", "proxy")
"""Parts of a path whose values may be, or hold, a secret."""


def fault(item: Any) -> str:
    """One line for one validation error: path, what is wrong, and the nearest known key."""
    path = [part for part in item["loc"] if not (isinstance(part, str) and part.startswith("function-"))]
    where = ".".join(map(str, path)) or "(top level)"
    if item["type"] == "value_error":
        # Written by our own validators: those of the whole file name their path themselves.
        message = item["msg"].removeprefix("Value error, ")
        return message if not path else f"{where}: {message}"
    if item["type"] != "extra_forbidden":
        found = item.get("input")
        showable = (
            isinstance(found, (str, int, float, bool))
            and not any(map(where.__contains__, _UNTOLD))
            and "headers" not in where
        )
        shown = f" (found {Redaction().text(repr(found))})" if showable else ""
        return f"{where}: {item['msg']}{shown}"
    known = _known_keys(path[:-1])
    close = get_close_matches(str(path[-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key; {hint}"


def _known_keys(path: list[Any]) -> list[str]:
    """The keys accepted at `path`, read off the settings types themselves."""
    kind: Any = Settings
    parts = iter(path)
    for part in parts:
        field = kind.model_fields.get(part)
        kind = _model_in(field.annotation) if field else None
        if kind is None:
            return []
        if _holds_many(field.annotation):
            next(parts, None)  # the name or index of one of them
    return list(kind.model_fields)


def _holds_many(annotation: Any) -> bool:
    """Whether a field is a mapping or a list of settings, so that a path goes through a name or an index."""
    return get_origin(annotation) in (dict, tuple) or any(map(_holds_many, get_args(annotation)))


def _model_in(annotation: Any) -> Any:
    """The settings type inside an annotation such as `dict[str, Model]` or `tuple[Model, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in reversed(get_args(annotation)):
        if (found := _model_in(argument)) is not None:
            return found
    return None
