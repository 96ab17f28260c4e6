"""Requests that go on to a backend as they are: files, images, audio, and surfaces it speaks itself.

The caller decides method, path and body, within the table of `gateway.passing`; the address, the key and every header
are the deployment's. Nothing of the answer is read but its status and, where they tell it, the tokens it spent.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from backends.http1 import Http1Error, Response
from backends.upstream_errors import translate
from protocol.errors import UpstreamBroken, UpstreamError
from protocol.usage import Usage

__all__ = ["Outgoing", "Passed"]

MAX_WHOLE_BYTES = 64 * 1024 * 1024
"""A JSON answer longer than this is not read into memory."""

_CONTENT_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+/;=\" -]{1,200}")


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What is asked of a backend. `path` begins with a slash and stands below the deployment's base URL, its query
    included; `messages` says that it is Anthropic's protocol."""

    method: str
    path: str
    body: bytes | None = None
    content_type: str = "application/json"
    messages: bool = False


class Passed:
    """A backend's answer of status 2xx, to be read once; `usage` is filled in by who can read it."""

    def __init__(self, response: Response, name: str, secrets: Sequence[str]) -> None:
        self._response, self._name = response, name
        self.secrets = secrets
        self.status = response.status
        self.headers = response.headers
        self.usage = Usage()
        self.whole = False
        """Whether the answer has come to its end."""
        self.failed: UpstreamError | None = None
        """What was wrong with it: it broke off, or was no answer."""
        self.ended: Callable[[Passed], None] = _nothing
        """Called once, when the answer has ended or was given up."""

    @property
    def content_type(self) -> str:
        """The answer's type, where it is one that may be repeated in a header."""
        told = self.headers.get("content-type", "")
        return told if _CONTENT_TYPE.fullmatch(told) else "application/octet-stream"

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.content_type.lower().startswith("text/event-stream")

    async def read(self) -> bytes:
        """The whole answer. Raises `UpstreamError`."""
        parts, size = [], 0
        async for data in self:
            parts.append(data)
            size += len(data)
            if size > MAX_WHOLE_BYTES:
                error = UpstreamBroken(f"The backend of {self._name!r} answered with more than it may.")
                error.blames_backend = False  # the limit is ours, and who asks decides how much is answered
                raise error
        return b"".join(parts)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while data := await self._response.piece():
                yield data
            self.whole = True
        except Http1Error as error:
            raise translate(error, self._name) from error

    async def drain(self) -> None:
        """Read the end of a stream whose last event has come."""
        self.whole = True
        await self._response.drain()

    def abort(self) -> None:
        """Close the connection unless the answer has ended by itself; safe to repeat."""
        self._response.close()
        ended, self.ended = self.ended, _nothing
        ended(self)


def _nothing(passed: Passed) -> None:
    """Nobody waits for the end."""
