"""What a gateway looks for in a stream that it passes on in the backend's own words. Bytes in, bytes out.

Anthropic's Messages and OpenAI's Responses name each event in its data (`type`), end with a known one, and tell
usage in few. Events pass untouched but for an error, which is raised, so that the gateway words it and no address
or key of ours goes out with it. An event is parsed only when its bytes show that it may matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from backends.upstream_errors import told_error
from protocol.anthropic import message_usage
from protocol.errors import UpstreamBroken
from protocol.responses import response_usage
from protocol.sse import EventSplitter, event_data
from protocol.usage import Usage

__all__ = ["MESSAGES", "RESPONSES", "PassingTap", "Tongue"]


@dataclass(frozen=True, slots=True)
class Tongue:
    """One protocol's signs: the `type`s worth parsing, those that end a whole answer and those that are failures; and
    how usage is read from an event, or from a whole body."""

    telling: frozenset[str]
    last: frozenset[str]
    failing: frozenset[str]
    usage_of: Callable[[Mapping[str, Any]], Usage | None]
    whole_usage: Callable[[Mapping[str, Any] | None], Usage]


def _message_event_usage(event: Mapping[str, Any]) -> Usage | None:
    usage = event.get("usage") or (event.get("message") or {}).get("usage")
    return message_usage(usage) if usage else None


def _response_event_usage(event: Mapping[str, Any]) -> Usage | None:
    usage = (event.get("response") or {}).get("usage")
    return response_usage(usage) if usage else None


MESSAGES = Tongue(
    frozenset({"message_start", "message_delta", "message_stop", "error"}),
    frozenset({"message_stop"}),
    frozenset({"error"}),
    _message_event_usage,
    message_usage,
)
RESPONSES = Tongue(
    frozenset(
        {"response.completed", "response.incomplete", "response.failed", "response.cancelled", "error"}
    ),
    frozenset({"response.completed", "response.incomplete", "response.cancelled"}),
    frozenset({"response.failed", "error"}),
    _response_event_usage,
    response_usage,
)


class PassingTap:
    """Feed it what the upstream of the model `name` sends; it yields what the caller sees. `usage` grows as it is
    told: later events tell more, and never less."""

    def __init__(self, tongue: Tongue, name: str, secrets: Sequence[str] = ()) -> None:
        self.usage = Usage()
        self.done = False
        self._tongue, self._name, self._secrets = tongue, name, secrets
        self._marks = tuple(f'"{kind}"'.encode() for kind in tongue.telling)
        self._splitter = EventSplitter()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the whole events in `data`. Raises `UpstreamBroken`, `UpstreamRefused`."""
        for event in self._splitter.feed(data):
            if any(mark in event for mark in self._marks):
                self._read(event_data(event))
            yield event

    def end(self) -> None:
        """The upstream has closed. Raises `UpstreamBroken` unless its answer was whole."""
        if not self.done:
            raise UpstreamBroken(
                f"The backend of {self._name!r} ended its stream before the answer was complete."
            )

    def _read(self, payload: bytes) -> None:
        try:
            event = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise UpstreamBroken(f"The backend of {self._name!r} sent a malformed event.") from None
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        if kind in self._tongue.failing or event.get("error"):
            told = event.get("error") or (event.get("response") or {}).get("error") or event
            raise told_error(told, name=self._name, secrets=self._secrets)
        if kind in self._tongue.telling and (usage := self._tongue.usage_of(event)) is not None:
            self.usage = self.usage.most(usage)
        self.done = self.done or kind in self._tongue.last
