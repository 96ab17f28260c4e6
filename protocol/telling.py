"""How an API surface words answers: the contract between the gateway and the surfaces that are not OpenAI's chat.

Strategies speak chat completions only. A surface with words of its own (`protocol.anthropic`, `protocol.responses`)
translates a request into a chat request, and what comes back into its own bodies and events. Sans-I/O: bodies in,
bodies and event bytes out.

Laws: a stream is told as `chunk`* then exactly one of `end` and `failed`; what `end` returns completes the stream in
the surface's own way, and what `failed` returns never looks like a complete answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from protocol import sse
from protocol.chat import ChatRequest
from protocol.errors import BadRequest, ChorusError
from protocol.usage import Usage

__all__ = [
    "OPENAI",
    "Telling",
    "Wording",
    "fresh_id",
    "object_at",
    "refuse_fields",
    "renamed",
    "sized_list",
    "string_at",
    "thought_of",
]


class Wording(Protocol):
    """How a surface words an error. `request_id_header` is where its SDKs look for the request's id."""

    @property
    def request_id_header(self) -> str: ...

    def error_body(self, error: ChorusError, request_id: str) -> Mapping[str, Any]:
        """The body of an answer that is an error."""
        ...

    def failed(self, error: ChorusError, request_id: str) -> bytes:
        """The last event, or events, of a stream that failed after it had begun."""
        ...


class Telling(Wording, Protocol):
    """One request of a surface, and its answer as it comes."""

    @property
    def request(self) -> ChatRequest:
        """The request in the words of chat completions."""
        ...

    def whole(self, completion: Mapping[str, Any]) -> dict[str, Any]:
        """The surface's body for a `chat.completion`."""
        ...

    def chunk(self, chunk: Mapping[str, Any]) -> bytes:
        """The events for one `chat.completion.chunk`, in order; may be empty."""
        ...

    def end(self, usage: Usage, extra: Mapping[str, Any]) -> bytes:
        """The events that complete the stream. `usage`: tokens of the whole call tree; `extra`: fields to add beside
        it, such as the explanation."""
        ...


class _OpenAI:
    request_id_header = "x-request-id"

    def error_body(self, error: ChorusError, request_id: str) -> Mapping[str, Any]:
        return error.body()

    def failed(self, error: ChorusError, request_id: str) -> bytes:
        return sse.event(error.body())


OPENAI: Wording = _OpenAI()
"""Chat completions, and every surface that words its errors as they do."""


def refuse_fields(body: Mapping[str, Any], refused: Mapping[str, str]) -> None:
    """Raises `BadRequest` naming the first of `refused` (field → why not) that `body` sets to anything but null, false
    or nothing."""
    for field, why in refused.items():
        if body.get(field):
            raise BadRequest(f"'{field}' is not supported here: {why}.", param=field)


def sized_list(value: Any, where: str, limit: int) -> list[Any]:
    """`value` where it is a list of at most `limit` objects, an absent one as empty. Raises `BadRequest`."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise BadRequest(f"'{where}' must be a list of objects.", param=where)
    if len(value) > limit:
        raise BadRequest(f"'{where}' has {len(value)} entries; at most {limit} are accepted.", param=where)
    return value


def string_at(value: Mapping[str, Any], key: str, where: str) -> str:
    """The string under `key`, which must be there. `where` is the path of `value` in the request. Raises
    `BadRequest`."""
    found = value.get(key)
    if not isinstance(found, str):
        raise BadRequest(f"'{where}.{key}' is required and must be a string.", param=f"{where}.{key}")
    return found


def object_at(value: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    """The object under `key`, an absent one as empty. Raises `BadRequest`."""
    found = value.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        path = f"{where}.{key}" if where else key
        raise BadRequest(f"'{path}' must be an object.", param=path)
    return found


@contextmanager
def renamed(names: Mapping[str, str]) -> Iterator[None]:
    """Chat's checks of a translated request, told in the caller's words: chat's field → the caller's."""
    try:
        yield
    except BadRequest as error:
        ours = (error.param or "").split(".")[0].split("[")[0]
        if ours not in names:
            raise
        theirs = names[ours]
        raise BadRequest(error.message.replace(f"'{ours}", f"'{theirs}"), param=theirs) from None


def thought_of(message: Mapping[str, Any]) -> str:
    """The reasoning text of a message or delta, under either name that backends give it."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    return thought if isinstance(thought, str) else ""


def fresh_id(kind: str) -> str:
    """A fresh id such as `msg_…`."""
    return f"{kind}_{secrets.token_hex(12)}"
