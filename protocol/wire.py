"""The bodies of chat completions and their chunks, built and read in one place."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from typing import Any

from protocol.usage import Usage

__all__ = ["chunk", "completion", "completion_id", "replay", "reply_text", "token_logprobs"]


def completion_id() -> str:
    """A fresh `chatcmpl-…` id."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def completion(*, id: str, created: int, model: str, text: str, finish_reason: str, usage: Usage) -> dict[str, Any]:
    """A `chat.completion` of one choice. `created`: seconds since the epoch."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
        "usage": usage.wire(),
    }


def chunk(
    *,
    id: str,
    created: int,
    model: str,
    delta: Mapping[str, Any] | None = None,
    finish_reason: str | None = None,
    index: int = 0,
    **extra: Any,
) -> dict[str, Any]:
    """A `chat.completion.chunk`; with `delta=None` it has no choices, as the closing usage event has."""
    choices = (
        []
        if delta is None
        else [{"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}]
    )
    return {
        "id": id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "choices": choices,
        **extra,
    }


def replay(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A complete answer as the chunks a stream would have had: role, content (and tool calls), finish reason."""
    head = {"id": body["id"], "created": body["created"], "model": body["model"]}
    for choice in body["choices"]:
        index, message = choice["index"], choice["message"]
        yield chunk(**head, index=index, delta={"role": "assistant", "content": ""})
        delta = {key: value for key, value in message.items() if key != "role" and value is not None}
        for i, call in enumerate(delta.get("tool_calls") or ()):
            call.setdefault("index", i)
        content = chunk(**head, index=index, delta=delta)
        content["choices"][0]["logprobs"] = choice.get("logprobs")
        yield content
        yield chunk(**head, index=index, delta={}, finish_reason=choice["finish_reason"])


def reply_text(body: Mapping[str, Any], index: int = 0) -> str:
    """The text of one choice of a `chat.completion`; empty when it has none."""
    return str(body["choices"][index]["message"].get("content") or "")


def token_logprobs(body: Mapping[str, Any], index: int = 0) -> list[float]:
    """Natural-log probabilities of one choice's tokens, in order; empty when the backend sent none."""
    logprobs = body["choices"][index].get("logprobs") or {}
    return [float(token["logprob"]) for token in logprobs.get("content") or ()]
