"""What a gateway takes out of an upstream's stream on its way to the caller. Bytes in, bytes out: no socket,
no clock.

Every event passes untouched but three: the closing usage event (`choices` empty), which is kept for
accounting; `[DONE]`, which the gateway writes itself when the whole answer is told; and an error, which is
raised. For a caller who did not ask for usage, `"usage":null`, which backends put into every event because
the gateway asked, is cut out, so that the caller sees what the backend would have sent without being asked.
To keep this cheap an event is parsed only when its bytes show that it may hold usage or an error, and, until
the answer has begun, to see whether it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from backends.upstream_errors import broken, told_error
from protocol.errors import UpstreamError
from protocol.sse import EventSplitter, event_data, first_event

__all__ = ["StreamTap"]

LARGEST_FRAME = 512
"""Bytes of an event around its words, at most; the smallest event tells better."""

_NO_USAGE = (b'"usage":null', b'"usage": null')
_LAST_FIELD = b',"usage":null}\n\n'
_PLAIN = re.compile(rb'(?:data: \{"[^\r\n]*\}\n\n)+')
"""Whole events, each of one line that looks like a JSON object."""
_DONE = b"data: [DONE]\n\n"
TELLING = 640
"""Bytes at the end of a stream that hold its last events: why it ended, and usage."""
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_NULL = re.compile(rb"\s*:\s*null(?:\s*(,)\s*)?")


class StreamTap:
    """Feed it what the upstream of the model `name` sends; it gives what the caller may see.

    `usage_event` is the event that held usage, parsed, once it has come; `done` whether `[DONE]` has; `begun`
    whether the answer has begun: words, a tool call, or a reason to finish. `passed` counts events that went on,
    `words` those with words since it began, and `seen_bytes` their size beyond the frame that each repeats, for an
    estimate where no usage is reported.
    """

    def __init__(self, name: str, secrets: Sequence[str] = (), *, usage_asked: bool = True) -> None:
        self.usage_event: Mapping[str, Any] | None = None
        self.done = self.begun = False
        self.fault: UpstreamError | None = None
        self.words = self.passed = 0
        self._bytes = self._last = 0
        self._frame = LARGEST_FRAME
        self._name, self._secrets, self._usage_asked = name, secrets, usage_asked
        self._splitter = EventSplitter()

    @property
    def seen_bytes(self) -> int:
        """Bytes of the events with words, without what every one of them repeats."""
        return max(0, self._bytes - self.words * self._frame)

    def feed(self, data: bytes) -> bytes:
        """What goes on to the caller of the whole events in `data`, in one piece, for every piece has its price on the
        way. Raises `UpstreamBroken`, `UpstreamRefused`; a fault that stands behind events that go on is left in
        `fault`."""
        passed: list[bytes] = []
        try:
            self._take(self._splitter.block(data), passed)
        except UpstreamError as fault:
            if not passed:
                raise
            self.fault = fault
        return passed[0] if len(passed) == 1 else b"".join(passed)

    def _take(self, block: bytes, passed: list[bytes]) -> None:
        """Add to `passed` what goes on of `block`. Once the answer has begun, plain events go on all at once, and only
        the last ones of a stream, which tell why it ends and what it cost, are looked at one by one."""
        while block and not self.done:
            if self.begun:
                if self._plainly(block, passed):
                    return
                cut = block.find(b"\n\n", max(0, len(block) - TELLING)) + 2
                if block.endswith(_DONE) and self._plainly(block[:cut], passed):
                    block = block[cut:]
                self._one_by_one(block, passed)
                return
            event = first_event(block)
            block = block[len(event) :]
            self._one(event, passed)

    def _one_by_one(self, block: bytes, passed: list[bytes]) -> None:
        for event in EventSplitter().feed(block):
            if not self.done:
                self._one(event, passed)

    def _plainly(self, block: bytes, passed: list[bytes]) -> bool:
        """Have all of `block` go on, where every event in it is one line with a JSON object in which there is neither
        an error nor usage but, at its end, a null one. (What is quoted in JSON cannot look like this: its quotes are
        escaped.)"""
        bare = block.replace(_LAST_FIELD, b"}\n\n")
        if b'"error"' in bare or b'"usage"' in bare or not _PLAIN.fullmatch(bare):
            return False
        sizes = [*map(len, block.split(b"\n\n"))]
        sizes.pop()
        self._saw([size + 2 for size in sizes])
        passed.append(block if self._usage_asked else bare)
        return True

    def _one(self, event: bytes, passed: list[bytes]) -> None:
        payload = event_data(event)
        if payload.startswith(b"[DONE]"):
            self.done = True
            return
        passing = event if not payload else self._passing(event, payload)
        if passing is not None:
            passed.append(passing)
            if not (payload and self.begun):
                self.passed += 1

    def _saw(self, sizes: Sequence[int]) -> None:
        """Events with words have gone on, of these sizes."""
        self.passed += len(sizes)
        self.words += len(sizes)
        self._bytes += sum(sizes)
        # The last event, which only says why the answer ends, is smaller than any frame.
        if 0 < self._last < self._frame:
            self._frame = self._last
        if len(sizes) > 1:
            self._frame = min(self._frame, *sizes[:-1])
        self._last = sizes[-1]

    def end(self) -> None:
        """The upstream has closed. Raises `UpstreamBroken` unless its answer was whole."""
        if not self.done:
            raise broken(self._name, "ended its stream before the answer was complete")
        if not self.begun:
            raise broken(self._name, "ended its stream without an answer")

    def _passing(self, event: bytes, payload: bytes) -> bytes | None:
        """What the caller sees of an event with data."""
        if not (payload.startswith(b"{") and payload.rstrip().endswith(b"}")):
            raise broken(self._name, "sent a malformed event")
        silent = b'"usage"' in payload and any(mark in payload for mark in _NO_USAGE)
        if not self.begun or b'"error"' in payload or (b'"usage"' in payload and not silent):
            body = self._parsed(payload)
            if body.get("error"):
                raise told_error(body["error"], name=self._name, secrets=self._secrets)
            if body.get("usage"):
                self.usage_event = body
                if not body.get("choices"):
                    return None
            self.begun = self.begun or _answers(body)
        if self.begun:
            self._saw((len(event),))
        return _without_null_usage(event) if silent and not self._usage_asked else event

    def _parsed(self, payload: bytes) -> Mapping[str, Any]:
        try:
            body = orjson.loads(payload)
        except orjson.JSONDecodeError:
            raise broken(self._name, "sent a malformed event") from None
        if not isinstance(body, dict):
            raise broken(self._name, "sent a malformed event")
        return body


def _answers(body: Mapping[str, Any]) -> bool:
    """Whether a chunk has a part of the answer, not only who speaks. A chunk of a kind unknown here has."""
    choices = body.get("choices")
    if not isinstance(choices, list):
        return True
    return any(_speaks(choice) for choice in choices)


def _speaks(choice: Any) -> bool:
    if not isinstance(choice, Mapping):
        return True
    delta = choice.get("delta")
    words = (
        {key: value for key, value in delta.items() if key != "role"} if isinstance(delta, Mapping) else {}
    )
    return bool(choice.get("finish_reason") or choice.get("text") or any(words.values()))


def _without_null_usage(event: bytes) -> bytes:
    """`event` without its top-level `"usage": null`, whatever stands around it."""
    if event.endswith(_LAST_FIELD):
        return event[: -len(_LAST_FIELD)] + b"}\n\n"
    depth = 0
    for token in _TOKEN.finditer(event):
        mark = token[0]
        if mark in b"[{":
            depth += 1
        elif mark in b"]}":
            depth -= 1
        elif depth == 1 and mark == b'"usage"' and (null := _NULL.match(event, token.end())):
            before, after = event[: token.start()], event[null.end() :]
            if not null[1]:  # the last field: the comma before it goes too
                before = before.rstrip().removesuffix(b",")
            return before + after
    return event
