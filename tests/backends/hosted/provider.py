"""A provider on loopback that speaks the wire of OpenAI, Azure, Anthropic, Gemini, Bedrock and Cohere, as documented.

What reaches it is recorded; what it answers is scripted, whole or as a stream, well or badly. No client library of a
provider is used: shapes and AWS's event-stream framing are written out here.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web


@dataclass(frozen=True, slots=True)
class Wire:
    """One request as it arrived; header names in lower case."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Mapping[str, Any]


@dataclass(slots=True)
class Answer:
    """What is answered: `body`, or, when a stream is asked for, `frames`, each as it stands on the wire."""

    body: Any = None
    frames: Sequence[bytes] = ()
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    stream_type: str = "text/event-stream"
    cut_after: int | None = None
    """The connection is reset after that many frames."""
    delay_s: float = 0.0
    lost: bool = False
    """The connection is reset when the request has come."""


class Provider:
    """Answers every POST with `answer`; `seen` holds what came, `left` counts callers that left early."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.seen: list[Wire] = []
        self.left = 0

    @property
    def wire(self) -> Wire:
        """The only request that came."""
        (wire,) = self.seen
        return wire

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Serve on loopback; yields the base URL."""
        application = web.Application(client_max_size=1 << 28)
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(
            Wire(request.path, dict(request.query), headers, orjson.loads(await request.read() or b"{}"))
        )
        answer = self.answer
        try:
            await asyncio.sleep(answer.delay_s)
            if answer.lost:
                assert request.transport is not None
                request.transport.abort()
            if answer.frames and answer.status == 200:
                return await self._stream(request, answer)
        except (asyncio.CancelledError, ConnectionError):
            self.left += 1
            raise
        body = answer.body if isinstance(answer.body, bytes) else orjson.dumps(answer.body)
        return web.Response(
            body=body, status=answer.status, headers=answer.headers, content_type="application/json"
        )

    async def _stream(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": answer.stream_type, **answer.headers})
        await response.prepare(request)
        for i, frame in enumerate(answer.frames):
            if i == answer.cut_after:
                await asyncio.sleep(0.05)  # what was sent arrives before the reset does
                assert request.transport is not None
                request.transport.abort()
                return response
            await response.write(frame)
        return response


# ----------------------------------------------------------------------------------------------------- Anthropic

ANTHROPIC_USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 30,
    "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
    "output_tokens": 25,
}


def anthropic(content: Sequence[Mapping[str, Any]], stop_reason: str = "end_turn") -> dict[str, Any]:
    """A message, as `POST /v1/messages` answers."""
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-sonnet-4-5-20250929",
        "content": list(content), "stop_reason": stop_reason, "stop_sequence": None, "usage": ANTHROPIC_USAGE,
    }  # fmt: skip


