"""OpenAI's Responses API in the words of chat completions, and back: its stateless part.

A field that needs a store of past responses, or tools that run at the provider, is refused by name (`REFUSED`); a
backend that has the API itself gets the request as it is instead. `store` counts as false where it is not sent,
and the answer says so. `metadata` is echoed; `include: ["reasoning.encrypted_content"]` and `reasoning.summary`
ask for what chat does not tell and are met by nothing. Fields we do not know go on to the backend as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from protocol import sse
from protocol.chat import MAX_MESSAGES, MAX_TOOLS, ChatRequest, check_chat
from protocol.errors import BadRequest, ChorusError
from protocol.telling import fresh_id, object_at, refuse_fields, renamed, sized_list, string_at, thought_of
from protocol.usage import Usage

__all__ = ["ResponseTelling", "check_response", "response_usage"]

_STATE = "it needs a store of past responses, which no backend of this model has"
REFUSED: Mapping[str, str] = {
    "previous_response_id": _STATE,
    "conversation": _STATE,
    "store": f"{_STATE}; send false",
    "background": _STATE,
    "background_options": _STATE,
    "prompt": "stored prompts live at the provider",
    "context_management": _STATE,
    "moderation": "chat models do not moderate; ask /v1/moderations",
    "access_programs": "no backend of this model has them",
}
_TRANSLATED = frozenset(REFUSED) | {
    "input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "include", "metadata",
    "truncation", "stream_options", "max_tool_calls", "prompt_cache_options", "image", "top_logprobs",
}  # fmt: skip
INCLUDABLE = ("message.output_text.logprobs", "reasoning.encrypted_content")
ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "service_tier": "default",
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""What a response repeats of its request → what it says where nothing was sent."""


@dataclass(slots=True)
class _Item:
    """One output item while it is streamed: the item so far, and the text of its part."""

    index: int
    body: dict[str, Any]
    part: str | None = None
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)


