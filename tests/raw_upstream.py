"""An upstream that answers exact bytes and keeps the exact bytes it was sent: what golden tests compare."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

SSE = "text/event-stream; charset=utf-8"


@dataclass(frozen=True)
class Recorded:
    """One answer: its body, in the pieces in which it is sent."""

    pieces: tuple[bytes, ...]
    content_type: str = "application/json"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One request as it came; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return orjson.loads(self.raw)


class RawUpstream:
    """`answers` by path (without query); a function is given the request. What is not there is a 404."""

    def __init__(self) -> None:
        self.answers: dict[str, Recorded | Callable[[Seen], Recorded]] = {}
        self.seen: list[Seen] = []

    def answer(self, path: str, *pieces: bytes | str | Mapping[str, Any], **fields: Any) -> None:
        """Answer requests to `path` with `pieces`: bytes, text, or objects as JSON."""
        self.answers[path] = recorded(*pieces, **fields)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{rest:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        seen = Seen(request.method, request.path_qs, headers, await request.read())
        self.seen.append(seen)
        told = self.answers.get(request.path)
        if callable(told):
            told = told(seen)
        if told is None:
            return web.json_response({"error": {"message": f"nothing at {request.path}"}}, status=404)
        response = web.StreamResponse(
            status=told.status, headers={"content-type": told.content_type, **told.headers}
        )
        await response.prepare(request)
        for piece in told.pieces:
            await response.write(piece)
        return response


def recorded(*pieces: bytes | str | Mapping[str, Any], **fields: Any) -> Recorded:
    """An answer of `pieces`: bytes, text, or objects as JSON."""
    return Recorded(tuple(map(_bytes, pieces)), **fields)


def chat_stream(
    *deltas: Mapping[str, Any], finish: str = "stop", usage: Mapping[str, int] | None = None
) -> bytes:
    """A chat stream as vLLM would send it: a chunk a delta, the finish reason, usage, `[DONE]`."""
    head = {
        "id": "chatcmpl-up",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "theirs",
    }
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish})
    chunks = [{**head, "choices": [choice]} for choice in choices]
    told = usage or {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    chunks.append({**head, "choices": [], "usage": told})
    return b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def chat_answer(message: Mapping[str, Any], *, finish: str = "stop", **choice: Any) -> bytes:
    """A `chat.completion`, indented as no encoder of ours writes."""
    told = {
        "id": "chatcmpl-up",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "theirs",
        "choices": [
            {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish, **choice}
        ],
        "usage": {
            "prompt_tokens": 11,
            "completion_tokens": 5,
            "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }
    return orjson.dumps(told, option=orjson.OPT_INDENT_2)


def _bytes(piece: bytes | str | Mapping[str, Any]) -> bytes:
    if isinstance(piece, bytes):
        return piece
    return piece.encode() if isinstance(piece, str) else orjson.dumps(piece)
