"""What a chat request may ask for beyond text, and how to tell that it does: one table.

Who cannot honour a feature refuses it by name, and never drops it: `refuse(body, cannot)` with the features it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from protocol.errors import BadRequest

__all__ = ["FEATURES", "TEXT_ONLY_CANNOT", "Feature", "first_lacking", "refuse"]

Finder = Callable[[Mapping[str, Any]], str | None]
"""Of a request body: the path of the field that asks for the feature, or None."""


def _set(field: str) -> Finder:
    return lambda body: field if body.get(field) else None


def _parts(*kinds: str) -> Finder:
    """Content parts of these types."""

    def find(body: Mapping[str, Any]) -> str | None:
        for i, message in enumerate(body.get("messages") or ()):
            content = message.get("content")
            if isinstance(content, list):
                for j, part in enumerate(content):
                    if part.get("type") in kinds:
                        return f"messages[{i}].content[{j}]"
        return None

    return find


def _structured(body: Mapping[str, Any]) -> str | None:
    wanted = body.get("response_format")
    plain = not wanted or (isinstance(wanted, Mapping) and wanted.get("type", "text") == "text")
    return None if plain else "response_format"


def _spoken(body: Mapping[str, Any]) -> str | None:
    wanted = body.get("modalities")
    return "modalities" if isinstance(wanted, list) and wanted != ["text"] else None


Feature = Literal[
    "tools", "functions", "structured output", "images", "audio input", "files", "audio output", "other modalities",
    "predicted output", "web search", "several choices", "log-probabilities", "token biases",
]  # fmt: skip

FEATURES: Mapping[Feature, Finder] = {
    "tools": _set("tools"),
    "functions": _set("functions"),
    "structured output": _structured,
    "images": _parts("image_url"),
    "audio input": _parts("input_audio"),
    "files": _parts("file"),
    "audio output": _set("audio"),
    "other modalities": _spoken,
    "predicted output": _set("prediction"),
    "web search": _set("web_search_options"),
    "several choices": lambda body: "n" if (body.get("n") or 1) > 1 else None,
    "log-probabilities": _set("logprobs"),
    "token biases": _set("logit_bias"),
}

TEXT_ONLY_CANNOT: Collection[Feature] = (
    "tools", "functions", "images", "audio input", "files", "audio output", "other modalities", "predicted output",
    "web search",
)  # fmt: skip
"""What a model of the engine host, which reads and writes text only, cannot do, nor a fusion."""


def first_lacking(body: Mapping[str, Any], cannot: Collection[Feature]) -> tuple[Feature, str] | None:
    """The first feature in `cannot` that `body` asks for, and the path of the field that does."""
    for feature in cannot:
        if (field := FEATURES[feature](body)) is not None:
            return feature, field
    return None


def refuse(body: Mapping[str, Any], cannot: Collection[Feature], *, who: str) -> None:
    """Raises `BadRequest` naming the field of the first feature in `cannot` that `body` asks for. `who`: whose limit it
    is, in the plural."""
    if (lacking := first_lacking(body, cannot)) is not None:
        feature, field = lacking
        raise BadRequest(
            f"'{field}' asks for {feature}, which {who} do not have.",
            param=field,
            code="unsupported_parameter",
        )
