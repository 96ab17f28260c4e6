"""What is wrong with a file, in words: the path, what was found, and the nearest known key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from protocol.redaction import Redaction
from protocol.settings.document import Document
from protocol.settings.whole import Settings

__all__ = ["faults", "plainly"]

_UNTOLD = ("key", "proxy")
"""Parts of a path whose values may be, or hold, a secret."""

_WORDS = (
    (r"Field required", "is required"),
    (r"Input should be a valid (?:tuple|list)", "must be a list"),
    (r"Input should be a valid dictionary(?: or instance of \w+)?", "must be a mapping of keys to values"),
    (r"Input should be a valid boolean.*", "must be true or false"),
    (r"Input should be a valid integer.*", "must be a whole number"),
    (r"Input should be a valid number.*", "must be a number"),
    (r"Input should be a valid string", "must be text"),
    (r"\w+ should have at least (\d+) items? after validation, not (\d+)", r"needs at least \1, has \2"),
    (r"(?:Input|String) should", "must"),
)
"""What pydantic says of Python's types → what it means to who writes YAML."""


def faults(error: ValidationError, raw: Any, document: Document | None) -> list[str]:
    """One line for each fault of `raw`: its line in the `document` it came from, path, what is wrong, and the nearest
    known key."""
    items = error.errors()
    paths = [_written(item["loc"], raw) for item in items]
    told = []
    for item, path in zip(items, paths, strict=True):
        # What became of a section whose parts were refused is no further fault.
        if item["type"] == "too_short" and any(
            len(other) > len(path) and other[: len(path)] == path for other in paths
        ):
            continue
        line = f"line {document.line(path)}: " if document is not None and path else ""
        told.append(line + _fault(item, path))
    return told


def _written(location: Iterable[str | int], raw: Any) -> list[str | int]:
    """The path of a fault as the file has it: without the steps of validation, and without the index of the one thing
    that was written without a list."""
    path: list[str | int] = []
    for part in _steps(location):
        if isinstance(part, int) and not isinstance(raw, list):
            continue
        path.append(part)
        if isinstance(raw, dict):
            raw = raw.get(part)
        elif isinstance(raw, list) and isinstance(part, int) and part < len(raw):
            raw = raw[part]
    return path


def _steps(location: Iterable[str | int]) -> list[str | int]:
    return [
        part for part in location if not (isinstance(part, str) and part.startswith(("function-", "[key]")))
    ]


def _fault(item: Any, path: list[str | int]) -> str:
    """Path, what is wrong, and the nearest known key."""
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
        return f"{where}: {plainly(item['msg'])}{shown}"
    known = _known_keys(_steps(item["loc"])[:-1])
    close = get_close_matches(str(path[-1]), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key; {hint}"


def plainly(message: str) -> str:
    """What pydantic says, without Python's words."""
    for theirs, ours in _WORDS:
        message = re.sub(f"^{theirs}", ours, message)
    return message


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
