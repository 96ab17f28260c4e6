"""One HTTP request and its answer over raw ASGI: what the hot routes need and nothing more."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import orjson

from protocol import sse
from protocol.errors import ChorusError, PayloadTooLarge, RequestTimeout
from protocol.telling import OPENAI, Wording

__all__ = ["ClientLeft", "Exchange", "Receive", "Scope", "Send", "request_id"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_STREAM_HEADERS = {
    "content-type": sse.CONTENT_TYPE,
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}
DISCARD_BYTES = 64 * 1024 * 1024
DISCARD_S = 5.0
"""How much of a refused body is read, and how long, so that its sender gets to read the refusal."""


class ClientLeft(Exception):
    """The client closed the connection before its answer was complete. There is nobody to tell."""


def request_id(headers: Mapping[bytes, bytes], fresh: str) -> str:
    """The caller's `x-request-id` where it is one we may echo, else one made of the `fresh` id."""
    given = headers.get(b"x-request-id")
    return given.decode("ascii") if given and _REQUEST_ID.fullmatch(given) else f"req_{fresh}"


class Exchange:
    """Reads one request and answers it once: whole (`send_bytes`), or as a stream (`start_stream` or
    `start_bytes`, `send_event`, `end_stream`). Every answer carries the request id and how long it took to
    begin; errors are told in the surface's `wording`. No other request of any gateway has its `id`."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, id: str, wording: Wording = OPENAI
    ) -> None:
        self._receive, self._send = receive, send
        self.id = id
        self.wording = wording
        self._started_at = time.perf_counter()
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.request_id = request_id(self.headers, id)
        self.began_s: float | None = None
        """Seconds until the answer began; None before."""
        self.status = 0
        """Of the answer; 0 before it began."""
        self.told: dict[str, str] = {}
        """Further headers of the answer, whatever it will be."""
        self._streaming = self._raw = self._complete = False

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._started_at

    async def body(self, limit: int, timeout_s: float | None = None) -> bytes:
        """The whole request body. Raises `PayloadTooLarge` past `limit` bytes, `RequestTimeout` when it has not come
        after `timeout_s` seconds, `ClientLeft` when its sender goes away."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._body(limit)
        except TimeoutError:
            raise RequestTimeout(f"The request body did not arrive within {timeout_s:g} s.") from None

    async def _body(self, limit: int) -> bytes:
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > limit:
            # A sender that asks first ("expect: 100-continue") still waits for leave, and is told at once.
            await self._refuse_body(limit, more=b"expect" not in self.headers)
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > limit:
                await self._refuse_body(limit, more)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @asynccontextmanager
    async def leaving_cancels(self) -> AsyncIterator[None]:
        """Cancels what it wraps as soon as the client leaves, and raises `ClientLeft` then."""
        task = asyncio.current_task()
        assert task is not None
        left = False

        async def watch() -> None:
            nonlocal left
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if not self._complete:
                left = True
                task.cancel()

        watcher = asyncio.create_task(watch())
        try:
            yield
        except asyncio.CancelledError:
            if left and task.uncancel() == 0:
                raise ClientLeft from None
            raise
        finally:
            watcher.cancel()

    async def send_bytes(self, body: bytes, *, status: int = 200, headers: Mapping[str, str]) -> None:
        """Answer with `body`, JSON."""
        await self._begin(
            status, {"content-type": "application/json", "content-length": str(len(body)), **headers}
        )
        self._complete = True
        await self._send({"type": "http.response.body", "body": body})

    async def start_stream(self, headers: Mapping[str, str]) -> None:
        """Begin a stream of events with status 200."""
        self._streaming = True
        await self._begin(200, {**_STREAM_HEADERS, **headers})

    async def start_bytes(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """Begin an answer of bytes as they come; where it breaks off, so does the connection."""
        self._streaming = self._raw = True
        await self._begin(status, {"content-type": content_type, **headers})

    async def send_event(self, event: bytes) -> None:
        """Send one event, as bytes; waits while the client reads too slowly."""
        await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def end_stream(self, *events: bytes) -> None:
        """Send the last `events` and close the stream."""
        self._complete = True
        await self._send({"type": "http.response.body", "body": b"".join(events)})

    async def fail(self, error: ChorusError, headers: Mapping[str, str] | None = None) -> None:
        """Tell the client of `error`: with its status, or, in a stream that has begun, as an event without
        `[DONE]`."""
        if self._complete:
            return
        if self._raw:
            return  # the server closes a connection whose answer was not ended
        if self._streaming:
            await self.end_stream(self.wording.failed(error, self.request_id))
        else:
            closing = {"connection": "close"} if isinstance(error, (PayloadTooLarge, RequestTimeout)) else {}
            told = {**error.headers(), **closing, **(headers or {})}
            body = orjson.dumps(self.wording.error_body(error, self.request_id))
            await self.send_bytes(body, status=error.status, headers=told)

    def labelled(self, send: Send) -> Send:
        """`send` for an application that answers in our stead: its answer gets the headers that every answer
        has."""

        async def send_labelled(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                message["headers"] = [*message["headers"], *_raw(self._labels())]
            await send(message)

        return send_labelled

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.began_s = self.elapsed_s
        self.status = status
        told = _raw({**headers, **self._labels()})
        await self._send({"type": "http.response.start", "status": status, "headers": told})

    def _labels(self) -> dict[str, str]:
        return {
            **self.told,
            "x-request-id": self.request_id,
            self.wording.request_id_header: self.request_id,
            "openai-processing-ms": str(round(self.elapsed_s * 1000)),
        }

    async def _refuse_body(self, limit: int, more: bool = True) -> None:
        """Read on for a while, then raise `PayloadTooLarge`: a sender that is still sending would miss the
        answer."""
        discarded = 0
        try:
            async with asyncio.timeout(DISCARD_S):
                while more and discarded < DISCARD_BYTES:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    discarded += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass
        raise PayloadTooLarge(f"The request body is larger than the limit of {limit} bytes.")


def _raw(headers: Mapping[str, str]) -> Iterable[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in headers.items()]
