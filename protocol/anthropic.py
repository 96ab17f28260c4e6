"""Anthropic's Messages API in the words of chat completions, and back.

What has no counterpart is refused by name, never dropped, but for hints that change no answer: `cache_control`,
`metadata` beside `user_id`, `service_tier`, and thinking that only its maker can read (`redacted_thinking`,
signatures). Fields we do not know go on to the backend as they are.

Differences a caller may see: the text of a failed tool (`is_error`) begins with "Error: ", since chat's tool messages
have no such flag; and in a stream `message_start` tells zero input tokens, because they are known only at the end,
where `message_delta` tells them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from protocol.chat import MAX_INTEGER, MAX_MESSAGES, MAX_TOOLS, ChatRequest, check_chat, check_integer
from protocol.errors import BadRequest, ChorusError, UpstreamBroken
from protocol.telling import fresh_id, object_at, refuse_fields, renamed, sized_list, string_at, thought_of
from protocol.usage import Usage

__all__ = ["ANTHROPIC", "Message", "check_message", "message_usage"]

ERROR_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "invalid_request_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""HTTP status → Anthropic's `error.type`; every other status is an `api_error`."""

STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}

_STATE = "it needs state or tools that only Anthropic's own servers have"
REFUSED: Mapping[str, str] = {
    "container": _STATE,
    "context_management": _STATE,
    "mcp_servers": _STATE,
    "inference_geo": "this backend does not promise where it computes",
    "user_profile_id": _STATE,
    "workspace_id": _STATE,
}
_TRANSLATED = frozenset(
    {
        "messages",
        "system",
        "max_tokens",
        "stop_sequences",
        "tools",
        "tool_choice",
        "thinking",
        "output_config",
    }
    | {"metadata", "cache_control", "diagnostics", "service_tier", "speed"}
)
"""Fields that must not reach a chat backend as they are."""

EFFORTS: Sequence[tuple[int, str]] = ((10_000, "high"), (4_000, "medium"), (0, "low"))
"""Least `thinking.budget_tokens` → `reasoning_effort`: chat has levels where Messages has a number of tokens."""


class _Wording:
    request_id_header = "request-id"

    def error_body(self, error: ChorusError, request_id: str) -> Mapping[str, Any]:
        kind = ERROR_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": error.message}, "request_id": request_id}

    def failed(self, error: ChorusError, request_id: str) -> bytes:
        return _event(self.error_body(error, request_id))


ANTHROPIC = _Wording()
"""How Messages words errors: `{"type": "error", …}`, and in a stream `event: error` with nothing after it."""


