"""Every error of Chorus, as one tree branched by whose fault it is.

    ChorusError
    ├── CallerError             the request; never retried, never falls back
    │   ├── BadRequest            400  invalid_request_error
    │   ├── ContextLengthExceeded 400  invalid_request_error   context_length_exceeded
    │   ├── Unauthenticated       401  authentication_error    invalid_api_key
    │   ├── Forbidden             403  permission_error
    │   ├── NotFound              404  invalid_request_error
    │   │   └── ModelNotFound     404  invalid_request_error   model_not_found
    │   ├── MethodNotAllowed      405  invalid_request_error   method_not_allowed
    │   ├── RequestTimeout        408  timeout_error           request_timeout
    │   ├── PayloadTooLarge       413  invalid_request_error   payload_too_large
    │   ├── UnsupportedEncoding   415  invalid_request_error   unsupported_encoding
    │   ├── HeadersTooLarge       431  invalid_request_error   headers_too_large
    │   ├── BudgetExceeded        429  insufficient_quota      budget_exceeded
    │   ├── QuotaSpent            429  insufficient_quota      insufficient_quota
    │   ├── NotCached             504  invalid_request_error   not_cached
    │   ├── RateLimited           429  requests | tokens | …   rate_limit_exceeded
    │   └── DeadlineExceeded      504  timeout_error           deadline_exceeded
    ├── UpstreamError           a backend; a retry or another backend may help
    │   ├── UpstreamRefused       as the backend said (its own 4xx)
    │   ├── UpstreamBusy          429  rate_limit_error        rate_limit_exceeded
    │   ├── UpstreamUnavailable   503  server_error            upstream_unavailable
    │   ├── UpstreamTimeout       504  timeout_error           upstream_timeout
    │   └── UpstreamBroken        502  server_error            upstream_broken
    ├── MethodError             500  a method or its artefact; the config must be mended
    │   └── ArtefactMismatch
    ├── SettingsError           what the operator typed; stops the start, never crosses HTTP
    ├── StateUnavailable        503  server_error            state_unavailable
    └── InternalError           500  ours

Each class fixes the HTTP status, OpenAI's `type` and `code`, and whether trying again makes sense.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any, ClassVar

from protocol.again import Again

__all__ = [
    "ArtefactMismatch",
    "BadRequest",
    "BudgetExceeded",
    "CallerError",
    "ChorusError",
    "ContextLengthExceeded",
    "DeadlineExceeded",
    "Forbidden",
    "HeadersTooLarge",
    "InternalError",
    "MethodError",
    "MethodNotAllowed",
    "ModelNotFound",
    "NotCached",
    "NotFound",
    "PayloadTooLarge",
    "QuotaSpent",
    "RateLimited",
    "RequestTimeout",
    "SettingsError",
    "StateUnavailable",
    "Unauthenticated",
    "UnsupportedEncoding",
    "UpstreamBroken",
    "UpstreamBusy",
    "UpstreamError",
    "UpstreamRefused",
    "UpstreamTimeout",
    "UpstreamUnavailable",
]


_COMPARED, _LISTED = 200, 50
"""Known names that a wrong one is compared with, and that are listed: asking for what is not there must stay cheap."""


class ChorusError(Exception):
    """Root of the tree. `message` is safe to show to the caller: it never holds a key or an upstream's secret."""

    status: int = 500
    type: str = "server_error"
    code: str | None = None
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    @property
    def outcome(self) -> str:
        """What the error is called in metrics and traces: one of few words, all of them ours."""
        return self.code or self.type

    def headers(self) -> dict[str, str]:
        """Response headers that tell an SDK whether and when to try again: it would, unasked, after any 5xx."""
        return {} if self.retryable or self.status < 500 else {"x-should-retry": "false"}


class CallerError(ChorusError):
    """The request is at fault; sending it again unchanged cannot help."""

    status = 400
    type = "invalid_request_error"


