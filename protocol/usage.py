"""Tokens spent by a call, and their price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOTHING", "Price", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, or of several added up. `cached_tokens` is the part of `prompt_tokens` read from a prefix
    cache; `reasoning_tokens` the part of `completion_tokens` that was hidden reasoning."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )

    @classmethod
    def parse(cls, usage: Mapping[str, Any] | None) -> Usage:
        """Read OpenAI's `usage` object; what is absent, or no count of tokens, counts as zero."""
        if not isinstance(usage, Mapping):
            return NOTHING
        prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        cached, hidden = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        return cls(
            prompt,
            completion,
            min(prompt, _count(cached.get("cached_tokens"))) if isinstance(cached, Mapping) else 0,
            min(completion, _count(hidden.get("reasoning_tokens"))) if isinstance(hidden, Mapping) else 0,
        )

    def wire(self) -> dict[str, Any]:
        """OpenAI's `usage` object."""
        body: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        if self.cached_tokens:
            body["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        if self.reasoning_tokens:
            body["completion_tokens_details"] = {"reasoning_tokens": self.reasoning_tokens}
        return body


NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token. `cached_usd` is the price of an input token read from the prefix cache."""

    input_usd: float
    output_usd: float
    cached_usd: float | None = None

    def cost_usd(self, usage: Usage) -> float:
        """Price of `usage`, in US dollars."""
        cached = self.input_usd if self.cached_usd is None else self.cached_usd
        fresh_tokens = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh_tokens * self.input_usd
            + usage.cached_tokens * cached
            + usage.completion_tokens * self.output_usd
        )


def _count(value: Any) -> int:
    """A number of tokens off the wire: backends are known to send null, text, and numbers below zero."""
    if type(value) is int and value >= 0:
        return value
    return max(0, int(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
