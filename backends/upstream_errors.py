"""Foreign errors, translated once: what aiohttp raised or an upstream answered, as one of `protocol.errors`.

Messages name the model as the operator configured it, never the upstream's address or key; what an upstream
says about its own 4xx is passed on after `redact`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
import orjson

from protocol.errors import (
    UpstreamBroken,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)

__all__ = ["TRANSLATED", "NotConnected", "redact", "refusal", "stream_error", "translate"]


class NotConnected(UpstreamUnavailable):
    """The request never reached the backend, so that another deployment may be asked without doing anything
    twice."""


def _not_connected(name: str) -> UpstreamError:
    return NotConnected(f"The backend of {name!r} cannot be reached.")


def _timed_out(name: str) -> UpstreamError:
    return UpstreamTimeout(f"The backend of {name!r} did not answer in time.")


def _lost(name: str) -> UpstreamError:
    return UpstreamUnavailable(f"The backend of {name!r} closed the connection before it began to answer.")


def _broken(name: str) -> UpstreamError:
    return UpstreamBroken(f"The backend of {name!r} closed the connection before its answer was complete.")


def _garbled(name: str) -> UpstreamError:
    return UpstreamBroken(f"The backend of {name!r} did not speak HTTP as it should.")


_WORD = re.compile(r"[A-Za-z0-9_.\[\]-]{1,64}")

TRANSLATED: Mapping[type[BaseException], Callable[[str], UpstreamError]] = {
    aiohttp.ClientConnectorError: _not_connected,
    aiohttp.ConnectionTimeoutError: _not_connected,
    aiohttp.ServerFingerprintMismatch: _not_connected,
    aiohttp.InvalidURL: _not_connected,
    aiohttp.NonHttpUrlClientError: _not_connected,
    aiohttp.ServerTimeoutError: _timed_out,
    asyncio.TimeoutError: _timed_out,
    aiohttp.ClientConnectionError: _lost,
    aiohttp.ClientPayloadError: _broken,
    aiohttp.UploadAbortedError: _broken,
    aiohttp.ClientResponseError: _garbled,
    aiohttp.RedirectClientError: _garbled,
}
"""What aiohttp may raise → what it means here; the nearest class in the exception's ancestry decides.

A connection that is lost while an answer comes in raises ClientPayloadError; the others tell of one lost
before."""


def translate(error: BaseException, name: str) -> UpstreamError:
    """The upstream error that `error`, raised by aiohttp for the model `name`, amounts to."""
    for kind in type(error).__mro__:
        if kind in TRANSLATED:
            return TRANSLATED[kind](name)
    raise error


def refusal(
    status: int, body: bytes, headers: Mapping[str, str], *, name: str, secrets: Sequence[str] = ()
) -> UpstreamError:
    """The error for an upstream's answer of `status` (not 2xx).

    Its own 4xx keeps status and OpenAI fields. 401 and 403 speak of the gateway's credentials, not of the
    caller's, so they become 502; 5xx texts are the upstream's internals and stay behind.
    """
    if status in (401, 403):
        return UpstreamBroken(
            f"The backend of {name!r} refused the gateway's credentials.", code="upstream_credentials"
        )
    if status == 503:
        return UpstreamUnavailable(
            f"The backend of {name!r} is not available now.", retry_after_s=_retry_after_s(headers) or 2.0
        )
    if status == 504:
        return _timed_out(name)
    if not 400 <= status < 500:
        return UpstreamBroken(f"The backend of {name!r} answered with status {status}.")
    fields = _error_fields(body)
    kind, param, code = (_safe_word(fields.get(key), secrets) for key in ("type", "param", "code"))
    return UpstreamRefused(
        redact(
            str(fields.get("message") or f"The backend of {name!r} refused the request ({status})."), secrets
        ),
        status=status,
        type=kind or ("rate_limit_error" if status == 429 else "invalid_request_error"),
        param=param,
        code=code or ("rate_limit_exceeded" if status == 429 else None),
        retry_after_s=_retry_after_s(headers),
    )


def stream_error(error: Any, *, name: str, secrets: Sequence[str] = ()) -> UpstreamBroken:
    """The error for an `error` object found among an upstream's stream events."""
    message = error.get("message") if isinstance(error, Mapping) else error
    return UpstreamBroken(
        f"The backend of {name!r} failed while answering: {redact(str(message)[:500], secrets)}"
    )


def redact(text: str, secrets: Sequence[str]) -> str:
    """`text` with every one of `secrets` (keys, addresses) blotted out."""
    for secret in secrets:
        if secret:
            text = text.replace(secret, "[redacted]")
    return text


def _error_fields(body: bytes) -> Mapping[str, Any]:
    """OpenAI's error fields, also where a server puts them at the top level; empty for anything else."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(parsed, dict):
        return {}
    error = parsed.get("error", parsed)
    return error if isinstance(error, dict) else {"message": error}


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
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        if "retry-after" in headers:
            value = headers["retry-after"].strip()
            if value.replace(".", "", 1).isdigit():
                return float(value)
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
    return None
