"""Who spent what in one call: from the usage an upstream reported, or, where it reported none, by what was seen.

An upstream that answers, or is cut off while it does, has spent tokens whether it says so or not. What it did
not report is estimated: the prompt by its length, the answer by the chunks and bytes that came. An attempt of
which nothing came is charged nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Any

import orjson

from protocol.chat import message_text
from protocol.usage import Price, Usage
from protocol.value import value

__all__ = [
    "BYTES_PER_TOKEN",
    "Share",
    "dearest_usd",
    "estimated_tokens",
    "prompt_tokens",
    "seen_shares",
    "shares",
    "text_tokens",
    "usage_bound",
]

BYTES_PER_TOKEN = 4.0
"""Rule of thumb for English text, used to judge a call before it is made, and one that reports no usage."""

TOKENS_PER_MESSAGE = 4
"""What chat templates put around a message, about."""


@value
class Share:
    """What one model spent in a call; `cost_usd` in US dollars, 0 for a model without a price. `told`, of a fusion's
    first member, is what its engines say of the text: who wrote what, and who had no part."""

    model: str
    usage: Usage
    cost_usd: float
    estimated: bool = False
    told: Mapping[str, Any] = field(default_factory=dict, hash=False)


TOLD = ("spans", "left_out")
"""What an engine host says of a fused text beside its members' tokens."""


def shares(reported: Mapping[str, Any], name: str, prices: Mapping[str, Price]) -> tuple[Share, ...]:
    """The shares of a call to `name`, from the body or stream event that holds its `usage`.

    A fused answer lists its members' tokens in `chorus.members`, and each is priced for itself.
    """
    told = reported.get("chorus")
    if not isinstance(told, Mapping) or not (members := told.get("members")):
        return (_share(name, Usage.parse(reported.get("usage")), prices),)
    first, *others = (_share(str(member["model"]), Usage.parse(member), prices) for member in members)
    about = {name: told[name] for name in TOLD if name in told}
    return (replace(first, told=about) if about else first, *others)


def seen_shares(
    body: Mapping[str, Any], completion_tokens: int, models: Sequence[str], prices: Mapping[str, Price]
) -> tuple[Share, ...]:
    """The shares of a call to `models` with `body` that reported no usage, of whose answer `completion_tokens`
    were seen."""
    usage = Usage(prompt_tokens(body), completion_tokens)
    return tuple(_share(model, usage, prices, estimated=True) for model in models)


def estimated_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens the prompt of a chat request has, to tell a caller who asks: its texts, its tools, and what
    stands around each message; images count nothing."""
    tools = [
        *filter(None, (message.get("tool_calls") for message in body["messages"])),
        *(body.get("tools") or ()),
    ]
    length = len(orjson.dumps(tools)) - 2
    return max(1, prompt_tokens(body) + round(length / BYTES_PER_TOKEN)) + TOKENS_PER_MESSAGE * len(
        body["messages"]
    )


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens the prompt of `body` has, by its length."""
    prompt = body.get("prompt") or body.get("input") or ""
    size = len(prompt if isinstance(prompt, str) else "".join(map(str, prompt)))
    for message in body.get("messages") or ():
        content = message.get("content")
        text = content if isinstance(content, str) else message_text(message)
        size += len(text) if text.isascii() else len(text.encode())
    return round(size / BYTES_PER_TOKEN)


def text_tokens(answer: Mapping[str, Any]) -> int:
    """About how many tokens the texts of a complete answer have."""
    choices = [choice for choice in answer.get("choices") or () if isinstance(choice, Mapping)]
    texts = [
        str((choice.get("message") or {}).get("content") or choice.get("text") or "") for choice in choices
    ]
    return round(sum(len(text.encode()) for text in texts) / BYTES_PER_TOKEN)


def usage_bound(body: Mapping[str, Any], output_cap: int | None) -> Usage:
    """The most a call with `body` may use, before it is made.

    The prompt counts by its length; the answer by the caller's bound, else by `output_cap` tokens, else not at
    all.
    """
    if "messages" not in body and "prompt" not in body:
        return Usage(prompt_tokens(body))  # embeddings have no answer to pay
    bound = body.get("max_completion_tokens") or body.get("max_tokens") or output_cap or 0
    return Usage(prompt_tokens(body), bound * (body.get("n") or 1))


def dearest_usd(models: Sequence[str], prices: Mapping[str, Price]) -> tuple[float, float]:
    """The most that a token read, and one written, can cost at `models` together, in US dollars."""
    priced = [prices[model] for model in models if model in prices]
    return sum(price.dearest_input_usd for price in priced), sum(price.dearest_output_usd for price in priced)


def _share(model: str, usage: Usage, prices: Mapping[str, Price], *, estimated: bool = False) -> Share:
    price = prices.get(model)
    return Share(model, usage, price.cost_usd(usage) if price else 0.0, estimated)
