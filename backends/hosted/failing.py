"""LiteLLM's exceptions, translated once: what the provider would have answered, had it spoken OpenAI's protocol.

The gateway judges an OpenAI-compatible backend by its status (backends/upstream_errors.py), and it judges this one the
same way, so a failure goes on as what it was: a refusal with its status and `Retry-After`, no connection as 503, a
clock as 504, a connection that was lost as one that is lost, and an answer that was none as an empty one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from backends.upstream_errors import redact

__all__ = ["Failure", "failure_of"]

_WAITS = ("retry-after", "retry-after-ms")
_PREFIX = re.compile(r"^(litellm\.\w+:\s*)+|^\w+(?:Exception|Error)\s*[-:]\s*", re.IGNORECASE)
_CODES: Mapping[str, str] = {
    "ContextWindowExceededError": "context_length_exceeded",
    "ContentPolicyViolationError": "content_policy_violation",
    "UnsupportedParamsError": "unsupported_parameter",
}
_UNREACHED = frozenset({"ConnectError", "ConnectTimeout", "ClientConnectorError", "ClientConnectorDNSError",
                        "ClientConnectorCertificateError", "ClientConnectorSSLError", "ConnectionTimeoutError",
                        "ConnectionRefusedError", "gaierror"})  # fmt: skip
_TIMES = frozenset({"Timeout", "TimeoutException", "ReadTimeout", "WriteTimeout", "PoolTimeout", "APITimeoutError",
                    "TimeoutError", "ServerTimeoutError", "SocketTimeoutError"})  # fmt: skip
_LOST = frozenset({"ReadError", "RemoteProtocolError", "ServerDisconnectedError", "ClientPayloadError",
                   "ClientOSError", "ConnectionResetError", "IncompleteRead", "CloseError", "WriteError"})  # fmt: skip
_UNREADABLE = frozenset({"JSONDecodeError", "ValidationError", "KeyError", "TypeError", "UnicodeDecodeError"})
"""Names of exceptions of httpx, aiohttp, openai and the standard library, which litellm wraps in its own."""


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call failed: the `status` to answer with, or `lost`; `body` is an OpenAI error."""

    status: int = 200
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    lost: bool = False

    @property
    def message(self) -> str:
        """What happened, in words."""
        told = (self.body.get("error") or {}).get("message")
        return str(told or ("the connection was lost" if self.lost else "it sent what is no answer"))


def failure_of(error: BaseException, secrets: Sequence[str]) -> Failure:
    """What `error`, raised by litellm, amounts to. No message holds one of `secrets`."""
    names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    if names & _UNREACHED:
        return _refused(503, "The provider cannot be reached.")
    if names & _TIMES:
        return _refused(504, "The provider did not answer in time.")
    if names & _LOST:
        return Failure(lost=True)
    code = next((code for kind, code in _CODES.items() if kind in names), None)
    wire = next(
        (cause.response for cause in _causes(error) if isinstance(cause, httpx.HTTPStatusError)), None
    )
    if wire is not None:
        # Status and headers as they came: litellm's own may be another provider's idea of them.
        headers = {name: wire.headers[name] for name in _WAITS if name in wire.headers}
        told = _error_of(_text(wire)) or _error_of(str(error))
        message = str(told.get("message") or _unwrapped(error))
        told_code = told.get("code")
        code = code or (told_code if isinstance(told_code, str) else None)
        return _refused(wire.status_code, redact(message, secrets), code, headers)
    if "BadRequestError" in names and not names & _UNREADABLE:
        return _refused(400, redact(_unwrapped(error), secrets), code)  # litellm refuses it, nothing was sent
    return Failure()  # it answered, and litellm could not read it


def _refused(
    status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None
) -> Failure:
    kind = (
        "rate_limit_error" if status == 429 else "invalid_request_error" if status < 500 else "server_error"
    )
    error = {"message": message[:2000], "type": kind, "param": None, "code": code}
    return Failure(status, {"error": error}, headers or {})


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The exception and what it was made of."""
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting and len(seen) < 16:
        cause = waiting.pop()
        if isinstance(cause, BaseException) and all(cause is not other for other in seen):
            seen.append(cause)
            waiting += [cause.__cause__, cause.__context__, getattr(cause, "original_exception", None)]
    return iter(seen)


def _error_of(text: str) -> Mapping[str, Any]:
    """The error object in what a provider sent, or in what litellm made of it; empty where there is none."""
    at = text.find("{")
    try:
        told, _ = json.JSONDecoder().raw_decode(text, at) if at >= 0 else (None, 0)
    except ValueError:
        return {}
    if not isinstance(told, Mapping):
        return {}
    inner = told.get("error")
    return inner if isinstance(inner, Mapping) else told


def _text(response: httpx.Response) -> str:
    try:
        return response.text
    except httpx.StreamError:
        return ""  # it was never read


def _unwrapped(error: BaseException) -> str:
    """What the provider said, without what litellm wrapped around it."""
    text = str(getattr(error, "message", None) or error)
    for _ in range(4):
        text = _PREFIX.sub("", text).strip()
    return text or "The provider refused the request."
