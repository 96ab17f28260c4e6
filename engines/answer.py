"""One HTTP answer: the events of n generations, written as one JSON body or as server-sent events.

It watches the client while it writes: one that leaves, streaming or not, cancels its generations before the
next step."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import orjson
from starlette.types import Receive, Scope, Send

from engines.generation import Begun, End, Event, Failure, Generation, MemberUsage, Piece, TokenLogprob
from engines.host import Host
from protocol import sse
from protocol.usage import Usage

__all__ = ["Answer", "Shape"]

log = logging.getLogger("chorus.engines")

KEEP_ALIVE_S = 15.0
LEFT_OUT = b"x-chorus-left-out"
"""Header: members that a fused answer begins without, comma-separated."""


class Shape:
    """How a choice looks on the wire: of a chat completion, or of a text completion when `chat` is False."""

    def __init__(
        self, *, id: str, model: str, chat: bool, fused: bool, usage_in_stream: bool, logprobs: bool
    ) -> None:
        self.id, self.model, self.chat, self.fused = id, model, chat, fused
        self.usage_in_stream, self.logprobs = usage_in_stream, logprobs
        self.created = int(time.time())

    def head(self, *, stream: bool) -> dict[str, Any]:
        """The fields every body and chunk begins with."""
        kind = "chat.completion" if self.chat else "text_completion"
        kind += ".chunk" if stream and self.chat else ""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def chunk(
        self,
        index: int,
        text: str | None,
        tokens: Sequence[TokenLogprob] = (),
        reason: str | None = None,
        *,
        first: bool = False,
    ) -> dict[str, Any]:
        """One stream event of a choice."""
        logprobs = self.logprobs_of(tokens) if self.logprobs and tokens else None
        choice: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": reason}
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            choice["delta"] = delta if text is None else {**delta, "content": text}
        else:
            choice["text"] = text or ""
        body = {**self.head(stream=True), "choices": [choice]}
        return {**body, "usage": None} if self.usage_in_stream else body

    def whole(self, index: int, text: str, tokens: Sequence[TokenLogprob], reason: str) -> dict[str, Any]:
        """One choice of a complete body."""
        logprobs = self.logprobs_of(tokens) if self.logprobs else None
        choice: dict[str, Any] = {"index": index, "logprobs": logprobs, "finish_reason": reason}
        if self.chat:
            return {**choice, "message": {"role": "assistant", "content": text, "refusal": None}}
        return {**choice, "text": text}

    def logprobs_of(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """OpenAI's `logprobs` object of a choice; probabilities are natural logarithms."""
        if self.chat:
            content = [
                {**_token(t.token, t.logprob), "top_logprobs": [_token(*top) for top in t.top]}
                for t in tokens
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [_text(t.token) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{_text(token): logp for token, logp in t.top} for t in tokens],
        }

    def accounts(self, ends: Sequence[End]) -> dict[str, Any]:
        """`usage`, summed over members and choices, and for a fusion the table by member. The prompt counts
        once."""
        members: list[MemberUsage] = []
        for parts in zip(*(end.members for end in ends), strict=True):
            prompt = max(part.prompt_tokens for part in parts)
            cached = min(part.cached_tokens for part in parts)  # the choices after the first find its prompt
            spent = sum(part.completion_tokens for part in parts)
            members.append(MemberUsage(parts[0].model, prompt, spent, cached))
        total = sum((Usage(m.prompt_tokens, m.completion_tokens, m.cached_tokens) for m in members), Usage())
        body: dict[str, Any] = {"usage": total.wire()}
        if self.fused:
            table = [
                {
                    "model": m.model,
                    "prompt_tokens": m.prompt_tokens,
                    "completion_tokens": m.completion_tokens,
                    **(
                        {"prompt_tokens_details": {"cached_tokens": m.cached_tokens}}
                        if m.cached_tokens
                        else {}
                    ),
                }
                for m in members
            ]
            body["chorus"] = {"members": table}
            spans = [
                {"index": index, "model": span.model, "bytes": span.size}
                for index, end in enumerate(ends)
                for span in end.spans
            ]
            if spans:
                body["chorus"]["spans"] = spans
            left_out = [
                {"index": index, "model": out.model, "why": out.why, "at": out.at}
                for index, end in enumerate(ends)
                for out in end.left_out
            ]
            if left_out:
                body["chorus"]["left_out"] = left_out
        return body


