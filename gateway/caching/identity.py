"""When two requests are the same: everything that can move an answer is equal, and the same tenant asks.

The whole body counts but for fields that only say how the answer is sent or who it is for, so that a field we do not
know keeps answers apart rather than mixing them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from protocol.chat import ChatRequest

__all__ = ["Identity", "identity"]

IMMATERIAL = frozenset(
    {
        "stream", "stream_options", "user", "metadata", "store", "service_tier", "safety_identifier",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Identity:
    """`exact` names the request. `wall` names all of it but the words of the last message, `words`: only behind the
    same wall may answers be compared by meaning. `words` is None where the last message is not a user's plain text."""

    exact: str
    wall: str
    words: str | None


def identity(request: ChatRequest, tenant: str, surface: str) -> Identity:
    """The identity of a chat request of `tenant`; what the caller reads it through, the `surface`, changes no answer's
    words but may change its parts, so that it counts too."""
    options = request.options
    body = {key: value for key, value in request.body.items() if key not in IMMATERIAL}
    told = [tenant, surface, options.quality, options.threshold, options.weights]
    return Identity(_digest([*told, body]), *_walled(told, body))


def _walled(told: list[Any], body: dict[str, Any]) -> tuple[str, str | None]:
    messages = body.get("messages") or []
    last: Mapping[str, Any] = messages[-1] if messages else {}
    if last.get("role") != "user" or not isinstance(last.get("content"), str):
        return _digest([*told, body]), None
    bare = {**body, "messages": [*messages[:-1], {**last, "content": None}]}
    return _digest([*told, bare]), last["content"]


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
