"""What litellm gives back, as OpenAI's bodies and chunks.

litellm's objects follow OpenAI's shapes with fields of their own between them. Kept is what OpenAI's protocol has and
what clients of reasoning models know (`reasoning_content`, and Anthropic's signed `thinking_blocks`, which have to come
back in the next turn); left out are nulls and litellm's notes to itself.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from typing import Any

from protocol.usage import Usage

__all__ = ["completion_of", "embeddings_of", "part_of", "text_of", "usage_of"]

_NOTES = frozenset({"provider_specific_fields"})


def completion_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """A complete answer as a `chat.completion`."""
    choices = [
        {
            "index": choice.get("index", i),
            "message": {"content": None, **_clean(choice.get("message") or {})},
            "logprobs": choice.get("logprobs"),
            "finish_reason": choice.get("finish_reason") or "stop",
        }
        for i, choice in enumerate(answer.get("choices") or ())
    ]
    return {
        **_head(answer, "chat.completion"),
        "choices": choices,
        "usage": usage_of(answer.get("usage")).wire(),
    }


def part_of(chunk: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """A piece of a streamed answer as a `chat.completion.chunk` that begins with `head`."""
    choices = [
        {
            "index": choice.get("index") or 0,
            "delta": _clean(choice.get("delta") or {}),
            "logprobs": choice.get("logprobs"),
            "finish_reason": choice.get("finish_reason"),
        }
        for choice in chunk.get("choices") or ()
    ]
    return {**head, "choices": choices}


def text_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """A `chat.completion`, or a chunk of one, as a `text_completion`."""
    choices = [
        {
            "index": choice["index"],
            "text": (choice.get("message") or choice.get("delta") or {}).get("content") or "",
            "logprobs": None,
            "finish_reason": choice["finish_reason"],
        }
        for choice in body["choices"]
    ]
    return {**body, "object": "text_completion", "choices": choices}


def embeddings_of(answer: Mapping[str, Any], *, encoded: bool) -> dict[str, Any]:
    """An answer to an embedding request; vectors as base64 where `encoded`."""
    rows = [row["embedding"] for row in answer.get("data") or ()]
    usage = usage_of(answer.get("usage"))
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _base64(row) if encoded else row}
            for i, row in enumerate(rows)
        ],
        "model": answer.get("model"),
        "usage": {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.prompt_tokens},
    }


def head_of(chunk: Mapping[str, Any]) -> dict[str, Any]:
    """What every chunk of a stream has in common, from its first."""
    return _head(chunk, "chat.completion.chunk")


def usage_of(told: Any) -> Usage:
    """Usage as litellm tells it; what was put into a cache has names of its own there."""
    if not isinstance(told, Mapping):
        return Usage()
    details = dict(told.get("prompt_tokens_details") or {})
    written = details.get("cache_write_tokens") or details.get("cache_creation_tokens")
    details["cache_write_tokens"] = written or told.get("cache_creation_input_tokens")
    kinds = details.get("cache_creation_token_details") or {}
    details["cache_write_1h_tokens"] = kinds.get("ephemeral_1h_input_tokens")
    return Usage.parse({**told, "prompt_tokens_details": details})


def _head(answer: Mapping[str, Any], kind: str) -> dict[str, Any]:
    head = {
        "id": answer.get("id"),
        "object": kind,
        "created": answer.get("created"),
        "model": answer.get("model"),
    }
    if answer.get("system_fingerprint"):
        head["system_fingerprint"] = answer["system_fingerprint"]
    return head


def _clean(message: Any) -> Any:
    """Without nulls, empty lists and notes, at every depth."""
    if isinstance(message, Mapping):
        return {
            key: _clean(value)
            for key, value in message.items()
            if key not in _NOTES and value is not None and value != []
        }
    return [_clean(item) for item in message] if isinstance(message, list) else message


def _base64(vector: Any) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
