"""What models cost, as the settings say it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import Field, model_validator

from protocol.frozen import Frozen
from protocol.price_table import price_table
from protocol.usage import Price, Tier

__all__ = ["PriceSettings", "TierSettings", "TokenPrices", "price_of"]


class TokenPrices(Frozen):
    """US dollars per token; a part that has no price costs what its whole does."""

    input_usd_per_token: float = Field(ge=0, description="US dollars per input token")
    output_usd_per_token: float = Field(ge=0, description="US dollars per output token")
    cached_input_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per input token read from a cache"
    )
    cache_write_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per input token put into a cache"
    )
    cache_write_1h_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per input token put into a cache for an hour"
    )
    reasoning_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per output token of hidden reasoning"
    )
    audio_input_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per input token of sound"
    )
    audio_output_usd_per_token: float | None = Field(
        None, ge=0, description="US dollars per output token of sound"
    )

    @property
    def flat(self) -> Price:
        """The price without what longer prompts cost."""
        return Price(
            self.input_usd_per_token,
            self.output_usd_per_token,
            self.cached_input_usd_per_token,
            self.cache_write_usd_per_token,
            self.cache_write_1h_usd_per_token,
            self.reasoning_usd_per_token,
            self.audio_input_usd_per_token,
            self.audio_output_usd_per_token,
        )


class TierSettings(TokenPrices):
    """What a whole call costs whose prompt is longer than `above_input_tokens`."""

    above_input_tokens: int = Field(ge=1, description="tokens of the prompt")


class PriceSettings(TokenPrices):
    """US dollars per token; or, in place of this section, a name of the price table such as `azure/gpt-4o`."""

    tiers: tuple[TierSettings, ...] = Field((), description="higher prices of long prompts, shortest first")
    source: str = Field(
        "settings", description="where the price is from; Chorus writes it, `chorus check` shows it"
    )

    @model_validator(mode="after")
    def _tiers_rise(self) -> PriceSettings:
        bounds = [tier.above_input_tokens for tier in self.tiers]
        if bounds != sorted(set(bounds)):
            raise ValueError("tiers: above_input_tokens must rise from one to the next")
        return self

    @property
    def price(self) -> Price:
        return replace(self.flat, tiers=tuple(Tier(t.above_input_tokens, t.flat) for t in self.tiers))

    @classmethod
    def of(cls, price: Price, source: str) -> PriceSettings:
        """`price` as settings."""
        tiers = tuple({**_token_prices(t.price), "above_input_tokens": t.above_tokens} for t in price.tiers)
        return cls.model_validate({**_token_prices(price), "tiers": tiers, "source": source})


def _token_prices(price: Price) -> dict[str, float | None]:
    return {
        "input_usd_per_token": price.input_usd,
        "output_usd_per_token": price.output_usd,
        "cached_input_usd_per_token": price.cached_usd,
        "cache_write_usd_per_token": price.written_usd,
        "cache_write_1h_usd_per_token": price.written_1h_usd,
        "reasoning_usd_per_token": price.reasoning_usd,
        "audio_input_usd_per_token": price.audio_in_usd,
        "audio_output_usd_per_token": price.audio_out_usd,
    }


def price_of(value: Any) -> Any:
    """A name of the price table as the price that stands there. Raises ValueError."""
    if not isinstance(value, str):
        return value
    table = price_table()
    if (found := table.find(value)) is None:
        near = ", ".join(table.near(value)) or "none is alike"
        raise ValueError(f"no {value!r} in the price table ({table.source}); near it: {near}")
    return PriceSettings.of(found[1], f"{table.source}: {found[0]}")
