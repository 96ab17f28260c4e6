"""A chat request: parsed once, checked once, and carried unchanged but for what a strategy changes on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from protocol.errors import BadRequest
from protocol.value import value

__all__ = [
    "INTEGERS",
    "MAX_INTEGER",
    "MAX_MEMBERS",
    "MAX_MESSAGES",
    "MAX_STOPS",
    "MAX_TOOLS",
    "MAX_WEIGHT",
    "NO_OPTIONS",
    "NUMBERS",
    "ROLES",
    "ChatRequest",
    "Options",
    "check_chat",
    "check_integer",
    "human_ask",
    "human_asks",
    "message_text",
]

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_MESSAGES = 10_000
MAX_TOOLS = 1_024
MAX_INTEGER = 2**63 - 1
"""Integers have 64 bits and a sign, in backends and in JSON parsers alike."""
NUMBERS: Mapping[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 2.0, False),
    "top_p": (0.0, 1.0, True),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
}
"""Sampling field → its least and greatest value, and whether the least is itself too low."""
INTEGERS: Mapping[str, tuple[int, int]] = {
    "max_tokens": (1, MAX_INTEGER),
    "max_completion_tokens": (1, MAX_INTEGER),
    "n": (1, MAX_CHOICES),
    "seed": (-MAX_INTEGER - 1, MAX_INTEGER),
    "top_logprobs": (0, 20),
}
MAX_MEMBERS = 64
MAX_WEIGHT = 1e6
MAX_DEPTH = 64
"""How deep a body may nest; JSON schemas of real tools stay far below it."""


@dataclass(frozen=True, slots=True)
class Options:
    """The extra `chorus` object of a request body.

    `explain` adds the decision to the answer; `max_cost_usd` (US dollars) and `deadline_ms` (milliseconds) bound the
    whole call tree; `quality` in [0, 1] moves a router between cheapest (0) and best (1); `threshold` in [0, 1] is the
    chance of winning from which a router with a threshold asks its strong model; `weights` take the place of a
    fusion's own, member → weight ≥ 0.
    """

    explain: bool = False
    max_cost_usd: float | None = None
    deadline_ms: float | None = None
    quality: float | None = None
    threshold: float | None = None
    weights: Mapping[str, float] | None = None

    @classmethod
    def parse(cls, value: Any) -> Options:
        """Raises `BadRequest` with the field's path when a knob is unknown or out of range."""
        if value is None:
            return NO_OPTIONS
        if not isinstance(value, Mapping):
            raise BadRequest("'chorus' must be an object.", param="chorus")
        known = ("explain", "max_cost_usd", "deadline_ms", "quality", "threshold", "weights")
        for key in value:
            if key not in known:
                raise BadRequest(
                    f"Unknown field 'chorus.{str(key)[:64]}'; known: {', '.join(known)}.",
                    param=f"chorus.{str(key)[:64]}",
                )
        explain = value.get("explain", False)
        if not isinstance(explain, bool):
            raise BadRequest("'chorus.explain' must be true or false.", param="chorus.explain")
        return cls(
            explain,
            _number(value, "max_cost_usd", 0.0, None, "chorus."),
            _number(value, "deadline_ms", 1.0, None, "chorus."),
            _number(value, "quality", 0.0, 1.0, "chorus."),
            _number(value, "threshold", 0.0, 1.0, "chorus."),
            _weights(value.get("weights")),
        )


NO_OPTIONS = Options()


