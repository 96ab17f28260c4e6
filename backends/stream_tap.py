"""What a gateway takes out of an upstream's stream on its way to the caller. Bytes in, bytes out: no socket,
no clock.

Every event passes untouched but three: the closing usage event (`choices` empty), which is kept for
accounting; `[DONE]`, which the gateway writes itself when the whole answer is told; and an error, which is
raised. Where the caller did not ask for usage (`bare`), the `"usage":null` that backends put into every event
of those who do is cut out too, so that the caller sees what it would have seen without a gateway. To keep
this cheap an event is parsed only when its bytes show that it may hold usage or an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from backends.upstream_errors import stream_error
from protocol.errors import UpstreamBroken
from protocol.sse import EventSplitter, event_data

__all__ = ["StreamTap"]

_NO_USAGE = (b'"usage":null', b'"usage": null')
_USAGE_FIELD = re.compile(rb',\s*"usage"\s*:\s*null(?=\s*[,}])')
"""The field as a whole. These bytes cannot stand inside a JSON string, where the quotes would be escaped."""


class StreamTap:
    """Feed it what the upstream of the model `name` sends; it yields what the caller may see.

    `usage_event` is the event that held usage, parsed, once it has come; `done` whether `[DONE]` has.
    """

    def __init__(self, name: str, secrets: Sequence[str] = (), *, bare: bool = False) -> None:
        self.usage_event: Mapping[str, Any] | None = None
        self.done = False
        self._name, self._secrets, self._bare = name, secrets, bare
        self._splitter = EventSplitter()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the whole events in `data` that go on to the caller. Raises `UpstreamBroken`."""
        for event in self._splitter.feed(data):
            if self.done:
                return
            payload = event_data(event)
            if payload.startswith(b"[DONE]"):
                self.done = True
            elif not payload or self._passes(payload):
                bare = self._bare and any(mark in event for mark in _NO_USAGE)
                yield _USAGE_FIELD.sub(b"", event, 1) if bare else event

    def end(self) -> None:
        """The upstream has closed. Raises `UpstreamBroken` unless its answer was whole."""
        if not self.done:
            raise UpstreamBroken(
                f"The backend of {self._name!r} ended its stream before the answer was complete."
            )

    def _passes(self, payload: bytes) -> bool:
        if not (payload.startswith(b"{") and payload.rstrip().endswith(b"}")):
            raise UpstreamBroken(f"The backend of {self._name!r} sent a malformed event.")
        if b'"error"' not in payload and (
            b'"usage"' not in payload or any(mark in payload for mark in _NO_USAGE)
        ):
            return True
        try:
            body = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise UpstreamBroken(f"The backend of {self._name!r} sent a malformed event.") from None
        if body.get("error"):
            raise stream_error(body["error"], name=self._name, secrets=self._secrets)
        if not body.get("usage"):
            return True
        self.usage_event = body
        return bool(body.get("choices"))