class Message(_Wording):
    """One request to `/v1/messages` and its answer. Raises `BadRequest` for what cannot be asked of a chat model."""

    def __init__(self, asked: ChatRequest) -> None:
        self.request = ChatRequest(_to_chat(asked.body), asked.options)
        self._began = False
        self._open: str | None = None  # kind of the content block being told
        self._index = -1
        self._tool: int | None = None  # chat's index of the tool call being told
        self._tools: set[int] = set()
        self._stop = "end_turn"
        self._stop_sequence: str | None = None

    def whole(self, completion: Mapping[str, Any]) -> dict[str, Any]:
        choice = completion["choices"][0]
        message = choice["message"]
        blocks: list[dict[str, Any]] = []
        if thought := thought_of(message):
            blocks.append({"type": "thinking", "thinking": thought, "signature": ""})
        if text := message.get("content") or message.get("refusal"):
            blocks.append({"type": "text", "text": text, "citations": None})
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            blocks.append(
                {
                    "type": "tool_use",
                    "id": call.get("id") or fresh_id("toolu"),
                    "name": function.get("name", ""),
                    "input": _arguments(function.get("arguments")),
                }
            )
        reason, sequence = _stopped(choice, bool(message.get("tool_calls")), bool(message.get("refusal")))
        return {
            **_head(completion),
            "content": blocks,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(Usage.parse(completion.get("usage"))),
        }

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        return b"".join(map(_event, self._told(chunk)))

    def end(self, usage: Usage, extra: Mapping[str, Any]) -> bytes:
        events = [
            *self._begin({}),
            *self._close(),
            {
                "type": "message_delta",
                "delta": {"stop_reason": self._stop, "stop_sequence": self._stop_sequence},
                "usage": _usage(usage),
                **extra,
            },
            {"type": "message_stop"},
        ]
        return b"".join(map(_event, events))

    # ------------------------------------------------------------------------------------------------ the stream

    def _told(self, chunk: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._begin(chunk)
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue  # Messages has no `n`
            delta = choice.get("delta") or {}
            if thought := thought_of(delta):
                yield from self._switch("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta({"type": "thinking_delta", "thinking": thought})
            if text := delta.get("content") or delta.get("refusal"):
                yield from self._switch("text", {"type": "text", "text": "", "citations": None})
                yield self._delta({"type": "text_delta", "text": text})
            for call in delta.get("tool_calls") or ():
                yield from self._tool_call(call)
            if choice.get("finish_reason"):
                refused = bool(delta.get("refusal"))
                self._stop, self._stop_sequence = _stopped(choice, bool(self._tools), refused)

    def _tool_call(self, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        index = call.get("index") or 0
        function = call.get("function") or {}
        if index != self._tool or self._open != "tool_use":
            if index in self._tools:
                raise UpstreamBroken("The backend went back to a tool call that it had ended.")
            yield from self._close()
            self._tools.add(index)
            self._tool = index
            yield from self._switch(
                "tool_use",
                {
                    "type": "tool_use",
                    "id": call.get("id") or fresh_id("toolu"),
                    "name": function.get("name") or "",
                    "input": {},
                },
            )
        if arguments := function.get("arguments"):
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})

    def _begin(self, chunk: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if self._began:
            return
        self._began = True
        head = {**_head(chunk), "content": [], "stop_reason": None, "stop_sequence": None}
        yield {"type": "message_start", "message": {**head, "usage": _usage(Usage())}}

    def _switch(self, kind: str, block: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Open a content block, unless one of this kind is open."""
        if self._open == kind:
            return
        yield from self._close()
        self._open = kind
        self._index += 1
        yield {"type": "content_block_start", "index": self._index, "content_block": block}

    def _close(self) -> Iterator[dict[str, Any]]:
        if self._open is not None:
            self._open = None
            yield {"type": "content_block_stop", "index": self._index}

    def _delta(self, delta: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}


def message_usage(usage: Mapping[str, Any] | None) -> Usage:
    """Tokens told in Anthropic's words (a `usage` object), in ours: what a cache holds is part of the prompt."""
    usage = usage or {}
    cached = int(usage.get("cache_read_input_tokens") or 0)
    written = int(usage.get("cache_creation_input_tokens") or 0)
    written_1h = int((usage.get("cache_creation") or {}).get("ephemeral_1h_input_tokens") or 0)
    return Usage(
        int(usage.get("input_tokens") or 0) + written + cached,
        int(usage.get("output_tokens") or 0),
        cached,
        written_tokens=written,
        written_1h_tokens=min(written, written_1h),
    )


def check_message(body: dict[str, Any], *, counting: bool = False) -> None:
    """Check what Messages requires whoever answers. `counting`: the body is only to be counted. Raises
    `BadRequest`."""
    if not counting:
        check_integer(body, "max_tokens", 1, MAX_INTEGER)
        if body.get("max_tokens") is None:
            raise BadRequest("'max_tokens' is required.", param="max_tokens")
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        raise BadRequest("'messages' is required and must be a non-empty list.", param="messages")
    sized_list(body["messages"], "messages", MAX_MESSAGES)
    if not isinstance(body.get("stream", False), (bool, type(None))):
        raise BadRequest("'stream' must be true or false.", param="stream")


# ------------------------------------------------------------------------------------------------------ the request


def _to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    refuse_fields(body, REFUSED)
    if body.get("speed") not in (None, "standard"):
        raise BadRequest("'speed' must be 'standard' here.", param="speed")
    chat = {key: value for key, value in body.items() if key not in _TRANSLATED}
    chat["messages"] = [*_system(body.get("system")), *_messages(body["messages"])]
    optional = {
        "max_tokens": body.get("max_tokens"),
        "stop": body.get("stop_sequences"),
        "tools": _tools(body.get("tools")),
        "user": object_at(body, "metadata").get("user_id"),
        **_tool_choice(body),
        **_thinking(body),
    }
    chat |= {key: value for key, value in optional.items() if value is not None}
    with renamed({"stop": "stop_sequences"}):
        check_chat(chat)
    return chat


def _system(system: Any) -> list[dict[str, Any]]:
    if system is None:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}] if system else []
    texts = [
        string_at(block, "text", f"system[{i}]")
        for i, block in enumerate(sized_list(system, "system", MAX_MESSAGES))
    ]
    return [{"role": "system", "content": "\n\n".join(texts)}] if texts else []


def _messages(messages: Any) -> Iterator[dict[str, Any]]:
    for i, message in enumerate(sized_list(messages, "messages", MAX_MESSAGES)):
        where = f"messages[{i}]"
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise BadRequest(f"'{where}.role' must be user or assistant.", param=f"{where}.role")
        if isinstance(content, str):
            yield {"role": role, "content": content}
        elif isinstance(content, list):
            blocks = sized_list(content, f"{where}.content", MAX_MESSAGES)
            yield from _assistant(blocks, where) if role == "assistant" else _user(role, blocks, where)
        else:
            raise BadRequest(
                f"'{where}.content' must be a string or a list of blocks.", param=f"{where}.content"
            )


def _assistant(blocks: Sequence[Mapping[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    texts, thoughts, calls = [], [], []
    for i, block in enumerate(blocks):
        at = f"{where}.content[{i}]"
        match block.get("type"):
            case "text":
                texts.append(string_at(block, "text", at))
            case "thinking":
                thoughts.append(string_at(block, "thinking", at))
            case "redacted_thinking":
                pass
            case "tool_use":
                arguments = orjson.dumps(object_at(block, "input", at)).decode()
                function = {"name": string_at(block, "name", at), "arguments": arguments}
                calls.append({"id": string_at(block, "id", at), "type": "function", "function": function})
            case kind:
                raise _unknown_block(kind, at)
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if calls:
        message["tool_calls"] = calls
    elif message["content"] is None:
        message["content"] = ""
    yield message


def _user(role: str, blocks: Sequence[Mapping[str, Any]], where: str) -> Iterator[dict[str, Any]]:
    """Tool results become messages of their own, before what the user says beside them; their images, for which
    chat's tool messages have no place, go to the user's message."""
    parts: list[dict[str, Any]] = []
    for i, block in enumerate(blocks):
        at = f"{where}.content[{i}]"
        if block.get("type") != "tool_result":
            parts.append(_part(block, at))
            continue
        content = block.get("content") or ""
        if not isinstance(content, str):
            told = [
                _part(b, f"{at}.content[{j}]")
                for j, b in enumerate(sized_list(content, f"{at}.content", MAX_MESSAGES))
            ]
            parts.extend(part for part in told if part["type"] != "text")
            content = "\n".join(part["text"] for part in told if part["type"] == "text")
        error = "Error: " if block.get("is_error") else ""
        yield {
            "role": "tool",
            "tool_call_id": string_at(block, "tool_use_id", at),
            "content": error + content,
        }
    if len(parts) == 1 and parts[0]["type"] == "text":
        yield {"role": role, "content": parts[0]["text"]}
    elif parts:
        yield {"role": role, "content": parts}


def _part(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": string_at(block, "text", where)}
    if kind in ("image", "document"):
        source = object_at(block, "source", where)
        if source.get("type") == "text":
            return {"type": "text", "text": string_at(source, "data", f"{where}.source")}
        if source.get("type") == "base64":
            media = string_at(source, "media_type", f"{where}.source")
            url = f"data:{media};base64,{string_at(source, 'data', f'{where}.source')}"
            if kind == "document":
                return {
                    "type": "file",
                    "file": {"filename": block.get("title") or "document", "file_data": url},
                }
            return {"type": "image_url", "image_url": {"url": url}}
        if source.get("type") == "url" and kind == "image":
            return {"type": "image_url", "image_url": {"url": string_at(source, "url", f"{where}.source")}}
        raise BadRequest(
            f"'{where}.source.type' {str(source.get('type'))[:64]!r} is not supported here.",
            param=f"{where}.source.type",
        )
    raise _unknown_block(kind, where)


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    made = []
    for i, tool in enumerate(sized_list(tools, "tools", MAX_TOOLS)):
        where = f"tools[{i}]"
        if tool.get("type") not in (None, "custom"):
            raise BadRequest(
                f"'{where}.type' {str(tool['type'])[:64]!r} is a tool of Anthropic's own; here only custom tools work.",
                param=f"{where}.type",
            )
        function = {
            "name": string_at(tool, "name", where),
            "parameters": object_at(tool, "input_schema", where),
        }
        function |= {key: tool[key] for key in ("description", "strict") if key in tool}
        made.append({"type": "function", "function": function})
    return made or None


def _tool_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    choice = object_at(body, "tool_choice")
    if not choice:
        return {}
    kinds = {"auto": "auto", "any": "required", "none": "none"}
    kind = choice.get("type")
    if kind == "tool":
        name = string_at(choice, "name", "tool_choice")
        told: dict[str, Any] = {"tool_choice": {"type": "function", "function": {"name": name}}}
    elif isinstance(kind, str) and kind in kinds:
        told = {"tool_choice": kinds[kind]}
    else:
        raise BadRequest("'tool_choice.type' must be auto, any, tool or none.", param="tool_choice.type")
    return {**told, "parallel_tool_calls": False} if choice.get("disable_parallel_tool_use") else told


def _thinking(body: Mapping[str, Any]) -> dict[str, Any]:
    """`reasoning_effort` and `response_format`."""
    told: dict[str, Any] = {}
    thinking, output = object_at(body, "thinking"), object_at(body, "output_config")
    if thinking.get("type") == "enabled":
        budget = thinking.get("budget_tokens")
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise BadRequest("'thinking.budget_tokens' must be an integer.", param="thinking.budget_tokens")
        told["reasoning_effort"] = next((level for least, level in EFFORTS if budget >= least), "low")
    elif thinking.get("type") not in (None, "disabled", "adaptive"):
        raise BadRequest("'thinking.type' must be enabled, adaptive or disabled.", param="thinking.type")
    if output.get("effort") is not None:
        told["reasoning_effort"] = string_at(output, "effort", "output_config")
    if form := object_at(output, "format", "output_config"):
        if form.get("type") != "json_schema":
            raise BadRequest(
                "'output_config.format.type' must be json_schema.", param="output_config.format.type"
            )
        schema = {
            "name": "answer",
            "schema": object_at(form, "schema", "output_config.format"),
            "strict": True,
        }
        told["response_format"] = {"type": "json_schema", "json_schema": schema}
    return told


def _unknown_block(kind: Any, where: str) -> BadRequest:
    return BadRequest(f"'{where}.type' {str(kind)[:64]!r} is not supported here.", param=f"{where}.type")


# ------------------------------------------------------------------------------------------------------- the answer


def _head(completion: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": fresh_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": completion.get("model") or "",
    }


def _stopped(choice: Mapping[str, Any], called: bool, refused: bool) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`; vLLM tells the stop string that matched as the choice's `stop_reason`."""
    if refused:
        return "refusal", None
    matched = choice.get("stop_reason")
    reason = STOP_REASONS.get(str(choice.get("finish_reason")), "end_turn")
    if reason == "end_turn" and called:
        return "tool_use", None
    if reason == "end_turn" and isinstance(matched, str):
        return "stop_sequence", matched
    return reason, None


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens - usage.written_tokens,
        "cache_creation_input_tokens": usage.written_tokens,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


def _arguments(text: Any) -> Any:
    """A tool call's arguments as an object; what a model wrote that is none is handed on under `arguments`."""
    try:
        parsed = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        parsed = None
    return parsed if isinstance(parsed, dict) else {"arguments": text}


def _event(body: Mapping[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (
        str(body["type"]).encode(),
        orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY),
    )
