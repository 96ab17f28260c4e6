"""A faulty upstream: HTTP/1.1 over raw TCP on loopback, byte by byte as each fault wants it.

The upstream model name of a request says how it is answered (`behaviours`). What was asked is counted, and so
are connections on which somebody is still busy: what a caller left behind shows there.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import trustme

__all__ = ["GOOD_TEXT", "USAGE", "Behaviour", "FaultyUpstream", "Peer", "completion", "event", "word"]

USAGE = {"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15}
GOOD_TEXT = "gut ist schön"
DONE = b"data: [DONE]\n\n"

_HEAD = {"id": "x", "created": 1, "model": "upstream"}


def event(body: Mapping[str, Any]) -> bytes:
    """One event as servers write it, with the `"usage": null` they add when usage was asked for."""
    return b"data: " + json.dumps({**_HEAD, "object": "chat.completion.chunk", **body}).encode() + b"\n\n"


def word(text: str) -> bytes:
    """A chunk with `text`."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event({"choices": [choice], "usage": None})


ROLE = event(
    {
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}],
        "usage": None,
    }
)
STOP = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": None})


def completion(text: str = GOOD_TEXT, **fields: Any) -> bytes:
    """A complete answer."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    body = {**_HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE, **fields}
    return json.dumps(body).encode()


class Peer:
    """One request, and the connection to answer it on. `count`: which request of its model it is, from 1."""

    def __init__(
        self, upstream: FaultyUpstream, writer: asyncio.StreamWriter, body: Mapping[str, Any], count: int
    ) -> None:
        self.stream, self.count = bool(body.get("stream")), count
        self._upstream = upstream
        self._writer = writer
        self.keep_alive = True

    async def send(self, *parts: bytes) -> None:
        """Write as it is."""
        for part in parts:
            self._writer.write(part)
            await self._writer.drain()

    async def head(self, status: int = 200, **headers: str) -> None:
        """A response head; `content_length` becomes content-length."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await self.send(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode())

    async def whole(
        self, body: bytes, status: int = 200, kind: str = "application/json", **headers: str
    ) -> None:
        """A complete response."""
        await self.head(status, content_type=kind, content_length=str(len(body)), **headers)
        await self.send(body)

    async def begin(self) -> None:
        """The head of a stream of events."""
        await self.head(content_type="text/event-stream", transfer_encoding="chunked")

    async def chunk(self, *events: bytes) -> None:
        """Parts of a stream, each in a chunk of its own."""
        for data in events:
            await self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def end(self) -> None:
        """The proper end of a chunked body."""
        await self.send(b"0\r\n\r\n")

    async def answer(self, *words: str, usage: Any = USAGE, done: int = 1) -> None:
        """A proper answer, streamed if asked."""
        if not self.stream:
            await self.whole(completion(" ".join(words) or GOOD_TEXT, usage=usage))
            return
        await self.begin()
        await self.chunk(ROLE, *map(word, words or (GOOD_TEXT,)), STOP)
        if usage is not None:
            await self.chunk(event({"choices": [], "usage": usage}))
        await self.chunk(*[DONE] * done)
        await self.end()

    async def partial(self, words: int = 2) -> None:
        """The beginning of a stream: who speaks, and some words."""
        await self.begin()
        await self.chunk(ROLE, *[word("hm ")] * words)

    async def hang(self) -> None:
        """Say nothing until the caller leaves."""
        await asyncio.Event().wait()

    @contextmanager
    def stalling(self) -> Iterator[None]:
        """Inside, the call is counted as one that hangs."""
        self._upstream.stalling += 1
        try:
            yield
        finally:
            self._upstream.stalling -= 1

    def close(self) -> None:
        """End the connection after this."""
        self.keep_alive = False

    def reset(self) -> None:
        """End the connection with a TCP reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
        self.keep_alive = False


Behaviour = Callable[[Peer], Awaitable[None]]


class FaultyUpstream:
    """Answers by `behaviours`, upstream model name → behaviour."""

    def __init__(self, behaviours: Mapping[str, Behaviour]) -> None:
        self._behaviours = behaviours
        self.asked: Counter[str] = Counter()
        self.left: list[float] = []
        """When callers left before their answer was told, on the loop's clock."""
        self.stalling = self.busy = 0
        """Requests being answered now."""
        self.connections = 0
        """Connections that are open."""
        self.tls_port = 0
        """Where it speaks TLS, with a certificate that nobody vouches for."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """Serve on loopback; yields the port."""
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._serve(reader, writer), name="faulty upstream")
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
        server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1 << 24)
        sealed = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        self.tls_port = sealed.sockets[0].getsockname()[1]
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            sealed.close()
            for task in tuple(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while (body := await _request(reader)) is not None:
                model = str(body["model"])
                self.asked[model] += 1
                peer = Peer(self, writer, body, self.asked[model])
                self.busy += 1
                try:
                    if not await _answered(self._behaviours[model](peer), reader):
                        self.left.append(asyncio.get_running_loop().time())
                        return
                    if not peer.keep_alive:
                        return
                finally:
                    self.busy -= 1
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the caller left, or does not speak HTTP
        finally:
            self.connections -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def _request(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next request's body; None at the end, or for what is not HTTP."""
    if await reader.readexactly(1) != b"P":
        return None
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    if not lengths:
        return None
    body: dict[str, Any] = json.loads(await reader.readexactly(int(lengths[0].partition(b":")[2])))
    return body


async def _answered(behaviour: Awaitable[None], reader: asyncio.StreamReader) -> bool:
    """Whether the answer was told before the caller left; a caller who leaves ends it."""

    async def left() -> None:
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 - a reader has no such event
            await asyncio.sleep(0.002)

    answering, leaving = asyncio.ensure_future(behaviour), asyncio.ensure_future(left())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            answering.result()
            return True
        return False
    finally:
        for task in (answering, leaving):
            task.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)
