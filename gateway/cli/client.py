"""A small client of a running gateway, for the commands that talk to one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import httpx
import orjson

from protocol.chat import ChatRequest
from protocol.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from protocol.run import Reply
from protocol.sse import EventSplitter, event_data

__all__ = ["AsyncClient", "post", "stream"]

TIMEOUT = httpx.Timeout(600.0, connect=5.0)


class AsyncClient:
    """Asks a gateway for complete answers. Enter it (`async with`) to open its connections. `limit`:
    connections at most."""

    def __init__(self, url: str, key: str | None = None, *, limit: int = 64) -> None:
        self._url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=_headers(key),
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=limit),
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def ask(self, model: str, request: ChatRequest) -> Reply:
        """The answer of `model`, with the cost the gateway reports and the time it took here. Raises
        `UpstreamError`."""
        started = time.perf_counter()
        with _translated(self._url):
            response = await self._http.post(
                "/v1/chat/completions", content=request.changed(model=model).wire()
            )
        _check(response.status_code, response.headers, response.content)
        try:
            body = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            raise UpstreamBroken(f"{self._url} did not answer with JSON; is it a Chorus gateway?") from None
        members = tuple(response.headers.get("x-chorus-model", model).split(","))
        cost_usd = float(response.headers.get("x-chorus-cost-usd", "nan"))
        return Reply(body, members, response.content, cost_usd, time.perf_counter() - started)


def post(url: str, path: str, key: str | None, body: Mapping[str, Any]) -> Any:
    """What `url`/`path` answers to `body`, as JSON. Raises `UpstreamError`."""
    with _translated(url), httpx.Client(headers=_headers(key), timeout=TIMEOUT) as http:
        response = http.post(f"{url.rstrip('/')}/{path}", content=orjson.dumps(body))
    _check(response.status_code, response.headers, response.content)
    try:
        return orjson.loads(response.content)
    except orjson.JSONDecodeError:
        raise UpstreamBroken(f"{url} did not answer with JSON.") from None


def stream(url: str, key: str | None, body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The JSON events of a streamed answer, headed by one `{"headers": …}` of the response. Raises
    `UpstreamError`, also for a stream that breaks or ends without `[DONE]`."""
    with (
        _translated(url),
        httpx.Client(base_url=url, headers=_headers(key), timeout=TIMEOUT, trust_env=False) as http,
        http.stream("POST", "/v1/chat/completions", content=orjson.dumps(body)) as response,
    ):
        if response.status_code != httpx.codes.OK:
            _check(response.status_code, response.headers, response.read())
        yield {"headers": dict(response.headers)}
        splitter = EventSplitter()
        for data in response.iter_raw():
            for raw in splitter.feed(data):
                payload = event_data(raw)
                if payload == b"[DONE]":
                    return
                if payload:
                    found = orjson.loads(payload)
                    if found.get("error"):
                        raise UpstreamBroken(str(found["error"].get("message")))
                    yield found
        raise UpstreamBroken("The answer was cut short.")


def _headers(key: str | None) -> dict[str, str]:
    return {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}


@contextmanager
def _translated(url: str) -> Iterator[None]:
    """Httpx's errors as ours."""
    try:
        yield
    except httpx.ConnectError:
        raise UpstreamUnavailable(f"No gateway answers at {url}; start one with `chorus serve`.") from None
    except httpx.TimeoutException:
        raise UpstreamTimeout(f"{url} did not answer in time.") from None
    except httpx.TransportError as error:
        raise UpstreamBroken(f"The connection to {url} broke: {error}.") from None


def _check(status: int, headers: Mapping[str, str], content: bytes) -> None:
    """Raise what a response that is not 200 says."""
    if status == httpx.codes.OK:
        return
    raise _error(status, headers, content)


def _error(status: int, headers: Mapping[str, str], content: bytes) -> UpstreamError:
    try:
        told = orjson.loads(content)["error"]
        message, code = str(told["message"]), told.get("code")
    except (orjson.JSONDecodeError, KeyError, TypeError):
        message, code, told = f"The gateway answered with status {status}.", None, {}
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        return UpstreamUnavailable(message, retry_after_s=float(headers.get("retry-after", "2")))
    if status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return UpstreamBroken(message, code=code)
    return UpstreamRefused(
        message, status=status, type=str(told.get("type")), param=told.get("param"), code=code
    )
