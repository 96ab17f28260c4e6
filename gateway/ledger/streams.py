"""A streamed answer put together, so that it is kept as a whole one would be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from protocol import sse
from protocol.errors import UpstreamBroken
from protocol.usage import Usage
from protocol.wire import assembled

__all__ = ["put_together"]

Event = Mapping[str, Any]


def put_together(stream: bytes) -> bytes | None:
    """The answer whose events these are, as its surface would have told it whole; None where they are not all of one,
    or of no surface that we know."""
    try:
        payloads = map(sse.event_data, sse.EventSplitter().feed(stream))
        events = [orjson.loads(payload) for payload in payloads if payload and payload != b"[DONE]"]
        body = _body(events) if events else None
    except (orjson.JSONDecodeError, UpstreamBroken, KeyError, TypeError, AttributeError, IndexError):
        return None
    return None if body is None else orjson.dumps(body)


def _body(events: Sequence[Event]) -> Event | None:
    match events[0].get("type"), events[0].get("object"):
        case "message_start", _:
            return _message(events)
        case "response.created", _:
            return events[-1].get("response")
        case _, "text_completion":
            return _completion(events)
        case _:
            usage = next((event["usage"] for event in reversed(events) if event.get("usage")), None)
            return assembled(events, Usage.parse(usage))


def _completion(events: Sequence[Event]) -> Event | None:
    """Of `/v1/completions`."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for told in event.get("choices") or ():
            choice = choices.setdefault(told.get("index", 0), {**told, "text": ""})
            choice["text"] += told.get("text") or ""
            choice["finish_reason"] = told.get("finish_reason") or choice.get("finish_reason")
    whole = choices and all(choice["finish_reason"] for choice in choices.values())
    return {**events[0], "choices": [choices[index] for index in sorted(choices)]} if whole else None


def _message(events: Sequence[Event]) -> Event | None:
    """Of `/v1/messages`."""
    message: dict[str, Any] = dict(events[0]["message"])
    blocks: dict[int, dict[str, Any]] = {}
    for event in events:
        match event.get("type"):
            case "content_block_start":
                blocks[event["index"]] = dict(event["content_block"])
            case "content_block_delta":
                _grow(blocks[event["index"]], event["delta"])
            case "message_delta":
                message |= event["delta"]
                message["usage"] = {**message.get("usage", {}), **(event.get("usage") or {})}
    for block in blocks.values():
        if "arguments" in block:
            block["input"] = orjson.loads(block.pop("arguments") or b"{}")
    message["content"] = [blocks[index] for index in sorted(blocks)]
    return message if events[-1].get("type") == "message_stop" else None


def _grow(block: dict[str, Any], delta: Event) -> None:
    """Add a piece to a content block; a tool's input comes as JSON in pieces."""
    for field in ("text", "thinking", "signature"):
        if field in delta:
            block[field] = block.get(field, "") + delta[field]
    if "partial_json" in delta:
        block["arguments"] = block.get("arguments", "") + delta["partial_json"]
