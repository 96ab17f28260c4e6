"""A scripted upstream: an OpenAI-compatible server that answers exactly as told, well or badly.

For tests, demonstrations and load generators: it needs no model. Each upstream model name has a `Script`;
what was asked, and which callers left before their answer was complete, is recorded.

    python -m backends.scripted --port 9000                 every model name answers with the default script
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import struct
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from protocol.sse import DONE, event
from protocol.usage import Usage
from protocol.wire import chunk

__all__ = ["Script", "ScriptedUpstream", "Seen"]


@dataclass(frozen=True, slots=True)
class Script:
    """How one model answers. Numbers of chunks count those with text; None: it does not happen."""

    text: str = "A scripted answer, one word at a time."
    status: int = 200
    body: bytes | None = None
    """What is answered instead of a completion, as it is."""
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    """Before the answer begins."""
    chunk_delay_s: float = 0.0
    usage: Usage | None = field(default_factory=lambda: Usage(prompt_tokens=7, completion_tokens=8))
    """None: the answer says nothing of what it spent."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Top-level fields beside `usage`."""
    message: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the message beside its content."""
    reset_after: int | None = None
    """The connection is reset after that many chunks; 0: before anything is sent."""
    malformed_after: int | None = None
    error_after: int | None = None
    """An error event comes after that many chunks, and nothing more."""
    done: bool = True
    """Whether a stream ends with `[DONE]`."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as it arrived; header names are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]


class ScriptedUpstream:
    """`scripts` by upstream model name; `default` for every other name. Serve it with `serving`."""

    def __init__(self, scripts: Mapping[str, Script] | None = None, default: Script | None = None) -> None:
        self.scripts, self.default = dict(scripts or {}), default or Script()
        self.seen: list[Seen] = []
        self.left: list[str] = []
        """Model names whose caller left before the answer was complete."""

    @asynccontextmanager
    async def serving(
        self, *, port: int = 0, uds: Path | None = None, drain_s: float = 0.1
    ) -> AsyncIterator[str]:
        """Serve on loopback, or on a Unix socket; yields the base URL a backend is given. In the end what is being
        answered may go on for `drain_s` seconds."""
        application = web.Application(client_max_size=1 << 30)
        application.add_routes(
            [
                web.post("/v1/chat/completions", self._chat),
                web.post("/v1/completions", self._text),
                web.post("/v1/embeddings", self._embeddings),
                web.get("/health", self._health),
            ]
        )
        # Without `handler_cancellation` aiohttp would let a handler run on after its caller has left.
        runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=drain_s
        )
        await runner.setup()
        try:
            site = web.UnixSite(runner, str(uds)) if uds else web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            yield f"unix://{uds}" if uds else f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        finally:
            await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "chat.completion")

    async def _text(self, request: web.Request) -> web.StreamResponse:
        return await self._generate(request, "text_completion")

    async def _embeddings(self, request: web.Request) -> web.StreamResponse:
        body = await self._see(request)
        script = self._script(body)
        await asyncio.sleep(script.delay_s)
        if script.status != 200 or script.body is not None:
            return self._as_told(script)
        texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
        vectors = [[float(len(text)), 3.0, 4.0] for text in texts]
        if body.get("encoding_format") == "base64":
            encoded: list[Any] = [
                base64.b64encode(struct.pack("<3f", *vector)).decode() for vector in vectors
            ]
        else:
            encoded = vectors
        data = [{"object": "embedding", "index": i, "embedding": row} for i, row in enumerate(encoded)]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": usage})

    async def _generate(self, request: web.Request, kind: str) -> web.StreamResponse:
        body = await self._see(request)
        script = self._script(body)
        try:
            await asyncio.sleep(script.delay_s)
            if script.reset_after == 0:
                return self._reset(request)
            if script.status != 200 or script.body is not None:
                return self._as_told(script)
            if body.get("stream"):
                return await self._stream(request, script, body, kind)
            return web.Response(body=self._whole(script, body, kind), content_type="application/json")
        except (asyncio.CancelledError, ConnectionError):
            self.left.append(str(body["model"]))
            raise

    async def _stream(
        self, request: web.Request, script: Script, body: Mapping[str, Any], kind: str
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"content-type": "text/event-stream; charset=utf-8", **script.headers}
        )
        await response.prepare(request)
        head: dict[str, Any] = {"id": "scripted-1", "created": 1_700_000_000, "model": body["model"]}
        asked = bool((body.get("stream_options") or {}).get("include_usage"))
        silent: dict[str, Any] = {"usage": None} if asked else {}
        words = [word + " " for word in script.text.split(" ")]
        words[-1] = words[-1][:-1]

        def told(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
            if kind == "chat.completion":
                return event(chunk(**head, delta=delta, finish_reason=finish, **silent))
            choice = {"index": 0, "text": delta.get("content", ""), "logprobs": None, "finish_reason": finish}
            return event({**head, "object": kind, "choices": [choice], **silent})

        if kind == "chat.completion":
            await response.write(told({"role": "assistant", "content": ""}))
        for i, word in enumerate(words):
            if i == script.reset_after:
                return self._reset(request)
            if i == script.malformed_after:
                await response.write(b'data: {"id": "scripted-1", "choi\n\n')
                return response
            if i == script.error_after:
                await response.write(event({"error": {"message": "the engine fell over", "code": 500}}))
                return response
            await response.write(told({"content": word}))
            await asyncio.sleep(script.chunk_delay_s)
        await response.write(told({}, "stop"))
        if asked and script.usage is not None:
            await response.write(event(chunk(**head, usage=script.usage.wire(), **script.extra)))
        if script.done:
            await response.write(DONE)
        return response

    def _whole(self, script: Script, body: Mapping[str, Any], kind: str) -> bytes:
        """A complete answer. Two spaces of indent, as no encoder of ours writes: relays are compared byte for
        byte."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "stop"}
        if kind == "chat.completion":
            choice["message"] = {"role": "assistant", "content": script.text, **script.message}
        else:
            choice["text"] = script.text
        answer: dict[str, Any] = {
            "id": "scripted-1",
            "object": kind,
            "created": 1_700_000_000,
            "model": body["model"],
            "choices": [choice],
        }
        if script.usage is not None:
            answer["usage"] = script.usage.wire()
        return orjson.dumps({**answer, **script.extra}, option=orjson.OPT_INDENT_2)

    def _as_told(self, script: Script) -> web.Response:
        default = orjson.dumps(
            {"error": {"message": f"scripted {script.status}", "type": "scripted", "code": None}}
        )
        return web.Response(
            body=default if script.body is None else script.body,
            status=script.status,
            headers={"content-type": script.content_type, **script.headers},
        )

    def _reset(self, request: web.Request) -> web.StreamResponse:
        """Cut the connection as a crashing server does."""
        if request.transport is not None:
            request.transport.abort()
        return web.Response()

    async def _see(self, request: web.Request) -> dict[str, Any]:
        body: dict[str, Any] = orjson.loads(await request.read())
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append(Seen(request.path, headers, body))
        return body

    def _script(self, body: Mapping[str, Any]) -> Script:
        return self.scripts.get(str(body["model"]), self.default)


async def _serve(port: int, text: str) -> None:
    async with ScriptedUpstream(default=Script(text=text)).serving(port=port) as url:
        sys.stdout.write(f"A scripted upstream answers at {url}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve scripted answers on loopback.")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--text", default=Script().text)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.port, arguments.text))