def anthropic_stream(content: Sequence[Mapping[str, Any]], stop_reason: str = "end_turn") -> list[bytes]:
    """The same as events, each block's content in two pieces."""
    start = {**anthropic([]), "stop_reason": None, "usage": {**ANTHROPIC_USAGE, "output_tokens": 1}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for i, block in enumerate(content):
        kind = block["type"]
        empty = {
            "text": {"text": ""},
            "thinking": {"thinking": "", "signature": ""},
            "tool_use": {"input": {}},
        }[kind]
        events.append({"type": "content_block_start", "index": i, "content_block": {**block, **empty}})
        if i == 0:
            events.append({"type": "ping"})
        if kind == "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in _halves(block["text"])]
        elif kind == "thinking":
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _halves(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        else:
            pieces = _halves(orjson.dumps(block["input"]).decode())
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
        events += [{"type": "content_block_delta", "index": i, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": i})
    events.append({
        "type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": None},
        "usage": {"output_tokens": 25},
    })  # fmt: skip
    events.append({"type": "message_stop"})
    return [b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events]


# -------------------------------------------------------------------------------------------------------- Gemini


def gemini(parts: Sequence[Mapping[str, Any]], finish: str | None = "STOP", **usage: Any) -> dict[str, Any]:
    """What `generateContent` answers, or one piece of what `streamGenerateContent` does."""
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    told = {"promptTokenCount": 110, "candidatesTokenCount": 20, "totalTokenCount": 130, **usage}
    return {
        "candidates": [candidate], "usageMetadata": told, "modelVersion": "gemini-2.5-flash", "responseId": "r-1",
    }  # fmt: skip


def sse(*bodies: Any) -> list[bytes]:
    """Each as an event of one line, as Gemini and OpenAI send them."""
    return [
        b"data: " + (body if isinstance(body, bytes) else orjson.dumps(body)) + b"\n\n" for body in bodies
    ]


# ------------------------------------------------------------------------------------------------------- Bedrock

BEDROCK_USAGE = {
    "inputTokens": 10, "outputTokens": 25, "totalTokens": 165, "cacheReadInputTokens": 100, "cacheWriteInputTokens": 30,
}  # fmt: skip


def bedrock(content: Sequence[Mapping[str, Any]], stop_reason: str = "end_turn") -> dict[str, Any]:
    """What Converse answers."""
    return {
        "output": {"message": {"role": "assistant", "content": list(content)}},
        "stopReason": stop_reason, "usage": BEDROCK_USAGE, "metrics": {"latencyMs": 12},
    }  # fmt: skip


def bedrock_stream(content: Sequence[Mapping[str, Any]], stop_reason: str = "end_turn") -> list[bytes]:
    """What ConverseStream answers: AWS's event-stream frames."""
    events: list[tuple[str, dict[str, Any]]] = [("messageStart", {"role": "assistant"})]
    for i, block in enumerate(content):
        if "toolUse" in block:
            use = block["toolUse"]
            start = {"toolUse": {"toolUseId": use["toolUseId"], "name": use["name"]}}
            events.append(("contentBlockStart", {"contentBlockIndex": i, "start": start}))
            deltas = [{"toolUse": {"input": piece}} for piece in _halves(orjson.dumps(use["input"]).decode())]
        else:
            deltas = [{"text": piece} for piece in _halves(block["text"])]
        events += [("contentBlockDelta", {"contentBlockIndex": i, "delta": delta}) for delta in deltas]
        events.append(("contentBlockStop", {"contentBlockIndex": i}))
    events.append(("messageStop", {"stopReason": stop_reason}))
    events.append(("metadata", {"usage": BEDROCK_USAGE, "metrics": {"latencyMs": 12}}))
    return [aws_frame(kind, body) for kind, body in events]


def aws_frame(kind: str, body: Mapping[str, Any], message_type: str = "event") -> bytes:
    """One message of `application/vnd.amazon.eventstream`: lengths, CRC, headers, payload, CRC."""
    label = ":event-type" if message_type == "event" else ":exception-type"
    headers = b"".join(
        struct.pack(">B", len(name)) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in (
            (label, kind), (":content-type", "application/json"), (":message-type", message_type)
        )
    )  # fmt: skip
    payload = orjson.dumps(body)
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


# -------------------------------------------------------------------------------------------------------- OpenAI


def openai(message: Mapping[str, Any], finish: str = "stop", **usage: Any) -> dict[str, Any]:
    """A `chat.completion`, as OpenAI and Azure answer."""
    choice = {
        "index": 0, "message": {"role": "assistant", "content": None, **message},
        "logprobs": None, "finish_reason": finish,
    }  # fmt: skip
    told = {"prompt_tokens": 110, "completion_tokens": 20, "total_tokens": 130, **usage}
    return {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000, "model": "gpt-4o-2024-08-06",
        "choices": [choice], "usage": told,
    }  # fmt: skip


def openai_stream(deltas: Sequence[Mapping[str, Any]], finish: str = "stop", **usage: Any) -> list[bytes]:
    """The same as events."""
    whole = openai({}, **usage)
    head = {**whole, "object": "chat.completion.chunk", "usage": None}
    told = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    told.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    told.append({**head, "choices": [], "usage": whole["usage"]})
    return [*sse(*told), b"data: [DONE]\n\n"]


def _halves(text: str) -> list[str]:
    middle = len(text) // 2
    return [text[:middle], text[middle:]]
