"""One HTTP request and its answer: what the hot routes need and nothing more."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from types import TracebackType

import orjson

from gateway.transcript import Transcript
from gateway.wire import Message, Receive, Scope, Send, Wire, header_lines, wire_of
from protocol import sse
from protocol.errors import ChorusError, PayloadTooLarge, RequestTimeout, UnsupportedEncoding
from protocol.run import Sink
from protocol.telling import OPENAI, Wording

__all__ = ["ClientLeft", "Exchange", "Receive", "Scope", "Send", "request_id"]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_JSON = {"content-type": "application/json"}
_STREAM = {
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
        self._wire: Wire = wire_of(scope, receive, send)
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

    def overheard(self, most: int) -> Transcript:
        """What is said from here on, either way; of each side at most `most` bytes."""
        self._wire = transcript = Transcript(self._wire, most)
        return transcript

    def tell(self, name: str, value: str) -> None:
        """Add a header to the answer, which has not begun."""
        self.told = {**self.told, name: value}

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request arrived."""
        return time.perf_counter() - self._started_at

    async def body(self, limit: int, timeout_s: float | None = None) -> bytes:
        """The whole request body. Raises `PayloadTooLarge` past `limit` bytes, `RequestTimeout` when it has not come
        after `timeout_s` seconds, `UnsupportedEncoding` for a compressed one, `ClientLeft` when its sender goes away.
        """
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise UnsupportedEncoding(
                "The request body must not be compressed; send it without content-encoding."
            )
        whole = self._wire.whole_body()
        if whole is not None:
            if len(whole) > limit:
                raise _too_large(limit)
            return whole
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
            message = await self._wire.receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            more = message.get("more_body", False)
            if size > limit:
                await self._refuse_body(limit, more)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def leaving_cancels(self) -> _Leaving:
        """Cancels what it wraps as soon as the client leaves, and raises `ClientLeft` then."""
        return _Leaving(self._wire)

    @property
    def sink(self) -> Sink:
        """Where a stream that has begun may be written to."""
        return self._wire

    async def send_bytes(self, body: bytes, *, status: int = 200, headers: Mapping[str, str]) -> None:
        """Answer with `body`, JSON."""
        self._begin(status, _JSON, headers, length=len(body))
        self._complete = True
        self._wire.end(body)
        await self._written()

    async def start_stream(self, headers: Mapping[str, str]) -> None:
        """Begin a stream of events with status 200; the head goes out with the first of them."""
        self._streaming = True
        self._begin(200, _STREAM, headers)

    async def start_bytes(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """Begin an answer of bytes as they come; where it breaks off, so does the connection."""
        self._streaming = self._raw = True
        self._begin(status, {"content-type": content_type}, headers)
        await self._wire.drain()

    async def send_event(self, event: bytes) -> None:
        """Send one event, or several, as bytes; waits while the client reads too slowly."""
        self._wire.write(event)
        await self._written()

    async def end_stream(self, *events: bytes) -> None:
        """Send the last `events` and close the stream."""
        self._complete = True
        self._wire.end(b"".join(events))
        await self._written()

    async def fail(self, error: ChorusError, headers: Mapping[str, str] | None = None) -> None:
        """Tell the client of `error`: with its status, or, in a stream that has begun, as an event without
        `[DONE]`."""
        if self._complete:
            return
        if self._raw:
            return  # the server closes a connection whose answer was not ended
        if self._streaming:
            await self.end_stream(self.wording.failed(error, self.request_id))
            return
        body = orjson.dumps(self.wording.error_body(error, self.request_id))
        cut = isinstance(error, (PayloadTooLarge, RequestTimeout, UnsupportedEncoding))
        self._begin(error.status, _JSON, {**error.headers(), **(headers or {})}, length=len(body), close=cut)
        self._complete = True
        self._wire.end(body)
        await self._written()

    def labelled(self, send: Send) -> Send:
        """`send` for an application that answers in our stead: its answer gets the headers that every answer
        has."""

        async def send_labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                labels = self._labels().items()
                raw = [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in labels]
                message["headers"] = [*message["headers"], *raw]
            await send(message)

        return send_labelled

    def _begin(
        self,
        status: int,
        kind: Mapping[str, str],
        headers: Mapping[str, str],
        *,
        length: int | None = None,
        close: bool = False,
    ) -> None:
        self.began_s = self.elapsed_s
        self.status = status
        head = header_lines({**kind, **headers, **self._labels()})
        self._wire.start(status, head, length, close=close)

    async def _written(self) -> None:
        """Wait, should the client read too slowly."""
        if self._wire.full:
            await self._wire.drain()

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
                    message = await self._wire.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    discarded += len(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            pass
        raise _too_large(limit)


class _Leaving:
    """What `Exchange.leaving_cancels` wraps."""

    __slots__ = ("_left", "_task", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire, self._left = wire, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._wire.watch(self._leave)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wire.unwatch()
        if self._left and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise ClientLeft from None

    def _leave(self) -> None:
        self._left = True
        self._task.cancel()


def _too_large(limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"The request body is larger than the limit of {limit} bytes.")
