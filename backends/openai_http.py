"""One deployment of a model behind an OpenAI-compatible HTTP endpoint.

The body goes out as it came in but for the model's name there and, in a stream,
`stream_options.include_usage`, without which nothing could be priced. Nothing of the caller's headers goes
out; the `headers` of an attempt are ours, and name it to who traces it. Closing or cancelling a call closes
its connection at once, which is how an upstream learns that nobody listens any more.

Four clocks bound an attempt: until connected, and in all (the HTTP client keeps both); in a stream also until
the first words, and between words. Comments, role chunks and dripping bytes do not stop the latter two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from backends.http1 import (
    NO_HEADERS,
    Clocks,
    HeaderBlock,
    Http1,
    Http1Error,
    Limits,
    Response,
    header_block,
)
from backends.outbound import Way
from backends.passing import Outgoing, Passed
from backends.stream_tap import StreamTap
from backends.upstream_errors import broken, refusal, timed_out, told_error, translate
from protocol.errors import SettingsError, UpstreamError
from protocol.run import Sink
from protocol.settings import OpenAIModel

__all__ = ["Deployment", "UpstreamStream"]

LEFT_OUT = b"x-chorus-left-out"
"""With which an engine host, or another Chorus, says who has no part in an answer."""
ANTHROPIC_VERSION = "2023-06-01"
"""Of the protocol that `messages` endpoints speak."""

_ANSWERS: Mapping[str, tuple[str, str, tuple[type, ...]]] = {
    "/chat/completions": ("choices", "message", (dict,)),
    "/completions": ("choices", "text", (str,)),
    "/embeddings": ("data", "embedding", (list, str)),
}
"""Path → the list that an answer on it has, what each of its items has, and of which types."""


class Deployment:
    """`name` is the public model name, for error messages; `settings` say where it is served and as what; `way` how to
    get there.

    Raises `SettingsError` for a base URL that is none.
    """

    def __init__(self, name: str, settings: OpenAIModel, way: Way | None = None) -> None:
        self._name, self._settings = name, settings
        way = way or Way()
        self.made_of = (settings, way)
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self._secrets = (key, settings.base_url, urlsplit(settings.base_url).netloc)
        common = {"accept-encoding": "identity", "user-agent": "chorus"}
        self._key = {"authorization": f"Bearer {key}"} if key else {}
        headers = {"content-type": "application/json", **common, **self._key}
        total_s = settings.timeout_s
        limits = Limits(max_connections=settings.max_connections)
        clocks = Clocks(settings.connect_timeout_s, min(30.0, total_s), total_s, total_s, total_s)
        try:
            self.client = _client(settings, headers, limits, clocks, way)
            # What is passed on has a content type, and a way to send the key, of its own.
            self._passing = _client(settings, common, limits, clocks, way)
        except ValueError as error:
            raise SettingsError(f"models.{name}.openai: {error}.") from None

    async def call(
        self, path: str, body: Mapping[str, Any], headers: HeaderBlock = NO_HEADERS
    ) -> tuple[dict[str, Any], bytes]:
        """POST `body` to `path` (as "/chat/completions"): the answer parsed, and its bytes. Raises
        `UpstreamError`."""
        try:
            response = await self._post(path, body, headers)
            raw = await response.read()
        except Http1Error as error:
            raise translate(error, self._name) from error
        if response.status != 200:
            raise self._refusal(response, raw)
        return self._answer(path, raw), raw

    async def stream(
        self, path: str, body: Mapping[str, Any], headers: HeaderBlock = NO_HEADERS
    ) -> UpstreamStream:
        """POST `body` to `path`, asking for a stream; returns once the upstream has begun. Raises
        `UpstreamError`."""
        asked = body.get("stream_options") or {}
        options = {**asked, "include_usage": True}
        loop = asyncio.get_running_loop()
        due = loop.time() + self._settings.first_token_timeout_s
        try:
            async with asyncio.timeout_at(due):
                asking = {**body, "stream": True, "stream_options": options}
                response = await self._post(path, asking, headers)
                try:
                    await self._check_begun(response)
                except BaseException:
                    response.close()
                    raise
        except TimeoutError:
            raise timed_out(self._name) from None
        except Http1Error as error:
            raise translate(error, self._name) from error
        tap = StreamTap(self._name, self._secrets, usage_asked=bool(asked.get("include_usage")))
        return UpstreamStream(response, self._name, tap, due=due, idle_s=self._settings.idle_timeout_s)

    @property
    def model(self) -> str:
        """The model's name there."""
        return self._settings.model

    @property
    def endpoints(self) -> frozenset[str]:
        """What the server has, as the settings say."""
        return self._settings.endpoints

    async def forward(self, outgoing: Outgoing, traced: HeaderBlock = NO_HEADERS) -> Passed:
        """Send what is to be passed on; returns once the answer has begun with 2xx. Raises `UpstreamError`."""
        headers = {**self._key, "content-type": outgoing.content_type}
        if outgoing.messages:
            headers["anthropic-version"] = ANTHROPIC_VERSION
            if self._key and self._settings.messages_auth == "x-api-key":
                del headers["authorization"]
                headers["x-api-key"] = self._secrets[0]
        try:
            response = await self._passing.send(
                outgoing.method, outgoing.path, outgoing.body, HeaderBlock(header_block(headers) + traced)
            )
            try:
                if not 200 <= response.status < 300:
                    raise self._refusal(response, await response.read())
            except BaseException:
                response.close()
                raise
        except Http1Error as error:
            raise translate(error, self._name) from error
        return Passed(response, self._name, self._secrets)

    async def healthy(self) -> bool:
        """Whether the server's own `/health` answers 200 within a second. Asked of our own processes only."""
        try:
            async with asyncio.timeout(1.0):
                response = await self.client.get("/health", from_root=True)
                await response.read()
        except (Http1Error, TimeoutError):
            return False
        return response.status == 200

    async def close(self) -> None:
        """Close every connection."""
        await self.client.close()
        await self._passing.close()

    def _post(
        self, path: str, body: Mapping[str, Any], headers: HeaderBlock
    ) -> Coroutine[Any, Any, Response]:
        return self.client.post(path, orjson.dumps({**body, "model": self._settings.model}), headers)

    async def _check_begun(self, response: Response) -> None:
        if response.status != 200:
            raise self._refusal(response, await response.read())
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            raise broken(self._name, "did not answer with a stream")

    def _answer(self, path: str, raw: bytes) -> dict[str, Any]:
        """A 200 is an answer when it has what answers on this path have."""
        try:
            parsed = orjson.loads(raw)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            raise broken(self._name, "did not answer with a JSON object")
        if path in _ANSWERS:
            many, each, kinds = _ANSWERS[path]
            items = parsed.get(many)
            whole = isinstance(items, list) and all(
                isinstance(item, dict) and isinstance(item.get(each), kinds) for item in items
            )
            if not (items and whole):
                if parsed.get("error"):
                    raise told_error(parsed["error"], name=self._name, secrets=self._secrets)
                raise broken(self._name, f"answered without {many}")
        return parsed

    def _refusal(self, response: Response, raw: bytes) -> Exception:
        return refusal(response.status, raw, response.headers, name=self._name, secrets=self._secrets)


