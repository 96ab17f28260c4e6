"""One request among the traces of those before and behind it: W3C's Trace Context, and what is kept of a call tree
until spans are built of it.

    client ── traceparent ──> request ── asks ──> model ── attempt ── traceparent ──> upstream

Nothing here is a span: while a request runs only ids are made, which upstreams must be told, and times are noted. A
request that nobody watches has no `Watch`, and keeps none of this.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protocol.run import Call

__all__ = ["Asking", "Attempt", "Level", "TraceContext", "Watch", "random_hex"]

_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,256}")
MAX_STATE = 512
MAX_MEMBERS = 32
SAMPLED = 1

_dice = random.Random()  # ids need to differ, not to be unguessable


def random_hex(digits: int) -> str:
    """An id of that many hexadecimal digits, never all zeros, which means none."""
    return f"{_dice.getrandbits(4 * digits) or 1:0{digits}x}"


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span as others name it: ids in lower-case hexadecimal; `sampled` whether it is recorded; `state` the
    vendors' own list, passed on as it came."""

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""

    @classmethod
    def parse(cls, headers: Iterable[tuple[bytes, bytes]]) -> TraceContext | None:
        """What the `traceparent` and `tracestate` among `headers` say; None where the former is missing,
        stands twice or is malformed. A malformed `tracestate` is dropped."""
        parents, states = [], []
        for name, value in headers:
            if name == b"traceparent":
                parents.append(value)
            elif name == b"tracestate":
                states.append(value)
        if len(parents) != 1 or (match := _PARENT.fullmatch(parents[0].strip(b" \t"))) is None:
            return None
        version, trace_id, span_id, flags, more = match.groups()
        if (
            version == b"ff"
            or (version == b"00" and more)
            or not trace_id.strip(b"0")
            or not span_id.strip(b"0")
        ):
            return None
        sampled = bool(int(flags, 16) & SAMPLED)
        return cls(trace_id.decode(), span_id.decode(), sampled, _state(states))

    def headers(self, span_id: str) -> dict[str, str]:
        """What an upstream is told by the span `span_id` of this trace."""
        told = {"traceparent": f"00-{self.trace_id}-{span_id}-{int(self.sampled):02x}"}
        if self.state:
            told["tracestate"] = self.state
        return told


def _state(values: Sequence[bytes]) -> str:
    try:
        members = [member.strip(" \t") for member in b",".join(values).decode("ascii").split(",")]
    except UnicodeDecodeError:
        return ""
    members = [member for member in members if member]
    state = ",".join(members)
    whole = len(state) <= MAX_STATE and len(members) <= MAX_MEMBERS
    return state if whole and all(map(_STATE.fullmatch, members)) else ""


@dataclass(slots=True)
class Attempt:
    """One attempt: which deployment was asked, and how it ended: "ok" when its answer, or a stream's first words,
    had come, "hedged", "cancelled", or an error's code. Times in seconds of `time.perf_counter`."""

    deployment: int
    began: float = field(default_factory=time.perf_counter)
    outcome: str = ""
    ended: float = 0.0
    span_id: str = ""

    def end(self, outcome: str) -> None:
        """It ended; the first word counts."""
        if not self.outcome:
            self.outcome, self.ended = outcome, time.perf_counter()


@dataclass(frozen=True, slots=True)
class Asking:
    """One model as it was asked: its `attempts`, and the `calls` (several for a fusion) that were booked for it.

    `level`: index of the strategy that asked, in `Watch.levels`. `parameters` of the request hold no text;
    `answer` is the answer's id, its model and why it ended, as far as known. Times in seconds of
    `time.perf_counter`; `fallback`: it was asked because another model had failed."""

    model: str
    level: int
    path: str
    began: float
    ended: float
    outcome: str
    attempts: Sequence[Attempt]
    calls: Sequence[Call]
    parameters: Mapping[str, Any]
    answer: Mapping[str, Any]
    streamed: bool = False
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Level:
    """A strategy at work: the request's own (`parent` None), or one that the strategy at index `parent` asked."""

    strategy: str
    parent: int | None
    began: float
    decision: Mapping[str, Any]


PARAMETERS = frozenset(
    {
        "dimensions",
        "frequency_penalty",
        "max_completion_tokens",
        "max_output_tokens",
        "max_tokens",
        "n",
        "presence_penalty",
        "seed",
        "temperature",
        "top_k",
        "top_p",
    }
)
"""Fields of a request that are numbers, and so hold nobody's words."""


@dataclass(slots=True)
class Watch:
    """One request being watched. `context` is its own span; `parent` the caller's span, if it named one. Not
    `recording`: only upstreams are told of it."""

    context: TraceContext
    parent: TraceContext | None = None
    recording: bool = True
    levels: list[Level] = field(default_factory=list)
    askings: list[Asking] = field(default_factory=list)

    def headers(self, attempt: Attempt) -> dict[str, str]:
        """What the upstream of an attempt is told; gives the attempt its span."""
        attempt.span_id = random_hex(16)
        return self.context.headers(attempt.span_id)

    def level(self, strategy: str, parent: int | None, decision: Mapping[str, Any]) -> int:
        """A strategy begins; returns its index."""
        if self.recording:
            self.levels.append(Level(strategy, parent, time.perf_counter(), decision))
        return max(0, len(self.levels) - 1)

    def asked(
        self,
        model: str,
        level: int,
        path: str,
        took_s: float,
        outcome: str,
        attempts: Sequence[Attempt],
        calls: Sequence[Call],
        body: Mapping[str, Any],
        answer: Mapping[str, Any] | None,
        *,
        streamed: bool,
        fallback: bool,
    ) -> None:
        """A model has been asked with `body`. Of it and of the `answer` no text is kept."""
        if not self.recording:
            return
        now = time.perf_counter()
        parameters = {
            name: value
            for name, value in body.items()
            if name in PARAMETERS and isinstance(value, (int, float))
        }
        self.askings.append(
            Asking(
                *(model, level, path, now - took_s, now, outcome, tuple(attempts), tuple(calls)),
                *(parameters, _facts(answer or {}), streamed, fallback),
            )
        )


_WORD = re.compile(r"[A-Za-z0-9._:/@-]{1,128}")


def _facts(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Of an answer its id, its model and why each choice ended."""
    facts: dict[str, Any] = {
        name: value
        for name in ("id", "model")
        if isinstance(value := answer.get(name), str) and _WORD.fullmatch(value)
    }
    choices = answer.get("choices")
    reasons = [
        reason
        for choice in (choices if isinstance(choices, list) else ())
        if isinstance(choice, Mapping)
        and isinstance(reason := choice.get("finish_reason"), str)
        and _WORD.fullmatch(reason)
    ]
    return {**facts, "finish_reasons": reasons} if reasons else facts
