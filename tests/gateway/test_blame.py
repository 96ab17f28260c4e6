"""Whose fault a failure was, on every way to a backend: what one caller can bring about closes a model to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.balancer import Balancer, Seat, Turn
from backends.breaker import Breaker
from gateway.app import Gateway
from gateway.composition import make_catalogue
from protocol.errors import UpstreamBroken, UpstreamError, UpstreamRefused, UpstreamTimeout
from protocol.settings import parse_settings
from tests.raw_upstream import SSE, RawUpstream, chat_answer, chat_stream, recorded

BACKENDS = (401, 403, 408, 409, 425, 429, 500, 502, 503, 504, 307)
"""Statuses that speak of the backend, or of our way to it."""
CALLERS = (
    400,
    402,
    404,
    405,
    406,
    410,
    411,
    412,
    413,
    414,
    415,
    416,
    417,
    418,
    421,
    422,
    423,
    424,
    426,
    428,
    431,
    451,
)
"""Statuses that a caller can bring about."""

ASK = {
    "model": "m",
    "messages": [{"role": "user", "content": "x"}],
    "prompt": "x",
    "input": "x",
    "max_tokens": 5,
}
WAYS: dict[str, tuple[str, str, bool]] = {
    "chat": ("POST", "/v1/chat/completions", False),
    "chat stream": ("POST", "/v1/chat/completions", True),
    "text": ("POST", "/v1/completions", False),
    "text stream": ("POST", "/v1/completions", True),
    "embeddings": ("POST", "/v1/embeddings", False),
    "messages passed on": ("POST", "/v1/messages", False),
    "messages stream passed on": ("POST", "/v1/messages", True),
    "responses passed on": ("POST", "/v1/responses", False),
    "responses stream passed on": ("POST", "/v1/responses", True),
    "images": ("POST", "/v1/images/generations", False),
    "a file": ("GET", "/v1/files/f/content", False),
    "a batch": ("POST", "/v1/batches", False),
}
ENDPOINTS = ["chat", "completions", "embeddings", "messages", "responses", "images", "files", "batches"]


class Door:
    """A gateway in this process, in front of an upstream that answers as told, with breakers that open at once."""

    def __init__(self, url: str) -> None:
        self._settings = parse_settings(
            f"{{models: {{m: {{openai: {{base_url: '{url}', model: x, endpoints: {ENDPOINTS}, timeout_s: 5}}}}}}, "
            "resilience: {retries: 0, breaker_failures: 1}}"
        )
        self.fresh()

    def fresh(self) -> None:
        """Forget what happened."""
        self.catalogue = make_catalogue(self._settings, {})
        self._gateway: Any = Gateway(self.catalogue, self._settings)

    @property
    def breaker(self) -> Breaker:
        return self.catalogue.models["m"].seats[0].breaker

    async def ask(self, way: str) -> int:
        """The status of one request."""
        method, path, stream = WAYS[way]
        transport = httpx.ASGITransport(self._gateway)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            body = {**ASK, "stream": stream} if method == "POST" else None
            return (await client.request(method, path, json=body)).status_code


@pytest.fixture
async def upstream() -> RawUpstream:
    return RawUpstream()


@pytest.fixture
async def door(upstream: RawUpstream) -> AsyncIterator[Door]:
    async with upstream.serving() as url:
        made = Door(url)
        yield made
        await made.catalogue.close()


@pytest.mark.parametrize("way", WAYS)
async def test_statuses(door: Door, upstream: RawUpstream, way: str) -> None:
    """A status that a caller can bring about leaves the breaker closed, also with a Retry-After; others open it."""
    for status in (*CALLERS, *BACKENDS):
        headers = {"retry-after": "9"} if status % 2 == 0 else {}
        upstream.answers[WAYS[way][1]] = recorded(
            {"error": {"message": "no"}}, status=status, headers=headers
        )
        assert await door.ask(way) >= 400
        assert door.breaker.open == (status in BACKENDS), status
        await door.catalogue.close()
        door.fresh()


REFUSING: dict[str, dict[str, Any]] = {
    "a status in code": {"message": "no", "code": 400},
    "a status as text": {"message": "no", "code": "413"},
    "openai's word": {"message": "no", "type": "invalid_request_error", "code": None},
    "vllm's word": {"message": "no", "type": "BadRequestError"},
    "responses' word": {"message": "no", "code": "invalid_prompt"},
}
BLAMING: dict[str, dict[str, Any]] = {
    "a status of its own": {"message": "no", "code": 500},
    "our credentials": {"message": "no", "code": 401},
    "too many": {"message": "no", "code": 429},
    "no word": {"message": "no"},
    "anthropic's word": {"message": "no", "type": "overloaded_error"},
}


@pytest.mark.parametrize("way", [way for way, (_, _, stream) in WAYS.items() if stream])
@pytest.mark.parametrize("told", [*REFUSING, *BLAMING])
async def test_error_events(door: Door, upstream: RawUpstream, way: str, told: str) -> None:
    """So it is with an error event: one that blames the request says nothing about the backend."""
    body = {"type": "error", "error": {**REFUSING, **BLAMING}[told]}
    upstream.answer(WAYS[way][1], b"event: error\ndata: " + orjson.dumps(body) + b"\n\n", content_type=SSE)
    status = await door.ask(way)
    assert door.breaker.open == (told in BLAMING)
    assert status == {"a status as text": 413, "too many": 429}.get(told, 400 if told in REFUSING else 502)


@pytest.mark.parametrize(
    ("way", "answer"),
    [
        ("chat", recorded(b"{")),
        ("chat stream", recorded(chat_stream({"content": "x"})[:-60], content_type=SSE)),
        ("messages passed on", recorded(b"{")),
        ("messages stream passed on", recorded(b"event: ping\ndata: {}\n\n", content_type=SSE)),
        ("responses stream passed on", recorded(b'data: {"type":"error","x', content_type=SSE)),
        ("images", recorded(b"<html>")),
    ],
)
async def test_what_is_no_answer(door: Door, upstream: RawUpstream, way: str, answer: Any) -> None:
    """An answer that is none, or breaks off, is the backend's fault on every way."""
    upstream.answers[WAYS[way][1]] = answer
    await door.ask(way)
    assert door.breaker.open


