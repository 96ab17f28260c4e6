"""When two requests are the same."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.caching.identity import identity
from protocol.chat import ChatRequest, Options

TOOL = {"type": "function", "function": {"name": "f"}}
SYSTEM = {"role": "system", "content": "Be brief."}


def _ask(text: str = "Why?", options: Options | None = None, **fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [SYSTEM, {"role": "user", "content": text}], **fields}
    return ChatRequest(body, options or Options())


BASE = identity(_ask(), "team a", "/chat/completions")


@pytest.mark.parametrize(
    "other",
    [
        (_ask(model="n"), "team a", "/chat/completions"),
        (_ask(temperature=0), "team a", "/chat/completions"),
        (_ask(tools=[TOOL]), "team a", "/chat/completions"),
        (_ask(vendor_field=1), "team a", "/chat/completions"),
        (_ask(options=Options(quality=0.9)), "team a", "/chat/completions"),
        (_ask(options=Options(weights={"a": 1.0})), "team a", "/chat/completions"),
        (_ask(messages=[{"role": "user", "content": "Why?"}]), "team a", "/chat/completions"),
        (_ask(), "team b", "/chat/completions"),
        (_ask(), "key a", "/chat/completions"),
        (_ask(), "team a", "/messages"),
    ],
)
def test_walls(other: tuple[ChatRequest, str, str]) -> None:
    """Another model, parameter, tool, unknown field, knob, system prompt, tenant or surface: another wall."""
    found = identity(*other)
    assert found.wall != BASE.wall
    assert found.exact != BASE.exact


def test_what_does_not_matter() -> None:
    """How it is sent and whom it is for changes no answer; nor does the order of fields."""
    told = _ask(stream=True, stream_options={"include_usage": True}, user="u", metadata={"a": "b"})
    assert identity(told, "team a", "/chat/completions") == BASE
    turned = ChatRequest(dict(reversed(_ask().body.items())))
    assert identity(turned, "team a", "/chat/completions") == BASE


def test_only_the_last_words_are_compared() -> None:
    """Behind one wall stand asks that differ in the last user message only; where that is no plain text none do."""
    other = identity(_ask("How?"), "team a", "/chat/completions")
    assert (other.wall, other.words) == (BASE.wall, "How?")
    assert other.exact != BASE.exact
    parts = identity(_ask([{"type": "text", "text": "Why?"}]), "team a", "/chat/completions")  # type: ignore[arg-type]
    assert parts.words is None
    answered = _ask(messages=[SYSTEM, {"role": "assistant", "content": "Well"}])
    assert identity(answered, "team a", "/chat/completions").words is None