@value
class ChatRequest:
    """A chat-completions request. `body` is what the caller sent, without the `chorus` object; unknown fields stay."""

    body: Mapping[str, Any]
    options: Options = field(default_factory=Options)

    @classmethod
    def parse(cls, raw: bytes) -> ChatRequest:
        """Parse and check a request body. Raises `BadRequest`; `param` names the offending field."""
        body = parse_object(raw)
        options = Options.parse(body.pop("chorus", None))
        check_chat(body)
        return cls(body, options)

    @property
    def model(self) -> str:
        """The model or strategy name asked for."""
        return str(self.body["model"])

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        return self.body["messages"]  # type: ignore[no-any-return]

    @property
    def stream(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def wants_usage(self) -> bool:
        """Whether the caller asked for a usage event at the end of the stream."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    @property
    def max_tokens(self) -> int | None:
        """Bound on the visible completion, in tokens."""
        return self.body.get("max_completion_tokens") or self.body.get("max_tokens")

    def changed(self, **fields: Any) -> ChatRequest:
        """A copy with `fields` set in the body; a field set to None is removed."""
        body = {**self.body, **fields}
        return replace(
            self, body={key: value for key, value in body.items() if value is not None or key not in fields}
        )

    def wire(self) -> bytes:
        """The body as JSON bytes."""
        return orjson.dumps(self.body)


def message_text(message: Mapping[str, Any]) -> str:
    """The text of one message: its content string, or its text parts joined by newlines."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = [part.get("text", "") for part in content if isinstance(part, Mapping)]
        return "\n".join(part for part in parts if isinstance(part, str) and part)
    return ""


REMINDERS = ("system-reminder", "environment_details")
"""Tags in which coding agents put words of their own into a user message."""


def human_ask(request: ChatRequest) -> str:
    """The text a router looks at: the last of `human_asks`; "" where there is none."""
    return next(iter(human_asks(request, most=1)), "")


def human_asks(request: ChatRequest, *, most: int) -> list[str]:
    """What the human asked in the last turns, oldest first, at most that many: the texts of user messages without
    agents' reminders. System prompts, tool results and answers are not among them, unless no user message has text:
    then the last message that has any."""
    asks: list[str] = []
    for roles in (("user",), ROLES):
        for message in reversed(request.messages):
            if message["role"] in roles and (text := _without_reminders(message_text(message))).strip():
                asks.append(text)
                if len(asks) == (most if roles == ("user",) else 1):
                    break
        if asks:
            break
    return asks[::-1]


def _without_reminders(text: str) -> str:
    for tag in REMINDERS:
        opening, closing = f"<{tag}>", f"</{tag}>"
        kept, at = [], 0
        while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start)) >= 0:
            kept.append(text[at:start])
            at = end + len(closing)
        if kept:
            text = "".join((*kept, text[at:]))
    return text


def parse_object(raw: bytes) -> dict[str, Any]:
    """JSON bytes to an object. Raises `BadRequest` for anything else, or for one nested deeper than `MAX_DEPTH`."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(body, dict):
        raise BadRequest("The request body must be a JSON object.", code="invalid_json")
    if raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return body  # what opens so seldom cannot nest deeper
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return body
    raise BadRequest(f"The request body is nested deeper than {MAX_DEPTH} levels.", code="too_deep")


def check_model(body: Mapping[str, Any]) -> None:
    """Raises `BadRequest` unless `model` is a non-empty string."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise BadRequest("'model' is required and must be a string.", param="model")


def check_chat(body: dict[str, Any]) -> None:
    """Check every field of a chat request that Chorus reads; the others are the backend's to judge. Raises
    `BadRequest`."""
    check_model(body)
    _check_messages(body.get("messages"))
    check_sampling(body)
    _check_tools(body.get("tools"))