class ResponseTelling:
    """One request to `/v1/responses` and its answer. Raises `BadRequest` for what cannot be asked of a chat
    model. `created`: seconds since the epoch, told where the backend tells none."""

    request_id_header = "x-request-id"

    def __init__(self, asked: ChatRequest, created: int = 0) -> None:
        self.request = ChatRequest(_to_chat(asked.body), asked.options)
        self._asked, self._created = asked.body, created
        self._id = fresh_id("resp")
        self._model = asked.model
        self._sequence = -1
        self._began = False
        self._item: _Item | None = None
        self._tool: int | None = None
        self._output: list[dict[str, Any]] = []
        self._finish = "stop"

    def error_body(self, error: ChorusError, request_id: str) -> Mapping[str, Any]:
        return error.body()

    def failed(self, error: ChorusError, request_id: str) -> bytes:
        """`response.failed`; nothing comes after it."""
        known = error.code in ("rate_limit_exceeded", "invalid_prompt", "server_error")
        told = {"code": error.code if known else "server_error", "message": error.message}
        body = {**self._response("failed", self._output, None), "error": told}
        return b"".join(
            map(self._numbered, [*self._begin({}), {"type": "response.failed", "response": body}])
        )

    def whole(self, completion: Mapping[str, Any]) -> dict[str, Any]:
        self._head(completion)
        choice = completion["choices"][0]
        message = choice["message"]
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        output = []
        if thought := thought_of(message):
            output.append(_reasoning(thought, "completed"))
        if (refusal := message.get("refusal")) or message.get("content"):
            part = _refusal(refusal) if refusal else _text(message["content"], logprobs)
            output.append(_message([part], "completed"))
        for call in message.get("tool_calls") or ():
            function = call.get("function") or {}
            output.append(
                _call(call.get("id"), function.get("name"), function.get("arguments") or "", "completed")
            )
        usage = Usage.parse(completion.get("usage"))
        return self._ended(str(choice.get("finish_reason")), output, usage)

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        return b"".join(map(self._numbered, self._told(chunk)))

    def end(self, usage: Usage, extra: Mapping[str, Any]) -> bytes:
        events = [*self._begin({}), *self._close()]
        response = {**self._ended(self._finish, self._output, usage), **extra}
        events.append({"type": f"response.{response['status']}", "response": response})
        return b"".join(map(self._numbered, events))

    # ------------------------------------------------------------------------------------------------ the stream

    def _told(self, chunk: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        yield from self._begin(chunk)
        for choice in chunk.get("choices") or ():
            if choice.get("index"):
                continue  # Responses has no `n`
            delta = choice.get("delta") or {}
            if thought := thought_of(delta):
                yield from self._open("reasoning", "reasoning_text", _reasoning("", "in_progress"))
                yield self._grow("response.reasoning_text.delta", thought)
            if text := delta.get("content"):
                yield from self._open("message", "output_text", _message([], "in_progress"))
                logprobs = (choice.get("logprobs") or {}).get("content") or []
                yield self._grow("response.output_text.delta", text, logprobs)
            if refusal := delta.get("refusal"):
                yield from self._open("message", "refusal", _message([], "in_progress"))
                yield self._grow("response.refusal.delta", refusal)
            for call in delta.get("tool_calls") or ():
                yield from self._tool_call(call)
            self._finish = choice.get("finish_reason") or self._finish

    def _tool_call(self, call: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        index, function = call.get("index") or 0, call.get("function") or {}
        if index != self._tool:
            yield from self._close()
            self._tool = index
            yield from self._open(
                "function_call", None, _call(call.get("id"), function.get("name"), "", "in_progress")
            )
        if arguments := function.get("arguments"):
            yield self._grow("response.function_call_arguments.delta", arguments)

    def _begin(self, chunk: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if self._began:
            return
        self._began = True
        self._head(chunk)
        for kind in ("created", "in_progress"):
            yield {"type": f"response.{kind}", "response": self._response("in_progress", [], None)}

    def _open(self, kind: str, part: str | None, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Begin an output item, unless one of this kind with this part is being told."""
        if self._item is not None and (self._item.body["type"], self._item.part) == (kind, part):
            return
        yield from self._close()
        if part == "reasoning_text":
            body = {**body, "content": []}
        self._item = _Item(len(self._output), body, part)
        yield {"type": "response.output_item.added", "output_index": self._item.index, "item": body}
        if part is not None:
            yield {**self._at(), "type": "response.content_part.added", "part": _part(part, "", [])}

    def _grow(self, kind: str, delta: str, logprobs: list[Any] | None = None) -> dict[str, Any]:
        assert self._item is not None
        self._item.text += delta
        told = {**self._at(), "type": kind, "delta": delta}
        if logprobs is not None:
            self._item.logprobs += logprobs
            told["logprobs"] = logprobs
        return told

    def _close(self) -> Iterator[dict[str, Any]]:
        item = self._item
        if item is None:
            return
        at, text = self._at(), item.text
        done = {**item.body, "status": "completed"}
        match item.part:
            case None:
                done["arguments"] = text
                yield {
                    **at,
                    "type": "response.function_call_arguments.done",
                    "arguments": text,
                    "name": done["name"],
                }
            case "output_text":
                yield {**at, "type": "response.output_text.done", "text": text, "logprobs": item.logprobs}
            case "reasoning_text":
                yield {**at, "type": "response.reasoning_text.done", "text": text}
            case _:
                yield {**at, "type": "response.refusal.done", "refusal": text}
        if item.part is not None:
            part = _part(item.part, text, item.logprobs)
            done["content"] = [part]
            yield {**at, "type": "response.content_part.done", "part": part}
        self._output.append(done)
        self._item = None
        yield {"type": "response.output_item.done", "output_index": item.index, "item": done}

    def _at(self) -> dict[str, Any]:
        assert self._item is not None
        at = {"item_id": self._item.body["id"], "output_index": self._item.index}
        return at if self._item.part is None else {**at, "content_index": 0}

    def _numbered(self, event: Mapping[str, Any]) -> bytes:
        self._sequence += 1
        kind = str(event["type"]).encode()
        return b"event: %b\n%b" % (kind, sse.event({**event, "sequence_number": self._sequence}))

    # ------------------------------------------------------------------------------------------------ the object

    def _head(self, completion: Mapping[str, Any]) -> None:
        self._model = completion.get("model") or self._model
        self._created = completion.get("created") or self._created

    def _ended(self, finish: str, output: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        reason = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(finish)
        response = self._response("incomplete" if reason else "completed", output, usage)
        return {**response, "incomplete_details": {"reason": reason}} if reason else response

    def _response(self, status: str, output: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        echoed = {
            key: default if self._asked.get(key) is None else self._asked[key]
            for key, default in ECHOED.items()
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": output,
            "previous_response_id": None,
            "store": False,
            "usage": None if usage is None else _usage(usage),
            **echoed,
        }


def response_usage(usage: Mapping[str, Any] | None) -> Usage:
    """Tokens told in the words of Responses (a `usage` object), in ours."""
    usage = usage or {}
    read, wrote = usage.get("input_tokens_details") or {}, usage.get("output_tokens_details") or {}
    return Usage(
        int(usage.get("input_tokens") or 0),
        int(usage.get("output_tokens") or 0),
        int(read.get("cached_tokens") or 0),
        int(wrote.get("reasoning_tokens") or 0),
        int(read.get("cache_write_tokens") or 0),
    )


def check_response(body: Mapping[str, Any]) -> None:
    """Check what Responses requires whoever answers. Raises `BadRequest`."""
    if not isinstance(body.get("stream", False), (bool, type(None))):
        raise BadRequest("'stream' must be true or false.", param="stream")


# ------------------------------------------------------------------------------------------------------ the request


def _to_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    refuse_fields(body, REFUSED)
    if body.get("truncation") not in (None, "disabled"):
        raise BadRequest("'truncation' must be 'disabled' here.", param="truncation")
    chat = {key: value for key, value in body.items() if key not in _TRANSLATED}
    instructions = body.get("instructions")
    if not isinstance(instructions, (str, type(None))):
        raise BadRequest("'instructions' must be a string here.", param="instructions")
    system = [{"role": "system", "content": instructions}] if instructions else []
    chat["messages"] = [*system, *_merged(_messages(body.get("input")))]
    optional = {
        "max_completion_tokens": body.get("max_output_tokens"),
        "tools": _tools(body.get("tools")),
        "tool_choice": _tool_choice(body.get("tool_choice")),
        "reasoning_effort": object_at(body, "reasoning").get("effort"),
        **_text_options(body),
        **_logprobs(body),
    }
    chat |= {key: value for key, value in optional.items() if value is not None}
    with renamed({"max_completion_tokens": "max_output_tokens", "messages": "input"}):
        check_chat(chat)
    return chat


def _messages(items: Any) -> Iterator[dict[str, Any]]:
    if isinstance(items, str):
        yield {"role": "user", "content": items}
        return
    items = sized_list(items, "input", MAX_MESSAGES)
    if not items:
        raise BadRequest("'input' is required and must be a string or a non-empty list.", param="input")
    for i, item in enumerate(items):
        where = f"input[{i}]"
        match item.get("type", "message"):
            case "message":
                yield _input_message(item, where)
            case "function_call":
                function = {
                    "name": string_at(item, "name", where),
                    "arguments": string_at(item, "arguments", where),
                }
                call = {"id": string_at(item, "call_id", where), "type": "function", "function": function}
                yield {"role": "assistant", "content": None, "tool_calls": [call]}
            case "function_call_output":
                output = item.get("output")
                text = output if isinstance(output, str) else _content(output, f"{where}.output", "tool")
                yield {"role": "tool", "tool_call_id": string_at(item, "call_id", where), "content": text}
            case "reasoning":
                parts = sized_list(item.get("content"), f"{where}.content", MAX_MESSAGES)
                texts = [string_at(part, "text", f"{where}.content") for part in parts]
                if texts:
                    yield {"role": "assistant", "content": None, "reasoning_content": "".join(texts)}
            case kind:
                raise BadRequest(
                    f"'{where}.type' {str(kind)[:64]!r} is not supported here.", param=f"{where}.type"
                )


def _input_message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise BadRequest(
            f"'{where}.role' must be user, assistant, system or developer.", param=f"{where}.role"
        )
    return {"role": role, "content": _content(item.get("content"), f"{where}.content", role)}


def _content(content: Any, where: str, role: str) -> Any:
    """Content parts in chat's words; those of an assistant are joined to one text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"'{where}' must be a string or a list of parts.", param=where)
    parts = [
        _input_part(part, f"{where}[{i}]") for i, part in enumerate(sized_list(content, where, MAX_MESSAGES))
    ]
    if role == "assistant":
        return "".join(part.get("text", "") for part in parts)
    if len(parts) == 1 and parts[0]["type"] == "text":
        return parts[0]["text"]
    return parts


def _input_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    match part.get("type"):
        case "input_text" | "output_text" | "text":
            return {"type": "text", "text": string_at(part, "text", where)}
        case "refusal":
            return {"type": "text", "text": string_at(part, "refusal", where)}
        case "input_image" if part.get("image_url") is not None:
            image = {"url": string_at(part, "image_url", where)}
            if part.get("detail") is not None:
                image["detail"] = string_at(part, "detail", where)
            return {"type": "image_url", "image_url": image}
        case "input_file" if part.get("file_url") is None:
            return {
                "type": "file",
                "file": {key: part[key] for key in ("file_id", "filename", "file_data") if key in part},
            }
        case "input_audio":
            return {"type": "input_audio", "input_audio": object_at(part, "input_audio", where)}
        case kind:
            raise BadRequest(
                f"'{where}.type' {str(kind)[:64]!r} is not supported here.", param=f"{where}.type"
            )


def _merged(messages: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring items of the assistant (reasoning, text, calls) are one message in chat."""
    merged: list[dict[str, Any]] = []
    for message in messages:
        last = merged[-1] if merged else {}
        if message["role"] != "assistant" or last.get("role") != "assistant":
            merged.append(message)
            continue
        last["content"] = "".join(filter(None, (last["content"], message["content"]))) or None
        last["tool_calls"] = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
        thoughts = "".join(filter(None, (last.get("reasoning_content"), message.get("reasoning_content"))))
        last |= {"reasoning_content": thoughts} if thoughts else {}
        if not last["tool_calls"]:
            del last["tool_calls"]
    return merged


def _tools(tools: Any) -> list[dict[str, Any]] | None:
    made = []
    for i, tool in enumerate(sized_list(tools, "tools", MAX_TOOLS)):
        if tool.get("type") != "function":
            raise BadRequest(
                f"'tools[{i}].type' {str(tool.get('type'))[:64]!r} runs at a provider that has it; here only function "
                "tools work.",
                param=f"tools[{i}].type",
            )
        function = {"name": string_at(tool, "name", f"tools[{i}]")}
        function |= {
            key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None
        }
        made.append({"type": "function", "function": function})
    return made or None


def _tool_choice(choice: Any) -> Any:
    if choice is None or isinstance(choice, str):
        return choice
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": string_at(choice, "name", "tool_choice")}}
    raise BadRequest("'tool_choice' must be auto, none, required or a function here.", param="tool_choice")


def _text_options(body: Mapping[str, Any]) -> dict[str, Any]:
    text = object_at(body, "text")
    form = object_at(text, "format", "text")
    told: dict[str, Any] = {"verbosity": text.get("verbosity")}
    match form.get("type", "text"):
        case "text":
            pass
        case "json_object":
            told["response_format"] = {"type": "json_object"}
        case "json_schema":
            schema = {key: value for key, value in form.items() if key != "type"}
            told["response_format"] = {"type": "json_schema", "json_schema": schema}
        case _:
            raise BadRequest(
                "'text.format.type' must be text, json_object or json_schema.", param="text.format.type"
            )
    return told


def _logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    include = body.get("include") or []
    if not isinstance(include, list) or not all(entry in INCLUDABLE for entry in include):
        raise BadRequest(f"'include' may list {' and '.join(INCLUDABLE)} here.", param="include")
    top = body.get("top_logprobs")
    wanted = bool(top) or "message.output_text.logprobs" in include
    return {"logprobs": True, "top_logprobs": top or 0} if wanted else {}


# ------------------------------------------------------------------------------------------------------- the answer


def _message(content: list[dict[str, Any]], status: str) -> dict[str, Any]:
    return {
        "id": fresh_id("msg"),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _reasoning(text: str, status: str) -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": text}
    return {"id": fresh_id("rs"), "type": "reasoning", "status": status, "summary": [], "content": [part]}


def _call(call_id: Any, name: Any, arguments: str, status: str) -> dict[str, Any]:
    return {
        "id": fresh_id("fc"),
        "type": "function_call",
        "status": status,
        "call_id": call_id or fresh_id("call"),
        "name": name or "",
        "arguments": arguments,
    }


def _text(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _refusal(text: str) -> dict[str, Any]:
    return {"type": "refusal", "refusal": text}


def _part(kind: str, text: str, logprobs: list[Any]) -> dict[str, Any]:
    if kind == "output_text":
        return _text(text, logprobs)
    return _refusal(text) if kind == "refusal" else {"type": kind, "text": text}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.written_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
