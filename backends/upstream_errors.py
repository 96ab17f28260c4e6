"""Foreign errors, translated once: what the HTTP client raised or an upstream answered, as one of `protocol.errors`.

Messages name the model as the operator configured it, never the upstream's address or key; what an upstream
says about its own 4xx is passed on after `redact`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from backends.http1 import (
    BadResponse,
    ClosedEarly,
    ConnectError,
    Http1Error,
    PoolExhausted,
    TimedOut,
    Unanswered,
)
from protocol.again import Again
from protocol.errors import (
    UpstreamBroken,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)

__all__ = [
    "TRANSLATED",
    "NotConnected",
    "broken",
    "redact",
    "refusal",
    "timed_out",
    "told_error",
    "translate",
]


class NotConnected(UpstreamUnavailable):
    """The request never reached the backend, so that another deployment may be asked without doing anything
    twice."""


def _not_connected(name: str) -> UpstreamError:
    return NotConnected(f"The backend of {name!r} cannot be reached.")


def timed_out(name: str) -> UpstreamTimeout:
    """One of the clocks of an attempt ran out."""
    return UpstreamTimeout(f"The backend of {name!r} did not answer in time.")


def _lost(name: str) -> UpstreamError:
    return UpstreamUnavailable(
        f"The backend of {name!r} closed the connection before it began to answer.", again=Again.ELSEWHERE
    )


def _crowded(name: str) -> UpstreamError:
    return UpstreamBusy(f"Every connection to the backend of {name!r} is in use.")


def _broken(name: str) -> UpstreamError:
    return UpstreamBroken(f"The backend of {name!r} closed the connection before its answer was complete.")


def _garbled(name: str) -> UpstreamError:
    return UpstreamBroken(f"The backend of {name!r} did not speak HTTP as it should.")


_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")

TRANSLATED: Mapping[type[Http1Error], Callable[[str], UpstreamError]] = {
    ConnectError: _not_connected,
    PoolExhausted: _crowded,
    Unanswered: _lost,
    ClosedEarly: _broken,
    BadResponse: _garbled,
    TimedOut: timed_out,
}
"""What the client may raise → what it means here; the nearest class in the exception's ancestry decides."""


def translate(error: Http1Error, name: str) -> UpstreamError:
    """The upstream error that `error`, raised by the client for the model `name`, amounts to."""
    for kind in type(error).__mro__:
        if kind in TRANSLATED:
            translated = TRANSLATED[kind](name)
            translated.cause = str(error)
            return translated
    raise error


def broken(name: str, what: str) -> UpstreamBroken:
    """The backend answered, but not with an answer: `what` says how."""
    return UpstreamBroken(f"The backend of {name!r} {what}.")


def refusal(
    status: int, body: bytes, headers: Mapping[str, str], *, name: str, secrets: Sequence[str] = ()
) -> UpstreamError:
    """The error for an upstream's answer of `status` (not 2xx).

    Its own 4xx keeps status and OpenAI fields. 401 and 403 speak of the gateway's credentials, not of the
    caller's, so they become 502; 5xx texts are the upstream's internals and stay behind.
    """
    wait_s = _retry_after_s(headers)
    error = _refusal(status, body, wait_s, name, secrets)
    error.asked_s, error.cause = wait_s, f"status {status}"
    return error


def _refusal(
    status: int, body: bytes, wait_s: float | None, name: str, secrets: Sequence[str]
) -> UpstreamError:
    if status in (401, 403):
        return UpstreamBroken(
            f"The backend of {name!r} refused the gateway's credentials.", code="upstream_credentials"
        )
    if status == 503:
        return UpstreamUnavailable(
            f"The backend of {name!r} is not available now.", retry_after_s=wait_s or 2.0
        )
    if status == 504:
        return timed_out(name)
    if not 400 <= status < 500:
        # A server that says it failed did not answer; one that redirects will do so again.
        again = Again.SAME if status >= 500 else Again.ELSEWHERE
        return UpstreamBroken(f"The backend of {name!r} answered with status {status}.", again=again)
    return _refused(status, _error_fields(body), wait_s, name, secrets)


