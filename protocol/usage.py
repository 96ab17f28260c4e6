"""Tokens spent by a call, and their price.

    tokens read     = prompt_tokens       = fresh + cached + written to a cache (of which kept for an hour) + audio
    tokens written  = completion_tokens   = text + reasoning + audio

Each part may have a price of its own; one that has none costs what its whole does. Prices may rise with the length of
the prompt (`tiers`), and then the whole call is charged at the tier its prompt reaches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from protocol.value import value

__all__ = ["NOTHING", "Price", "Tier", "Usage"]


@value
class Usage:
    """Tokens of one call, or of several added up.

    Parts of `prompt_tokens`: `cached_tokens` were read from a prefix cache, `written_tokens` were put into one (of them
    `written_1h_tokens` for an hour), `audio_in_tokens` were sound. Parts of `completion_tokens`: `reasoning_tokens`
    were hidden reasoning, `audio_out_tokens` sound.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    written_tokens: int = 0
    written_1h_tokens: int = 0
    audio_in_tokens: int = 0
    audio_out_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cached_tokens + other.cached_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
            self.written_tokens + other.written_tokens,
            self.written_1h_tokens + other.written_1h_tokens,
            self.audio_in_tokens + other.audio_in_tokens,
            self.audio_out_tokens + other.audio_out_tokens,
        )

    def most(self, other: Usage) -> Usage:
        """The larger of each count: for reports that grow while an answer is told."""
        return Usage(*map(max, astuple(self), astuple(other)))

    @classmethod
    def parse(cls, usage: Mapping[str, Any] | None) -> Usage:
        """Read OpenAI's `usage` object; what is absent, or no count of tokens, counts as zero."""
        if not isinstance(usage, Mapping):
            return NOTHING
        prompt, completion = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
        cached = written = hour = audio_in = reasoning = audio_out = 0
        read, wrote = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        if isinstance(read, dict):
            cached = min(prompt, _count(read.get("cached_tokens")))
            if "cache_write_tokens" in read:
                written = min(prompt - cached, _count(read.get("cache_write_tokens")))
                hour = min(written, _count(read.get("cache_write_1h_tokens")))
            if "audio_tokens" in read:
                audio_in = min(prompt - cached - written, _count(read.get("audio_tokens")))
        if isinstance(wrote, dict):
            reasoning = min(completion, _count(wrote.get("reasoning_tokens")))
            if "audio_tokens" in wrote:
                audio_out = min(completion - reasoning, _count(wrote.get("audio_tokens")))
        return cls(prompt, completion, cached, reasoning, written, hour, audio_in, audio_out)

    def wire(self) -> dict[str, Any]:
        """OpenAI's `usage` object."""
        body: dict[str, Any] = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        for section, part, count in (
            ("prompt_tokens_details", "cached_tokens", self.cached_tokens),
            ("prompt_tokens_details", "cache_write_tokens", self.written_tokens),
            ("prompt_tokens_details", "cache_write_1h_tokens", self.written_1h_tokens),
            ("prompt_tokens_details", "audio_tokens", self.audio_in_tokens),
            ("completion_tokens_details", "reasoning_tokens", self.reasoning_tokens),
            ("completion_tokens_details", "audio_tokens", self.audio_out_tokens),
        ):
            if count:
                body.setdefault(section, {})[part] = count
        return body


NOTHING = Usage()


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per token; None: as the whole it is a part of.

    `cached_usd`: read from a prefix cache; `written_usd` and `written_1h_usd`: put into one; `reasoning_usd`: hidden
    reasoning. `tiers` in rising order of prompt length.
    """

    input_usd: float
    output_usd: float
    cached_usd: float | None = None
    written_usd: float | None = None
    written_1h_usd: float | None = None
    reasoning_usd: float | None = None
    audio_in_usd: float | None = None
    audio_out_usd: float | None = None
    tiers: tuple[Tier, ...] = ()

    def cost_usd(self, usage: Usage) -> float:
        """Price of `usage`, in US dollars."""
        price = self._at(usage.prompt_tokens) if self.tiers else self
        base, out = price.input_usd, price.output_usd
        fresh = usage.prompt_tokens - usage.cached_tokens - usage.written_tokens - usage.audio_in_tokens
        text = usage.completion_tokens - usage.reasoning_tokens - usage.audio_out_tokens
        usd = fresh * base + usage.cached_tokens * _or(price.cached_usd, base) + text * out
        if usage.written_tokens:
            written_usd = _or(price.written_usd, base)
            usd += (usage.written_tokens - usage.written_1h_tokens) * written_usd
            usd += usage.written_1h_tokens * _or(price.written_1h_usd, written_usd)
        if usage.reasoning_tokens:
            usd += usage.reasoning_tokens * _or(price.reasoning_usd, out)
        if usage.audio_in_tokens or usage.audio_out_tokens:
            usd += usage.audio_in_tokens * _or(price.audio_in_usd, base)
            usd += usage.audio_out_tokens * _or(price.audio_out_usd, out)
        return usd

    @property
    def dearest_input_usd(self) -> float:
        """The most a token read can cost, in US dollars."""
        if (
            self.written_usd is None
            and self.written_1h_usd is None
            and self.audio_in_usd is None
            and not self.tiers
        ):
            return max(self.input_usd, self.cached_usd or 0.0)  # as most are
        parts = (self.cached_usd, self.written_usd, self.written_1h_usd, self.audio_in_usd)
        tiers = (tier.price.dearest_input_usd for tier in self.tiers)
        return max(self.input_usd, *(part or 0.0 for part in parts), *tiers)

    @property
    def dearest_output_usd(self) -> float:
        """The most a token written can cost, in US dollars."""
        tiers = (tier.price.dearest_output_usd for tier in self.tiers)
        return max(self.output_usd, self.reasoning_usd or 0.0, self.audio_out_usd or 0.0, *tiers)

    def _at(self, prompt_tokens: int) -> Price:
        """The price of a call whose prompt is this long."""
        price = self
        for tier in self.tiers:
            if prompt_tokens > tier.above_tokens:
                price = tier.price
        return price


@dataclass(frozen=True, slots=True)
class Tier:
    """`price` holds for the whole of a call whose prompt has more than `above_tokens` tokens."""

    above_tokens: int
    price: Price


def _or(part_usd: float | None, whole_usd: float) -> float:
    return whole_usd if part_usd is None else part_usd


def _count(value: Any) -> int:
    """A number of tokens off the wire: backends are known to send null, text, and numbers below zero."""
    if type(value) is int and value >= 0:
        return value
    return max(0, int(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else 0
