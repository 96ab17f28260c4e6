"""Bodies that must be refused: changes to a sound body of each surface, and the field that the refusal names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["BAD", "SOUND"]

USER: Mapping[str, Any] = {"role": "user", "content": "hi"}

SOUND: Mapping[str, Mapping[str, Any]] = {
    "/chat/completions": {"model": "m", "messages": [USER]},
    "/completions": {"model": "m", "prompt": "hi"},
    "/embeddings": {"model": "m", "input": "hi"},
    "/messages": {"model": "m", "messages": [USER], "max_tokens": 5},
    "/messages/count_tokens": {"model": "m", "messages": [USER]},
    "/responses": {"model": "m", "input": "hi"},
}

Rows = tuple[tuple[Mapping[str, Any], str], ...]

_MODEL: Rows = (({"model": None}, "model"), ({"model": ""}, "model"), ({"model": ["m"]}, "model"))
_CHORUS: Rows = (
    ({"chorus": []}, "chorus"),
    ({"chorus": {"explian": True}}, "chorus.explian"),
    ({"chorus": {"quality": 1.2}}, "chorus.quality"),
    ({"chorus": {"weights": [1, 2]}}, "chorus.weights"),
    ({"chorus": {"weights": {}}}, "chorus.weights"),
    ({"chorus": {"weights": {"a": -1}}}, "chorus.weights"),
    ({"chorus": {"weights": {"a": True}}}, "chorus.weights"),
    ({"chorus": {"weights": {"a": 1, "b": "2"}}}, "chorus.weights"),
)
_STREAM: Rows = (({"stream": "yes"}, "stream"), ({"stream": 1}, "stream"))
_SAMPLING: Rows = (
    ({"temperature": 2.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"n": 129}, "n"),
    ({"seed": "x"}, "seed"),
    ({"stop": [1]}, "stop"),
)
_MESSAGES: Rows = (
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
)

BAD: Mapping[str, Rows] = {
    "/chat/completions": (
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": ["m"]}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"seed": "x"}, "seed"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"chorus": []}, "chorus"),
        ({"chorus": {"explian": True}}, "chorus.explian"),
        ({"chorus": {"explain": 1}}, "chorus.explain"),
        ({"chorus": {"quality": 1.2}}, "chorus.quality"),
        ({"chorus": {"weights": [1, 2]}}, "chorus.weights"),
        ({"chorus": {"weights": {}}}, "chorus.weights"),
        ({"chorus": {"weights": {"a": -1}}}, "chorus.weights"),
        ({"chorus": {"weights": {"a": True}}}, "chorus.weights"),
        ({"chorus": {"weights": {"a": 1, "b": "2"}}}, "chorus.weights"),
        ({"chorus": {"max_cost_usd": -1}}, "chorus.max_cost_usd"),
        ({"chorus": {"deadline_ms": 0}}, "chorus.deadline_ms"),
    ),
    "/completions": (
        *_MODEL,
        *_CHORUS,
        *_STREAM,
        *_SAMPLING,
        ({"prompt": None}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": {}}, "prompt"),
    ),
    "/embeddings": (
        *_MODEL,
        *_CHORUS,
        ({"input": None}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"stream": True}, "stream"),
    ),
    "/messages": (
        *_MODEL,
        *_CHORUS,
        *_STREAM,
        *_MESSAGES,
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "9"}, "max_tokens"),
    ),
    "/messages/count_tokens": (*_MODEL, *_CHORUS, *_MESSAGES),
    "/responses": (*_MODEL, *_CHORUS, *_STREAM),
}
"""Path below /v1 → what is changed, and the field that is named."""