def _refused(
    status: int, fields: Mapping[str, Any], wait_s: float | None, name: str, secrets: Sequence[str]
) -> UpstreamRefused:
    kind, param, code = (_safe_word(fields.get(key), secrets) for key in ("type", "param", "code"))
    return UpstreamRefused(
        redact(
            str(fields.get("message") or f"The backend of {name!r} refused the request ({status})."), secrets
        ),
        status=status,
        type=kind or ("rate_limit_error" if status == 429 else "invalid_request_error"),
        param=param,
        code=code or ("rate_limit_exceeded" if status == 429 else None),
        retry_after_s=wait_s,
    )


def told_error(error: Any, *, name: str, secrets: Sequence[str] = ()) -> UpstreamError:
    """The error for an `error` object found where an answer should be, in an event or in a body of status 200. One
    that says that the request is at fault is a refusal, as it would have been with a status of its own."""
    message = error.get("message") if isinstance(error, Mapping) else error
    if isinstance(error, Mapping) and (status := _told_status(error)) is not None:
        return _refused(status, error, None, name, secrets)
    return UpstreamBroken(
        f"The backend of {name!r} failed while answering: {redact(str(message)[:500], secrets)}"
    )


def _told_status(error: Mapping[str, Any]) -> int | None:
    """The status with which a told error refuses a request, None where it does not: servers put it into `code`, name
    it with OpenAI's or Python's word in `type`, or with the word in `code` that Responses has for it."""
    code = str(error.get("code"))
    if code.isascii() and code.isdigit():
        status = int(code)
        return status if 400 <= status < 500 and status not in (401, 403) else None
    blaming = error.get("type") in ("invalid_request_error", "BadRequestError") or code == "invalid_prompt"
    return 400 if blaming else None


def redact(text: str, secrets: Sequence[str]) -> str:
    """`text` with every one of `secrets` (keys, addresses) blotted out."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[redacted]")
    return text


def _error_fields(body: bytes) -> Mapping[str, Any]:
    """OpenAI's error fields, also where a server puts them at the top level, and what FastAPI's servers say in
    `detail`; empty for anything else."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    error = parsed.get("error") or parsed
    if not isinstance(error, dict):
        return {"message": error}
    if "message" not in error and (detail := error.get("detail")):
        return {**error, "message": _detail(detail)}
    return error


def _detail(detail: Any) -> str:
    """A sentence, or FastAPI's list of what was wrong where."""
    if not isinstance(detail, list):
        return str(detail)
    faults = [fault for fault in detail if isinstance(fault, Mapping)]
    return "; ".join(f"{'.'.join(map(str, fault.get('loc') or ()))}: {fault.get('msg')}" for fault in faults)


def _safe_word(value: Any, secrets: Sequence[str]) -> str | None:
    """OpenAI's `type`, `param` and `code` are single words; some servers send numbers or the word None. Anything else
    is dropped: it could hold what only messages are searched for."""
    told = redact(str(value), secrets)
    return told if told != "None" and _WORD.fullmatch(told) else None


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The wait an upstream asks for, in seconds: `retry-after-ms`, or `retry-after` as seconds or an HTTP
    date."""
    try:
        if "retry-after-ms" in headers:
            return _sane(float(headers["retry-after-ms"]) / 1000)
        if "retry-after" in headers:
            value = headers["retry-after"].strip()
            if value.replace(".", "", 1).isdigit():
                return _sane(float(value))
            return _sane(parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
    return None


def _sane(seconds: float) -> float | None:
    """A wait as a number from 0 to a day; None for what is no number."""
    return None if seconds != seconds else min(max(0.0, seconds), 86_400.0)