def check_sampling(body: dict[str, Any]) -> None:
    """Check the sampling fields that chat and text completions share. Raises `BadRequest`."""
    for key in body:
        if key in NUMBERS:
            low, high, exclusive_low = NUMBERS[key]
            _number(body, key, low, high, exclusive_low=exclusive_low)
        elif key in INTEGERS:
            check_integer(body, key, *INTEGERS[key])
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRequest("'stream' must be true or false.", param="stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("'stream_options' must be an object.", param="stream_options")
    stop = body.get("stop")
    if stop is not None:
        stops = [stop] if isinstance(stop, str) else stop
        if (
            not isinstance(stops, list)
            or len(stops) > MAX_STOPS
            or not all(isinstance(s, str) for s in stops)
        ):
            raise BadRequest(
                f"'stop' must be a string or a list of at most {MAX_STOPS} strings.", param="stop"
            )


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' is required and must be a non-empty list.", param="messages")
    if len(messages) > MAX_MESSAGES:
        raise BadRequest(
            f"'messages' has {len(messages)} entries; at most {MAX_MESSAGES} are accepted.", param="messages"
        )
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise BadRequest(f"'messages[{i}]' must be an object.", param=f"messages[{i}]")
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise BadRequest(
                f"'messages[{i}].role' must be one of {', '.join(ROLES)}; got {_written(role)}.",
                param=f"messages[{i}].role",
            )
        if isinstance(content, str):
            continue
        where = f"messages[{i}].content"
        if not isinstance(content, (list, type(None))):
            raise BadRequest(f"'{where}' must be a string or a list of parts.", param=where)
        if content is None and role not in ("assistant", "function"):
            raise BadRequest(f"'{where}' is required.", param=where)
        if content is not None and not all(isinstance(part, dict) and "type" in part for part in content):
            raise BadRequest(f"'{where}' parts must be objects with a 'type'.", param=where)


def _check_tools(tools: Any) -> None:
    if tools is None:
        return
    if (
        not isinstance(tools, list)
        or len(tools) > MAX_TOOLS
        or not all(isinstance(t, Mapping) for t in tools)
    ):
        raise BadRequest(f"'tools' must be a list of at most {MAX_TOOLS} objects.", param="tools")


def _number(
    body: Mapping[str, Any],
    key: str,
    low: float | None,
    high: float | None,
    prefix: str = "",
    *,
    exclusive_low: bool = False,
) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not _within(value, low, high, exclusive_low)
    ):
        raise BadRequest(
            f"'{prefix}{key}' must be a number{_range(low, high, exclusive_low)}; got {_written(value)}.",
            param=prefix + key,
        )
    return float(value)


def check_integer(body: dict[str, Any], key: str, low: int, high: int) -> None:
    """Check an integer that may be absent or null. JSON has no integers: one written as 5.0 becomes 5 in `body`. Raises
    `BadRequest`."""
    value = body.get(key)
    if value is None:
        return
    # Above 2**53 a float may be the rounding of an integer that is too long for the parser.
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        if high < MAX_INTEGER:
            bounds = f" between {low} and {high}"
        else:
            bounds = " of 64 bits" if low < -MAX_INTEGER else f" of at least {low}"
        raise BadRequest(f"'{key}' must be an integer{bounds}; got {_written(body[key])}.", param=key)
    body[key] = value


def _weights(value: Any) -> Mapping[str, float] | None:
    """Who the members are is for the fusion to check."""
    if value is None:
        return None
    param = "chorus.weights"
    if not isinstance(value, Mapping) or not 0 < len(value) <= MAX_MEMBERS:
        raise BadRequest(
            f"'{param}' must be an object of at most {MAX_MEMBERS} members' weights.", param=param
        )
    weights = {}
    for name, weight in value.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight <= MAX_WEIGHT:
            raise BadRequest(
                f"'{param}.{str(name)[:64]}' must be a number from 0 to {MAX_WEIGHT:g}.", param=param
            )
        weights[str(name)] = float(weight)
    if not sum(weights.values()) > 0:
        raise BadRequest(f"'{param}' must give some member a weight above 0.", param=param)
    return weights


def _within(value: float, low: float | None, high: float | None, exclusive_low: bool = False) -> bool:
    above = low is None or (value > low if exclusive_low else value >= low)
    return above and (high is None or value <= high)


def _range(low: float | None, high: float | None, exclusive_low: bool) -> str:
    if low is not None and high is not None:
        return f" above {low:g}, at most {high:g}" if exclusive_low else f" between {low:g} and {high:g}"
    return "" if low is None else f" of at least {low:g}"


def _written(value: Any) -> str:
    """What was sent, as JSON, so that the text "10" does not look like the number; no more than its beginning."""
    return orjson.dumps(value).decode()[:64]
