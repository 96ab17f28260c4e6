"""The table of foreign errors."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate

import aiohttp
import pytest

from backends.upstream_errors import TRANSLATED, NotConnected, redact, refusal, translate
from protocol.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)

CLIENT_ERRORS = [
    error
    for error in vars(aiohttp).values()
    if isinstance(error, type) and issubclass(error, aiohttp.ClientError) and error is not aiohttp.ClientError
]


@pytest.mark.parametrize("error", [*CLIENT_ERRORS, asyncio.TimeoutError], ids=lambda error: error.__name__)
def test_table_is_complete(error: type[BaseException]) -> None:
    """Every error that aiohttp's client can raise has a place in the table, by itself or by an ancestor."""
    made = error.__new__(error)
    assert isinstance(translate(made, "m"), UpstreamError)


def test_table_names_the_model() -> None:
    """Every translation names the model and nothing else that it was told."""
    assert all("'m'" in made("m").message for made in TRANSLATED.values())


def test_foreign_bugs_pass() -> None:
    """What is no network error is not made one."""
    with pytest.raises(ZeroDivisionError):
        translate(ZeroDivisionError(), "m")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (aiohttp.ClientConnectorError, NotConnected),
        (aiohttp.ConnectionTimeoutError, NotConnected),
        (aiohttp.ServerDisconnectedError, UpstreamUnavailable),
        (aiohttp.ClientPayloadError, UpstreamBroken),
        (aiohttp.SocketTimeoutError, UpstreamTimeout),
        (asyncio.TimeoutError, UpstreamTimeout),
    ],
)
def test_translations(raised: type[BaseException], expected: type[UpstreamError]) -> None:
    """Only a connection that never was may be tried again elsewhere."""
    assert type(translate(raised.__new__(raised), "m")) is expected


@pytest.mark.parametrize(
    ("status", "expected", "told"),
    [
        (400, UpstreamRefused, 400),
        (422, UpstreamRefused, 422),
        (429, UpstreamRefused, 429),
        (401, UpstreamBroken, 502),
        (403, UpstreamBroken, 502),
        (302, UpstreamBroken, 502),
        (500, UpstreamBroken, 502),
        (503, UpstreamUnavailable, 503),
        (504, UpstreamTimeout, 504),
    ],
)
def test_statuses(status: int, expected: type[UpstreamError], told: int) -> None:
    """An upstream's own 4xx keeps its status; its 401 is about our key, so the caller sees a 502."""
    error = refusal(status, b"", {}, name="m")
    assert type(error) is expected
    assert error.status == told


def test_openai_fields_pass() -> None:
    """OpenAI's fields of a refusal are passed on; numbers become strings and "None" nothing."""
    body = b'{"error": {"message": "no", "type": "None", "param": "messages", "code": 400}}'
    error = refusal(400, body, {}, name="m").body()["error"]
    assert error == {"message": "no", "type": "invalid_request_error", "param": "messages", "code": "400"}


@pytest.mark.parametrize("body", [b"", b"[]", b"<html>", b'{"detail": "no"}', b'{"error": "no"}'])
def test_foreign_bodies(body: bytes) -> None:
    """A refusal in any other shape still becomes one in ours."""
    assert refusal(400, body, {}, name="m").body()["error"]["message"]


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], wait_s: float | None) -> None:
    """The upstream's wait is read from either header."""
    error = refusal(429, b"", headers, name="m")
    assert isinstance(error, UpstreamRefused)
    assert error.retry_after_s == wait_s


def test_retry_after_date() -> None:
    """A date counts from now."""
    error = refusal(429, b"", {"retry-after": formatdate(time.time() + 60, usegmt=True)}, name="m")
    assert isinstance(error, UpstreamRefused)
    assert error.retry_after_s == pytest.approx(60, abs=5)


def test_redacts() -> None:
    """Keys and addresses do not pass."""
    body = b'{"error": {"message": "Incorrect key sk-canary at http://host/v1"}}'
    told = refusal(400, body, {}, name="m", secrets=("sk-canary", "http://host/v1")).message
    assert told == "Incorrect key [redacted] at [redacted]"
    assert redact("x", ("",)) == "x"