class BadRequest(CallerError):
    """A malformed body or field; `param` names the field."""


class ContextLengthExceeded(CallerError):
    """The prompt does not fit the model's context. The message names both numbers, in tokens."""

    code = "context_length_exceeded"

    def __init__(self, *, limit: int, prompt_tokens: int, asked: int = 0) -> None:
        wanted = f"{prompt_tokens} prompt tokens" + (f" and {asked} more to generate" if asked else "")
        super().__init__(
            f"This model's maximum context length is {limit} tokens, but the request has {wanted}. "
            "Shorten the messages or lower max_tokens.",
            param="messages",
        )
        self.limit, self.prompt_tokens = limit, prompt_tokens


class Unauthenticated(CallerError):
    """No key, or a wrong one. The message never repeats what was sent."""

    status, type, code = 401, "authentication_error", "invalid_api_key"


class Forbidden(CallerError):
    """A valid key that may not do this."""

    status, type, code = 403, "permission_error", "forbidden"


class NotFound(CallerError):
    """No such route or object."""

    status, code = 404, "not_found"


class ModelNotFound(NotFound):
    """No model or strategy of that name; the message names the nearest of the known ones, and lists them."""

    code = "model_not_found"

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = list(known)
        close = get_close_matches(name[:128], names[:_COMPARED], n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        super().__init__(
            f"The model {name[:200]!r} does not exist here.{hint} "
            f"Known names: {', '.join(names[:_LISTED]) or 'none'}{more}.",
            param="model",
        )


class MethodNotAllowed(CallerError):
    """The route exists, but not with this HTTP method."""

    status, code = 405, "method_not_allowed"


class RequestTimeout(CallerError):
    """The body did not arrive within `server.body_timeout_s`."""

    status, type, code = 408, "timeout_error", "request_timeout"


class HeadersTooLarge(CallerError):
    """The request's head has more bytes, or more headers, than any client of ours sends."""

    status, code = 431, "headers_too_large"


class PayloadTooLarge(CallerError):
    """The body is larger than `server.max_body_bytes`."""

    status, code = 413, "payload_too_large"


class UnsupportedEncoding(CallerError):
    """The body is compressed (`content-encoding`): what it unpacks to could be of any size."""

    status, code = 415, "unsupported_encoding"

    def headers(self) -> dict[str, str]:
        return {"accept-encoding": "identity"}


class BudgetExceeded(CallerError):
    """The call tree would cost more than the caller allowed (`chorus.max_cost_usd`)."""

    status, type, code = 429, "insufficient_quota", "budget_exceeded"

    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}


class QuotaSpent(CallerError):
    """A budget of the key, its team, the model or the whole gateway is spent until its period ends."""

    status, type, code = 429, "insufficient_quota", "insufficient_quota"

    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}


