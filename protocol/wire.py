"""The bodies of chat completions and their chunks, built and read in one place."""

from __future__ import annotations

import copy
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from protocol.usage import Usage

__all__ = [
    "DEADLINE_HEADER",
    "assembled",
    "chunk",
    "completion",
    "completion_id",
    "replay",
    "reply_text",
    "token_logprobs",
]

DEADLINE_HEADER = "x-chorus-deadline-ms"
"""How many milliseconds a gateway's caller still waits, told to its own engine host: a search ends in time."""


def completion_id() -> str:
    """A fresh `chatcmpl-…` id."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def completion(
    *, id: str, created: int, model: str, text: str, finish_reason: str, usage: Usage
) -> dict[str, Any]:
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
    """A complete answer as the chunks a stream would have had: role, content (and tool calls), finish
    reason."""
    head = {"id": body["id"], "created": body["created"], "model": body["model"]}
    for choice in body["choices"]:
        index, message = choice["index"], choice["message"]
        yield chunk(**head, index=index, delta={"role": "assistant", "content": ""})
        delta = {key: value for key, value in message.items() if key != "role" and value is not None}
        if delta.get("tool_calls"):
            delta["tool_calls"] = [{"index": i, **call} for i, call in enumerate(delta["tool_calls"])]
        content = chunk(**head, index=index, delta=delta)
        content["choices"][0]["logprobs"] = choice.get("logprobs")
        yield content
        yield chunk(**head, index=index, delta={}, finish_reason=choice["finish_reason"])


def reply_text(body: Mapping[str, Any], index: int = 0) -> str:
    """The text of one choice of a `chat.completion`; empty when it has none."""
    return str(body["choices"][index]["message"].get("content") or "")


def token_logprobs(body: Mapping[str, Any], index: int = 0) -> list[float]:
    """Natural-log probabilities of the tokens of one choice's visible text, in order; empty when the
    backend sent none.

    End-of-sequence, stop-string and hidden reasoning tokens, which some backends list too, are left out. A
    tool call has no visible text: all its tokens count. Where tokens do not spell the text, none can be
    told apart and all count.
    """
    choice = body["choices"][index]
    tokens = (choice.get("logprobs") or {}).get("content") or ()
    first, last = 0, len(tokens)
    if not choice["message"].get("tool_calls"):
        text = reply_text(body, index).encode()
        ends = list(accumulate(len(_token_bytes(token)) for token in tokens))
        at = b"".join(map(_token_bytes, tokens)).rfind(text)
        if at >= 0:
            first, last = bisect_right(ends, at), bisect_left(ends, at + len(text)) + 1 if text else 0
    return [float(token["logprob"]) for token in tokens[first:last]]


def _token_bytes(token: Mapping[str, Any]) -> bytes:
    """The bytes of a token of `logprobs.content`: its own where the backend gives them, else those of its
    text."""
    spelled = token.get("bytes")
    return str(token.get("token", "")).encode() if spelled is None else bytes(spelled)


def assembled(chunks: Iterable[Mapping[str, Any]], usage: Usage) -> dict[str, Any] | None:
    """The complete answer whose stream these chunks are; None unless every choice says why it ended.

    Texts grow, lists of numbered parts (tool calls) grow by number, other lists are joined; of what is named once (an
    id, a role) the first counts, also where a backend repeats it.
    """
    head: Mapping[str, Any] = {}
    choices: dict[int, dict[str, Any]] = {}
    for each in chunks:
        head = head or each
        for told in each.get("choices") or ():
            choice = choices.setdefault(
                told["index"], {"message": {}, "logprobs": None, "finish_reason": None}
            )
            _grow(choice["message"], told.get("delta") or {})
            if told.get("logprobs"):
                choice["logprobs"] = choice["logprobs"] or {}
                _grow(choice["logprobs"], told["logprobs"])
            choice["finish_reason"] = told.get("finish_reason") or choice["finish_reason"]
    if not choices or not all(choice["finish_reason"] for choice in choices.values()):
        return None
    for choice in choices.values():
        for call in choice["message"].get("tool_calls") or ():
            call.pop("index", None)
        choice["message"] = {"role": "assistant", "content": None, **choice["message"]}
        if choice["message"].get("tool_calls"):
            choice["message"]["content"] = choice["message"]["content"] or None
    return {
        "id": head["id"],
        "object": "chat.completion",
        "created": head["created"],
        "model": head["model"],
        "choices": [{"index": index, **choices[index]} for index in sorted(choices)],
        "usage": usage.wire(),
    }


_NAMED_ONCE = ("id", "role", "type", "name", "index")


def _grow(whole: dict[str, Any], piece: Mapping[str, Any]) -> None:
    """Add the fields of `piece` to what has come of `whole`."""
    for key, value in piece.items():
        have = whole.get(key)
        if have is None:
            numbered = isinstance(value, list) and any(_number(part) is not None for part in value)
            whole[key] = [] if numbered else copy.deepcopy(value)
            if not numbered:
                continue
            have = whole[key]
        if isinstance(value, list) and isinstance(have, list):
            _join(have, value)
        elif isinstance(value, Mapping) and isinstance(have, dict):
            _grow(have, value)
        elif isinstance(value, str) and isinstance(have, str) and key not in _NAMED_ONCE:
            whole[key] = have + value


def _join(whole: list[Any], pieces: list[Any]) -> None:
    """Add parts to a list: those with a number to the part of that number, others at the end."""
    for piece in pieces:
        number = _number(piece)
        found = [part for part in whole if number is not None and _number(part) == number]
        if found:
            _grow(found[0], piece)
        else:
            whole.append(copy.deepcopy(piece))


def _number(part: Any) -> int | None:
    return part.get("index") if isinstance(part, Mapping) else None
