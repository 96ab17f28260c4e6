"""One deployment of a model behind an OpenAI-compatible HTTP endpoint.

The body goes out as it came in but for the model's name there and, in a stream,
`stream_options.include_usage`, without which nothing could be priced. Nothing of the caller's headers goes
out. Closing or cancelling a call closes its connection at once, which is how an upstream learns that nobody
listens any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from backends.passing import Outgoing, Passed
from backends.stream_tap import StreamTap
from backends.upstream_errors import refusal, translate
from protocol.errors import UpstreamBroken
from protocol.settings import OpenAIModel

__all__ = ["Deployment", "UpstreamStream"]

KEEP_ALIVE_S = 4.0
"""Shorter than the 5 s after which uvicorn-based upstreams close an idle connection, so that we never write
into one."""

ANTHROPIC_VERSION = "2023-06-01"
"""Of the protocol that `messages` endpoints speak."""

DRAIN_S = 0.1
"""How long a finished stream may take to end properly, which is what lets its connection be used again."""

_FAILURES = (aiohttp.ClientError, asyncio.TimeoutError)


@dataclass(frozen=True, slots=True)
class _Address:
    """A base URL taken apart: `unix:///run/x.sock` is the server behind that socket, under `/v1`."""

    url: str
    socket: str | None

    @classmethod
    def parse(cls, base_url: str) -> _Address:
        parts = urlsplit(base_url)
        if parts.scheme == "unix":
            return cls("http://localhost/v1", parts.path)
        return cls(base_url.rstrip("/"), None)


class Deployment:
    """`name` is the public model name, for error messages; `settings` say where it is served and as what."""

    def __init__(self, name: str, settings: OpenAIModel) -> None:
        self._name, self._settings = name, settings
        self._address = _Address.parse(settings.base_url)
        key = settings.api_key.get_secret_value() if settings.api_key else ""
        self._secrets = (key, settings.base_url, urlsplit(settings.base_url).netloc)
        self._headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": "chorus",
        }
        self._key = {"authorization": f"Bearer {key}"} if key else {}
        self._session: aiohttp.ClientSession | None = None

    async def call(self, path: str, body: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """POST `body` to `path` (as "/chat/completions"): the answer parsed, and its bytes. Raises
        `UpstreamError`."""
        try:
            async with self._post(path, {**body, "model": self._settings.model}) as response:
                raw = await response.read()
        except _FAILURES as error:
            raise translate(error, self._name) from error
        if response.status != 200:
            raise self._refusal(response, raw)
        try:
            parsed = orjson.loads(raw)
        except orjson.JSONDecodeError:
            parsed = None
        if not isinstance(parsed, dict):
            raise UpstreamBroken(f"The backend of {self._name!r} did not answer with a JSON object.")
        return parsed, raw

    async def stream(self, path: str, body: Mapping[str, Any]) -> UpstreamStream:
        """POST `body` to `path`, asking for a stream; returns once the upstream has begun. Raises
        `UpstreamError`."""
        options = {**(body.get("stream_options") or {}), "include_usage": True}
        outgoing = {**body, "model": self._settings.model, "stream": True, "stream_options": options}
        try:
            response: aiohttp.ClientResponse = await self._post(path, outgoing)
            try:
                await self._check_begun(response)
            except BaseException:
                response.close()
                raise
        except _FAILURES as error:
            raise translate(error, self._name) from error
        asked = bool((body.get("stream_options") or {}).get("include_usage"))
        return UpstreamStream(response, self._name, self._secrets, bare=not asked)

    @property
    def model(self) -> str:
        """The model's name there."""
        return self._settings.model

    @property
    def endpoints(self) -> frozenset[str]:
        """What the server has, as the settings say."""
        return self._settings.endpoints

    async def forward(self, outgoing: Outgoing) -> Passed:
        """Send what is to be passed on; returns once the answer has begun with 2xx. Raises `UpstreamError`."""
        headers = {**self._key, "content-type": outgoing.content_type}
        if outgoing.messages:
            headers["anthropic-version"] = ANTHROPIC_VERSION
            if self._settings.messages_auth == "x-api-key" and "authorization" in headers:
                del headers["authorization"]
                headers["x-api-key"] = self._secrets[0]
        url = self._address.url + outgoing.path
        try:
            response = await self._open().request(
                outgoing.method, url, data=outgoing.body, headers=headers, allow_redirects=False
            )
            try:
                if not 200 <= response.status < 300:
                    raise self._refusal(response, await response.read())
            except BaseException:
                response.close()
                raise
        except _FAILURES as error:
            raise translate(error, self._name) from error
        return Passed(response, self._name, self._secrets)

    async def healthy(self) -> bool:
        """Whether the server's own `/health` answers 200 within a second. Asked of our own processes only."""
        url = f"{self._address.url.removesuffix('/v1')}/health"
        try:
            async with self._open().get(url, timeout=aiohttp.ClientTimeout(total=1.0)) as response:
                return response.status == 200
        except _FAILURES:
            return False

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._open().post(
            self._address.url + path, data=orjson.dumps(body), headers=self._key, allow_redirects=False
        )

    def _open(self) -> aiohttp.ClientSession:
        """The session, made on first use because it belongs to the running event loop."""
        if self._session is None:
            limit = self._settings.max_connections
            connector = (
                aiohttp.UnixConnector(self._address.socket, limit=limit, keepalive_timeout=KEEP_ALIVE_S)
                if self._address.socket
                else aiohttp.TCPConnector(limit=limit, keepalive_timeout=KEEP_ALIVE_S)
            )
            clocks = aiohttp.ClientTimeout(
                total=self._settings.timeout_s,
                connect=self._settings.timeout_s,
                sock_connect=self._settings.connect_timeout_s,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=clocks,
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def _check_begun(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise self._refusal(response, await response.read())
        if response.content_type != "text/event-stream":
            raise UpstreamBroken(f"The backend of {self._name!r} did not answer with a stream.")

    def _refusal(self, response: aiohttp.ClientResponse, raw: bytes) -> Exception:
        return refusal(response.status, raw, response.headers, name=self._name, secrets=self._secrets)


class UpstreamStream:
    """The events of one streamed answer, in order, bytes untouched; see `StreamTap` for what is withheld.

    Iterate it to its end, or `abort` it. Raises `UpstreamError` while iterating.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, name: str, secrets: Sequence[str], *, bare: bool
    ) -> None:
        self._response, self._name = response, name
        self._tap = StreamTap(name, secrets, bare=bare)

    @property
    def usage_event(self) -> Mapping[str, Any] | None:
        """The upstream's event that held usage, parsed, once it has come."""
        return self._tap.usage_event

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._response.content.iter_any():
                for event in self._tap.feed(data):
                    yield event
                if self._tap.done:
                    await self._drain()
                    break
            self._tap.end()
        except _FAILURES as error:
            raise translate(error, self._name) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """Close the connection unless the answer has ended by itself; safe to repeat."""
        self._response.close()

    async def _drain(self) -> None:
        """Read the end of a body whose `[DONE]` has come; a server that does not end it loses the
        connection."""
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._response.content.read()
        except TimeoutError:
            self._response.close()