class RateLimited(CallerError):
    """A limit on requests, tokens, requests at once, or on money set aside is reached for now; `type` says which
    ("requests", "tokens"), `limits` are the `x-ratelimit-*` headers."""

    status, code = 429, "rate_limit_exceeded"

    def __init__(
        self, message: str, *, type: str, retry_after_s: float, limits: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.type, self.retry_after_s, self.limits = type, retry_after_s, dict(limits or {})

    def headers(self) -> dict[str, str]:
        return {**retry_after(self.retry_after_s), **self.limits}


class DeadlineExceeded(CallerError):
    """The caller's own deadline (`chorus.deadline_ms`) passed before an answer was ready."""

    status, type, code = 504, "timeout_error", "deadline_exceeded"


class NotCached(CallerError):
    """The caller wants no model asked, and no answer is kept (`cache-control: only-if-cached`)."""

    status, code = 504, "not_cached"


class UpstreamError(ChorusError):
    """A backend is at fault: another attempt, deployment or model may succeed.

    `again` says which of them may be tried; `exhausted` that they have been, so that the caller's SDK, which
    would otherwise multiply our attempts by its own, is told to leave it. `retry_after_s` is what the caller is
    told to wait, `asked_s` what the backend itself asked for.

    `blames_backend`: whether it speaks against the backend, so that its breaker may open. What a caller can bring
    about by what he asks never does, nor does a limit of ours: else one caller could close a model to all.

    `cause`: why, for the log and never for the caller; in our own words or the system's, without any of the backend's.
    """

    status = 502
    retryable = True
    again: Again = Again.ELSEWHERE
    blames_backend: bool = True
    exhausted: bool = False
    cause: str = ""
    retry_after_s: float | None = None
    asked_s: float | None = None

    def headers(self) -> dict[str, str]:
        leave = {"x-should-retry": "false"} if self.exhausted else {}
        return leave if self.retry_after_s is None else {**leave, **retry_after(self.retry_after_s)}


class UpstreamRefused(UpstreamError):
    """The backend answered 4xx. Its status and OpenAI error fields are passed on.

    408, 409, 425 and 429 say that the work was not done, and speak of how the backend fares; 404 that this backend
    does not know the model, or whatever else was asked for; the rest that the request is at fault.
    """

    _AGAIN: ClassVar = {
        404: Again.ELSEWHERE,
        408: Again.SAME,
        409: Again.SAME,
        425: Again.SAME,
        429: Again.SAME,
    }

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.status, self.type, self.retry_after_s = status, type, retry_after_s
        self.again = self._AGAIN.get(status, Again.NEVER)
        self.blames_backend = self.again is Again.SAME

    @property
    def outcome(self) -> str:
        return f"refused_{self.status}"


class UpstreamBusy(UpstreamError):
    """Every deployment is at a limit of ours (`max_concurrent`, `rpm`, `tpm`). Tells the caller when to come back."""

    status, type, code = 429, "rate_limit_error", "rate_limit_exceeded"
    again = Again.SAME
    blames_backend = False

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class UpstreamUnavailable(UpstreamError):
    """No connection to the backend, or it is restarting. Tells the caller when to come back."""

    status, code = 503, "upstream_unavailable"
    again = Again.SAME

    def __init__(self, message: str, *, retry_after_s: float = 2.0, again: Again = Again.SAME) -> None:
        super().__init__(message)
        self.retry_after_s, self.again = retry_after_s, again


class UpstreamTimeout(UpstreamError):
    """The backend did not answer in time."""

    status, type, code = 504, "timeout_error", "upstream_timeout"


class UpstreamBroken(UpstreamError):
    """The backend answered 5xx, cut the answer short, or sent what is not its protocol."""

    code = "upstream_broken"

    def __init__(self, message: str, *, code: str | None = None, again: Again = Again.ELSEWHERE) -> None:
        super().__init__(message, code=code)
        self.again = again


class MethodError(ChorusError):
    """A method cannot work as configured; the operator must mend it."""

    code = "method_error"


class ArtefactMismatch(MethodError):
    """A fitted artefact was made for other models or another embedder than those configured."""

    code = "artefact_mismatch"


class SettingsError(ChorusError):
    """A value in the config file is wrong. The message has its path, what was found, and what is accepted."""

    code = "invalid_settings"


class StateUnavailable(ChorusError):
    """The store that keeps keys and budgets does not answer, and what was asked cannot be allowed without it."""

    status, code = 503, "state_unavailable"
    retryable = True

    def headers(self) -> dict[str, str]:
        return retry_after(2.0)


class InternalError(ChorusError):
    """A bug of ours. The message says no more than the request id under which it was logged."""

    code = "internal_error"


def retry_after(seconds: float) -> dict[str, str]:
    """Both headers the OpenAI SDKs read, for a wait of `seconds`."""
    return {"retry-after": str(max(1, round(seconds))), "retry-after-ms": str(max(1, round(seconds * 1000)))}
