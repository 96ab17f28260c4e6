"""Request bodies made at random: well-formed ones with a few fields broken, the same for the same seed."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

TEXTS = ("", "x", "grüße ✓ 🦜", "\x00\r\n\t", 'quote " and \\', "data: [DONE]\n\n", "a" * 300)
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 0.5, -0.0, 1.0, 5.0, 1e300, 20, 21, 128, 129, 2**31, 2**63 - 1, 2**63,
    -(2**63), -(2**63) - 1,
    "", "x", "user", "float", [], {}, [None], [{}], ["x"], [["x"]], [1, 2], ["x"] * 17, {"x": 1}, {"type": "text"},
)  # fmt: skip

ROLES = ("user", "assistant", "system", "developer", "tool", "function", "king")


def body(path: str, rng: random.Random) -> dict[str, Any]:
    """A body for the surface `path`: usually sound, then up to three fields changed, added or taken away."""
    made: dict[str, Any] = {"model": "m", **_required(path, rng)}
    for key in rng.sample(sorted(SOUND), rng.randrange(4)):
        made[key] = copy.deepcopy(rng.choice(SOUND[key]))
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        key = rng.choice(
            (*made, *SOUND, "chorus", "input", "prompt", "tools", "encoding_format", "novel", "api_base")
        )
        if rng.random() < 0.25:
            made.pop(key, None)
        else:
            made[key] = value(rng) if key != "chorus" else chorus(rng)
    return made


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    if depth < 3 and rng.random() < 0.2:
        if rng.random() < 0.5:
            return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
        return {rng.choice(("type", "role", "content", "x", "name")): value(rng, depth + 1) for _ in range(3)}
    return copy.deepcopy(rng.choice(ODD))


def chorus(rng: random.Random) -> Any:
    """The `chorus` object, sound or not."""
    keys = ("explain", "max_cost_usd", "deadline_ms", "quality", "quallity")
    if rng.random() < 0.1:
        return value(rng)
    return {key: rng.choice((True, False, 1, 0.5, 1.5, 1000, -1, None, "x")) for key in rng.sample(keys, 2)}


def message(rng: random.Random) -> Any:
    """A message, sound or not."""
    made: dict[str, Any] = {"role": rng.choice(ROLES), "content": rng.choice(TEXTS)}
    if rng.random() < 0.3:
        parts = ({"type": "text", "text": rng.choice(TEXTS)}, {"type": "image_url"}, value(rng))
        made["content"] = [rng.choice(parts) for _ in range(rng.randrange(3))]
    if rng.random() < 0.1:
        made[rng.choice(("role", "content"))] = value(rng)
    if rng.random() < 0.1:
        made.pop(rng.choice(("role", "content")), None)
    return made if rng.random() < 0.97 else value(rng)


SOUND: Mapping[str, tuple[Any, ...]] = {
    "temperature": (0, 0.7, 2, None), "top_p": (0.1, 1, None), "n": (1, 128, None), "seed": (-5, 7, None),
    "presence_penalty": (-2, 0, 2.0), "frequency_penalty": (1.5,), "max_tokens": (1, 10**9),
    "max_completion_tokens": (5,), "top_logprobs": (0, 20), "stream": (True, False, None),
    "stream_options": ({}, None, {"include_usage": True}), "stop": ("x", ["x"] * 16, None, []),
    "tools": ([], None, [{"type": "function"}]),
}  # fmt: skip


def _required(path: str, rng: random.Random) -> dict[str, Any]:
    match path:
        case "/completions":
            return {"prompt": rng.choice((*TEXTS, ["x"], [1, 2], []))}
        case "/embeddings":
            inputs = (*TEXTS, ["x"], [[1, 2]], ["x"] * 2048, ["x"] * 2049)
            return {"input": rng.choice(inputs), "encoding_format": rng.choice((None, "float", "base64"))}
        case "/responses":
            return {"input": rng.choice((*TEXTS, [{"role": "user", "content": "x"}]))}
        case _:
            messages = [message(rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 0)))]
            return {"messages": messages, "max_tokens": 5}
