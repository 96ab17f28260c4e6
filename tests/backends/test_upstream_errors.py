"""The table of foreign errors."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from backends import http1
from backends.upstream_errors import TRANSLATED, NotConnected, redact, refusal, translate
from protocol.again import Again
from protocol.errors import (
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)

CLIENT_ERRORS = [
    error
    for error in vars(http1).values()
    if isinstance(error, type) and issubclass(error, http1.Http1Error) and error is not http1.Http1Error
]


@pytest.mark.parametrize("error", CLIENT_ERRORS, ids=lambda error: error.__name__)
def test_table_is_complete(error: type[http1.Http1Error]) -> None:
    """Every error that the HTTP client can raise has a place in the table, by itself or by an ancestor."""
    made = error.__new__(error)
    assert isinstance(translate(made, "m"), UpstreamError)


def test_table_names_the_model() -> None:
    """Every translation names the model and nothing else that it was told."""
    assert all("'m'" in made("m").message for made in TRANSLATED.values())


def test_the_root_is_nobodys_error() -> None:
    """What is in no branch of the client's tree is not made a network error."""
    with pytest.raises(http1.Http1Error):
        translate(http1.Http1Error(), "m")


@pytest.mark.parametrize(
    ("raised", "expected", "again"),
    [
        (http1.TlsError, NotConnected, Again.SAME),
        (http1.ConnectTimeout, NotConnected, Again.SAME),
        (http1.PoolExhausted, UpstreamBusy, Again.SAME),
        (http1.Unanswered, UpstreamUnavailable, Again.ELSEWHERE),
        (http1.ClosedEarly, UpstreamBroken, Again.ELSEWHERE),
        (http1.TooLarge, UpstreamBroken, Again.ELSEWHERE),
        (http1.TotalTimeout, UpstreamTimeout, Again.ELSEWHERE),
    ],
)
def test_translations(raised: type[http1.Http1Error], expected: type[UpstreamError], again: Again) -> None:
    """Only what certainly was not read may be sent to the same backend again."""
    error = translate(raised(), "m")
    assert type(error) is expected
    assert error.again is again


@pytest.mark.parametrize(
    ("status", "again"),
    [
        (400, Again.NEVER), (401, Again.ELSEWHERE), (403, Again.ELSEWHERE), (404, Again.ELSEWHERE),
        (408, Again.SAME), (409, Again.SAME), (413, Again.NEVER), (422, Again.NEVER), (429, Again.SAME),
        (302, Again.ELSEWHERE), (500, Again.SAME), (502, Again.SAME), (503, Again.SAME), (504, Again.ELSEWHERE),
    ],
)  # fmt: skip
def test_who_may_be_asked_after_a_status(status: int, again: Again) -> None:
    """Each status says whether the same backend, another one, or nobody is asked again."""
    assert refusal(status, b"", {}, name="m").again is again


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


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "refused the request (400)"),
        (b"[]", "refused the request (400)"),
        (b"<html>", "refused the request (400)"),
        (b'{"error": null}', "refused the request (400)"),
        (b'{"detail": []}', "refused the request (400)"),
        (b'{"error": "no"}', "no"),
        (b'{"message": "no"}', "no"),
        (b'{"detail": "no"}', "no"),
        (
            b'{"detail": [{"loc": ["body", "n"], "msg": "too low", "input": "x"}, {"loc": ["body"], "msg": "odd"}, 3]}',
            "body.n: too low; body: odd",
        ),
    ],
)
def test_foreign_bodies(body: bytes, told: str) -> None:
    """A refusal in any other shape still becomes one in ours, and says what the backend says, FastAPI's servers too."""
    message = refusal(400, body, {}, name="m").body()["error"]["message"]
    assert message == told or message == f"The backend of 'm' {told}."


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "nan"}, None),
        ({"retry-after-ms": "inf"}, 86_400.0),
        ({"retry-after-ms": "-5"}, 0.0),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], wait_s: float | None) -> None:
    """The upstream's wait is read from either header."""
    error = refusal(429, b"", headers, name="m")
    assert isinstance(error, UpstreamRefused)
    assert error.retry_after_s == error.asked_s == wait_s


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