async def test_leaving_is_no_verdict(door: Door, upstream: RawUpstream) -> None:
    """A caller who leaves before his answer neither opens the breaker nor closes a half-open one."""
    gate = asyncio.Event()

    class Slow(RawUpstream):
        async def _answer(self, request: Any) -> Any:
            await gate.wait()
            return await super()._answer(request)

    async with Slow().serving() as url:
        slow = Door(url)
        for way in ("chat", "chat stream", "messages passed on", "images"):
            slow.breaker._until = 0.0  # half-open: the next call is the probe
            asking = asyncio.create_task(slow.ask(way))
            while not slow.breaker._probing:  # noqa: ASYNC110 - what it waits for is another task's affair
                await asyncio.sleep(0.001)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert (slow.breaker.open, slow.breaker._probing) == (True, False)
            slow.fresh()
        gate.set()
        await slow.catalogue.close()


async def test_a_good_answer_closes_it(door: Door, upstream: RawUpstream) -> None:
    """A probe that is answered closes the breaker, on the ways of chat and on those that are passed on."""
    upstream.answer("/v1/chat/completions", chat_answer({"content": "x"}))
    upstream.answer("/v1/images/generations", {"data": []})
    upstream.answer("/v1/files/f/content", b"x", content_type="application/octet-stream")
    for way in ("chat", "images", "a file"):
        door.breaker._until = 0.0
        assert await door.ask(way) == 200
        assert not door.breaker.open


ERRORS: dict[str, UpstreamError] = {
    **{f"caller {status}": UpstreamRefused("", status=status) for status in CALLERS},
    "late": UpstreamTimeout(""),
    "broken": UpstreamBroken(""),
    "busy": UpstreamRefused("", status=429),
}


@given(st.lists(st.sampled_from(["ok", "left", *ERRORS]), max_size=40), st.integers(1, 4))
def test_what_callers_do_is_invisible(outcomes: list[str], failures: int) -> None:
    """Whatever happens, leaving out what callers brought about leaves the breaker as it is: they can neither open it,
    nor hide a failing backend by resetting its count."""

    def after(told: list[str]) -> tuple[Any, ...]:
        seat = Seat(breaker=Breaker(failures, 5.0))
        balancer = Balancer([seat])
        for now, outcome in enumerate(told):
            turn = balancer.choose(1e6 * now)
            assert isinstance(turn, Turn)
            if outcome == "ok":
                turn.succeeded(0.0)
            elif outcome in ERRORS:
                turn.failed(0.0, ERRORS[outcome])
            turn.release()
        breaker = seat.breaker
        return breaker._failures, breaker._trips, breaker.open, breaker._probing, seat.under_way

    seen = [outcome for outcome in outcomes if not outcome.startswith(("caller", "left"))]
    assert after(outcomes) == after(seen)