class Answer:
    """An ASGI response that submits its generations when it is called, and cancels them when the client has
    left."""

    def __init__(
        self, host: Host, generations: Sequence[Generation], shape: Shape, *, stream: bool, request_id: str
    ) -> None:
        self._host, self._generations, self._shape, self._stream = host, generations, shape, stream
        self._headers = [(b"x-request-id", request_id.encode("latin-1", "replace"))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()

        def sink_of(index: int) -> Callable[[Event], None]:
            def put(event: Event) -> None:
                # RuntimeError: the loop is closed, the server has shut down and nobody listens.
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(events.put_nowait, (index, event))

            return put

        for index, generation in enumerate(self._generations):
            self._host.submit(generation, sink_of(index))
        write = asyncio.ensure_future(
            self._write_stream(events, send) if self._stream else self._write_whole(events, send)
        )
        leave = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({write, leave}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leave.cancel()
            if not write.done():
                write.cancel()
            for generation in self._generations:
                self._host.cancel(generation.id)  # those that ended are unknown to the host by now
            with suppress(asyncio.CancelledError):
                await write

    async def _write_whole(self, events: asyncio.Queue[tuple[int, Event]], send: Send) -> None:
        texts: list[list[str]] = [[] for _ in self._generations]
        tokens: list[list[TokenLogprob]] = [[] for _ in self._generations]
        ends: dict[int, End] = {}
        while len(ends) < len(self._generations):
            index, event = await events.get()
            if isinstance(event, Failure):
                await self._send(send, event.error.status, event.error.body(), event.error.headers())
                return
            if isinstance(event, Begun):
                self._say(event)
            elif isinstance(event, End):
                ends[index] = event
            else:
                texts[index].append(event.text)
                tokens[index].extend(event.tokens)
        choices = [
            self._shape.whole(i, "".join(texts[i]), tokens[i], ends[i].reason) for i in range(len(texts))
        ]
        accounts = self._shape.accounts([ends[i] for i in range(len(texts))])
        await self._send(send, 200, {**self._shape.head(stream=False), "choices": choices, **accounts}, {})

    async def _write_stream(self, events: asyncio.Queue[tuple[int, Event]], send: Send) -> None:
        # The status waits for the first event: a request that fails at once says so.
        index, event = await events.get()
        while isinstance(event, Begun):
            self._say(event)
            index, event = await events.get()
        if isinstance(event, Failure):
            await self._send(send, event.error.status, event.error.body(), event.error.headers())
            return
        headers = [
            *self._headers,
            (b"content-type", sse.CONTENT_TYPE.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        begun: set[int] = set()
        ends: dict[int, End] = {}
        while True:
            out = b""
            if self._shape.chat and index not in begun:
                begun.add(index)
                out += sse.event(self._shape.chunk(index, "", first=True))
            if isinstance(event, Piece):
                out += sse.event(self._shape.chunk(index, event.text, event.tokens))
            elif isinstance(event, End):
                ends[index] = event
                out += sse.event(self._shape.chunk(index, None, (), event.reason))
            elif isinstance(event, Begun):
                pass  # another choice's: the usage event tells it
            else:
                await send({"type": "http.response.body", "body": out + sse.event(event.error.body())})
                return
            await send({"type": "http.response.body", "body": out, "more_body": True})
            if len(ends) == len(self._generations):
                break
            index, event = await self._next(events, send)
        tail = b""
        if self._shape.usage_in_stream:
            accounts = self._shape.accounts([ends[i] for i in range(len(self._generations))])
            tail = sse.event({**self._shape.head(stream=True), "choices": [], **accounts})
        await send({"type": "http.response.body", "body": tail + sse.DONE})

    def _say(self, begun: Begun) -> None:
        """Tell in a header who has no part in the answer."""
        names = ",".join(out.model for out in begun.left_out).encode()
        if (LEFT_OUT, names) not in self._headers:
            self._headers.append((LEFT_OUT, names))

    async def _next(self, events: asyncio.Queue[tuple[int, Event]], send: Send) -> tuple[int, Event]:
        """The next event, with a comment line now and then so that no proxy takes a long wait for a dead
        stream."""
        while True:
            try:
                return await asyncio.wait_for(events.get(), KEEP_ALIVE_S)
            except TimeoutError:
                await send({"type": "http.response.body", "body": sse.KEEP_ALIVE, "more_body": True})

    async def _send(self, send: Send, status: int, body: Mapping[str, Any], extra: Mapping[str, str]) -> None:
        raw = orjson.dumps(body)
        headers = [
            *self._headers,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(raw)).encode()),
            *((key.encode(), value.encode()) for key, value in extra.items()),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": raw})


async def _gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _text(token: bytes) -> str:
    """A token on the wire: its text, or, where it is half a character, its bytes in hexadecimal;
    `bytes` has the truth."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return token.decode("utf-8", "backslashreplace")


def _token(token: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(token), "logprob": logprob, "bytes": list(token)}
