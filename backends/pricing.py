"""Who spent what in one call, from the usage an upstream reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from protocol.chat import message_text
from protocol.usage import Price, Usage

__all__ = ["BYTES_PER_TOKEN", "Share", "estimate_usd", "estimated_tokens", "shares"]

BYTES_PER_TOKEN = 4.0
"""Rule of thumb for English text, used only to judge a call before it is made."""

TOKENS_PER_MESSAGE = 4
"""What chat templates put around a message, about."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one model spent in a call; `cost_usd` in US dollars, 0 for a model without a price."""

    model: str
    usage: Usage
    cost_usd: float


def shares(reported: Mapping[str, Any], name: str, prices: Mapping[str, Price]) -> tuple[Share, ...]:
    """The shares of a call to `name`, from the body or stream event that holds its `usage`.

    A fused answer lists its members' tokens in `chorus.members`, and each is priced for itself.
    """
    members = (reported.get("chorus") or {}).get("members")
    if not members:
        return (_share(name, Usage.parse(reported.get("usage")), prices),)
    return tuple(_share(str(member["model"]), Usage.parse(member), prices) for member in members)


def estimated_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens the prompt of a chat request has: by the length of its texts and tools; images count
    nothing."""
    said = sum(len(message_text(message).encode()) for message in body["messages"])
    beside = [message.get("tool_calls") for message in body["messages"]]
    tools = len(orjson.dumps([*filter(None, beside), *(body.get("tools") or ())])) - 2
    return max(1, round((said + tools) / BYTES_PER_TOKEN)) + TOKENS_PER_MESSAGE * len(body["messages"])


def estimate_usd(body: Mapping[str, Any], models: Sequence[str], prices: Mapping[str, Price]) -> float:
    """What a call with `body` may cost at `models` together, in US dollars, before it is made.

    The prompt counts by its length; the answer by the caller's bound where there is one, else not at all.
    """
    text = "".join(message_text(message) for message in body.get("messages") or ())
    prompt = body.get("prompt") or body.get("input") or ""
    length = len(text.encode()) + len(prompt if isinstance(prompt, str) else "".join(map(str, prompt)))
    bound = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    usage = Usage(round(length / BYTES_PER_TOKEN), bound * (body.get("n") or 1))
    return sum(prices[model].cost_usd(usage) for model in models if model in prices)


def _share(model: str, usage: Usage, prices: Mapping[str, Price]) -> Share:
    price = prices.get(model)
    return Share(model, usage, price.cost_usd(usage) if price else 0.0)