def _client(
    settings: OpenAIModel, headers: Mapping[str, str], limits: Limits, clocks: Clocks, way: Way
) -> Http1:
    return Http1(
        settings.base_url,
        headers=headers,
        limits=limits,
        clocks=clocks,
        context=way.context,
        proxy=way.proxy,
    )


class UpstreamStream:
    """The events of one streamed answer, in order, bytes untouched; see `StreamTap` for what is withheld.

    `read` it to its end or `pour` it, or `abort` it. Both raise `UpstreamError`. `due`: when its first words
    must be there, on the loop's clock; `idle_s`: how long it may be silent after them, in seconds. Only
    waiting for the upstream counts, not a reader who takes his time.
    """

    def __init__(self, response: Response, name: str, tap: StreamTap, *, due: float, idle_s: float) -> None:
        self.tap = tap
        self._response, self._name, self._idle_s = response, name, idle_s
        self._loop = asyncio.get_running_loop()
        self._due: float | None = due
        self._resumed: float | None = None
        self._heard = 0
        self._late = False
        self._timer = self._loop.call_at(due, self._ring)

    @property
    def left_out(self) -> list[str]:
        """Members that have no part in the answer, as an engine host says in its head."""
        return [
            member.strip()
            for name, value in self._response.raw_headers
            if name.lower() == LEFT_OUT
            for member in value.decode("latin-1").split(",")
        ]

    async def read(self) -> bytes:
        """Whole events, all that have come since the last time; waits for some, and is empty at the end."""
        if self._due is None:
            self._due = self._resumed or self._loop.time() + self._idle_s
        heard = self._heard
        try:
            while not self.tap.done:
                if self.tap.fault is not None:
                    raise self.tap.fault
                if not (data := await self._response.piece()):
                    break
                if passing := self._passing(data):
                    if self._heard:  # the clock rests, and only words set it anew
                        self._due, self._resumed = None, self._due if self._heard == heard else None
                    return passing
            return await self._end()
        except Http1Error as error:
            raise self._told(error) from error
        except BaseException:
            self.abort()
            raise

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            while data := await self.read():
                yield data
        finally:
            self.abort()

    async def pour(self, sink: Sink) -> None:
        """Write whole events to `sink`, as they come, until the end. They are written by whoever reads the upstream's
        socket: no task wakes up for them."""
        tap = self.tap

        def take(data: bytes) -> None:
            if passing := self._passing(data):
                sink.write(passing)
            if tap.done or tap.fault is not None or sink.full:
                self._response.hold()

        try:
            self._due = self._loop.time() + self._idle_s
            while not tap.done and tap.fault is None and await self._response.pour(take):
                if sink.full:
                    self._due = None
                    await sink.drain()
                    self._due = self._loop.time() + self._idle_s
            if tap.fault is not None:
                raise tap.fault
            await self._end()
        except Http1Error as error:
            raise self._told(error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the connection unless the answer has ended by itself; safe to repeat."""
        self._timer.cancel()
        self._response.close()

    def _passing(self, data: bytes) -> bytes:
        """What of `data` goes on."""
        tap = self.tap
        passing = tap.feed(data)
        if tap.words > self._heard:
            self._due = due = self._loop.time() + self._idle_s
            if not self._heard:  # from the clock of the first words to the one between words
                self._timer.cancel()
                self._timer = self._loop.call_at(due, self._ring)
            self._heard = tap.words
        return passing

    def _told(self, error: Http1Error) -> UpstreamError:
        return timed_out(self._name) if self._late else translate(error, self._name)

    def _ring(self) -> None:
        """The time may be up; if not, ring again when it is. So a chunk costs no timer of its own."""
        now = self._loop.time()
        due = now + self._idle_s if self._due is None else self._due
        if due > now:
            self._timer = self._loop.call_at(due, self._ring)
        else:
            self._late = True
            self._response.close()

    async def _end(self) -> bytes:
        """The stream is over. After `[DONE]` the end of the body is read."""
        if self.tap.done:
            await self._response.drain()
        self.abort()
        self.tap.end()
        return b""
