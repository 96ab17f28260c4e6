"""What a prompt begins with, as a name: calls with the same one go where its KV cache is warm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import Any

import orjson

__all__ = ["prompt_prefix"]


def prompt_prefix(body: Mapping[str, Any], most: int) -> str | None:
    """A digest of the first `most` bytes of what a model reads: the tools, then the messages up to the user's first, or
    a completion's prompt. None where there is neither.

    Ending with the user's first message, the prefix of a conversation stays the same as it grows.
    """
    digest, left = blake2b(digest_size=16), most
    for piece in _pieces(body):
        digest.update(piece[:left])
        left -= min(left, len(piece))
        if not left:
            break
    return None if left == most else digest.hexdigest()


def _pieces(body: Mapping[str, Any]) -> Iterator[bytes]:
    if tools := body.get("tools"):
        yield orjson.dumps(tools)
    if (prompt := body.get("prompt")) is not None:
        yield prompt.encode(errors="replace") if isinstance(prompt, str) else orjson.dumps(prompt)
    if system := body.get("system"):
        yield orjson.dumps(system)
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, Mapping):
            yield orjson.dumps([message.get("role"), message.get("content")])
            if message.get("role") == "user":
                return
