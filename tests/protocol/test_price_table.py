"""What models cost by the table, and invoices computed by hand from what providers publish."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocol.anthropic import message_usage
from protocol.errors import SettingsError
from protocol.price_table import price_table, priced_name
from protocol.settings import Settings, parse_settings
from protocol.usage import Price, Tier, Usage

M = 1_000_000


def priced(name: str) -> Price:
    """The table's price of a model."""
    found = price_table().find(name)
    assert found is not None, name
    return found[1]


# Each: the model, what was used, and the bill in millionths of a dollar, from the published price per million tokens.
INVOICES: dict[str, tuple[str, Usage, float]] = {
    # 3 fresh, 0.30 read from cache, 3.75 and 6 written for five minutes and an hour, 15 out
    "claude, cache read and written": (
        "anthropic/claude-sonnet-4-5", Usage(140, 25, 100, 0, 30, 10),
        10 * 3 + 100 * 0.30 + 20 * 3.75 + 10 * 6 + 25 * 15,
    ),
    # 0.15 in, 0.075 cached, 0.60 out
    "gpt-4o-mini, cached": ("openai/gpt-4o-mini", Usage(1000, 200, 400), 600 * 0.15 + 400 * 0.075 + 200 * 0.60),
    # 1.10 in, 4.40 out, reasoning billed as output
    "o3-mini, reasoning": ("openai/o3-mini", Usage(500, 1000, 0, 800), 500 * 1.10 + 1000 * 4.40),
    # up to 200k tokens: 1.25 in, 10 out
    "gemini pro, at the bound": ("gemini/gemini-2.5-pro", Usage(200_000, 1000), 200_000 * 1.25 + 1000 * 10),
    # beyond: 2.50 in, 0.25 cached, 15 out, thoughts as output, for the whole call
    "gemini pro, a long prompt": (
        "gemini/gemini-2.5-pro", Usage(250_000, 1000, 50_000, 300), 200_000 * 2.50 + 50_000 * 0.25 + 1000 * 15,
    ),
    # 0.30 text, 1.00 sound in, 2.50 out
    "gemini flash, sound": (
        "gemini/gemini-2.5-flash", Usage(1000, 100, audio_in_tokens=400), 600 * 0.30 + 400 * 1.00 + 100 * 2.50,
    ),
    # text 2.50 in, 10 out; sound 32 in, 64 out
    "gpt-audio, sound both ways": (
        "openai/gpt-audio", Usage(150, 50, audio_in_tokens=50, audio_out_tokens=30),
        100 * 2.50 + 50 * 32 + 20 * 10 + 30 * 64,
    ),
    # beyond 200k: 6 in, 0.60 cached, 7.50 written, 22.50 out
    "claude at Bedrock, a long prompt": (
        "bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", Usage(300_000, 2000, 100_000, 0, 50_000),
        150_000 * 6 + 100_000 * 0.60 + 50_000 * 7.50 + 2000 * 22.50,
    ),
    # the same model by a route and a region in its name
    "claude at Bedrock, by route": (
        "bedrock/converse/us-east-1/anthropic.claude-sonnet-4-5-20250929-v1:0", Usage(1000, 10), 1000 * 3 + 10 * 15,
    ),
    # 2 in, 8 out, 3 for reasoning
    "sonar, reasoning at its own price": (
        "perplexity/sonar-deep-research", Usage(100, 1000, 0, 900), 100 * 2 + 100 * 8 + 900 * 3,
    ),
    # 0.02 in
    "embeddings": ("openai/text-embedding-3-small", Usage(1000, 0), 1000 * 0.02),
    # 2.50 in, 10 out
    "cohere": ("cohere_chat/command-a-03-2025", Usage(1000, 100), 1000 * 2.50 + 100 * 10),
}  # fmt: skip


@pytest.mark.parametrize("invoice", INVOICES)
def test_golden_invoices(invoice: str) -> None:
    """What a call costs by the table is what the provider would bill."""
    name, usage, bill = INVOICES[invoice]
    assert priced(name).cost_usd(usage) == pytest.approx(bill / M, rel=1e-12)


def test_a_message_passed_through_is_billed_alike() -> None:
    """Anthropic's own words for usage come to the same bill."""
    told = {
        "input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 30, "output_tokens": 25,
        "cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10},
    }  # fmt: skip
    assert priced("anthropic/claude-sonnet-4-5").cost_usd(message_usage(told)) == pytest.approx(570 / M)


@pytest.mark.parametrize("invoice", INVOICES)
def test_nothing_costs_more_than_its_bound(invoice: str) -> None:
    """What is set aside before a call, not knowing what its tokens will be, covers the bill."""
    name, usage, _ = INVOICES[invoice]
    price = priced(name)
    most_usd = (
        usage.prompt_tokens * price.dearest_input_usd + usage.completion_tokens * price.dearest_output_usd
    )
    assert most_usd >= price.cost_usd(usage)


def test_a_part_without_a_price_costs_as_its_whole() -> None:
    """Cached, written and audio tokens as input, reasoning as output; an hour's writing as five minutes'."""
    usage = Usage(100, 50, 10, 5, 20, 8, 7, 3)
    assert Price(2.0, 3.0).cost_usd(usage) == 100 * 2 + 50 * 3
    assert Price(2.0, 3.0, written_usd=5.0).cost_usd(usage) == 80 * 2 + 20 * 5 + 50 * 3


def test_the_highest_tier_that_is_reached_counts() -> None:
    """Of several tiers the last one whose bound the prompt exceeds."""
    price = Price(1.0, 1.0, tiers=(Tier(10, Price(2.0, 2.0)), Tier(20, Price(3.0, 3.0))))
    assert [price.cost_usd(Usage(tokens, 1)) for tokens in (10, 11, 20, 21)] == [11, 24, 42, 66]


@pytest.mark.requires("hosted")
def test_the_table_is_current() -> None:
    """protocol/prices.json is what `make prices` writes from the pinned litellm."""
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location(
        "generate_prices", root / "config" / "prices" / "generate.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (root / "protocol" / "prices.json").read_text(encoding="utf-8") == module.generate()


def test_every_price_makes_sense() -> None:
    """No price is below zero, and none above two dollars a thousand tokens."""
    table = price_table()
    assert len(table) > 2000
    for name in table.names():
        price = priced(name)
        assert 0 <= price.input_usd <= price.dearest_input_usd < 2e-3, name
        assert 0 <= price.output_usd <= price.dearest_output_usd < 2e-3, name


@pytest.mark.parametrize(
    ("base_url", "name"),
    [
        ("https://api.openai.com/v1", "openai/m"),
        ("https://mine.openai.azure.com/openai/v1", "azure/m"),
        ("https://api.anthropic.com/v1", "anthropic/m"),
        ("http://gpu-box:8000/v1", None),
        ("https://api.openai.com.evil.test/v1", None),
        ("unix:///run/engine.sock", None),
    ],
)
def test_whose_model_it_is(base_url: str, name: str | None) -> None:
    """Only at a known provider's address is a model the provider's."""
    assert priced_name(base_url, "m") == name


def settings(**models: Any) -> Settings:
    """Settings of these models."""
    return parse_settings(yaml.safe_dump({"models": models}))


OPENAI = {"base_url": "https://api.openai.com/v1", "model": "gpt-4o-mini"}
HERE = {"base_url": "http://127.0.0.1:8000/v1", "model": "gpt-4o-mini"}
CLAUDE = {"model": "anthropic/claude-sonnet-4-5", "api_key": "k"}


def test_models_get_the_tables_price() -> None:
    """Where the settings are silent and the provider is known; it says where the price is from."""
    models = settings(a={"openai": OPENAI}, b={"hosted": CLAUDE}, c={"openai": HERE}).models
    assert models["a"].price is not None
    assert models["b"].price is not None
    assert models["a"].price.price == priced("openai/gpt-4o-mini")
    assert models["b"].price.price == priced("anthropic/claude-sonnet-4-5")
    assert models["b"].price.source == f"{price_table().source}: anthropic/claude-sonnet-4-5"
    assert models["c"].price is None


def test_settings_go_before_the_table() -> None:
    """A price that is written counts, whatever the table knows."""
    price = {"input_usd_per_token": 1.0, "output_usd_per_token": 2.0, "cache_write_usd_per_token": 3.0,
             "tiers": [{"above_input_tokens": 5, "input_usd_per_token": 4.0, "output_usd_per_token": 5.0}]}  # fmt: skip
    told = settings(a={"openai": OPENAI, "price": price}).models["a"].price
    assert told is not None
    assert told.price == Price(1.0, 2.0, written_usd=3.0, tiers=(Tier(5, Price(4.0, 5.0)),))
    assert told.source == "settings"


def test_a_name_in_place_of_a_price() -> None:
    """A model whose name says nothing of its price is priced as one of the table."""
    told = settings(a={"openai": HERE, "price": "azure/gpt-4o"}).models["a"].price
    assert told is not None
    assert told.price == priced("azure/gpt-4o")


def test_an_unknown_name_is_told_with_near_ones() -> None:
    """A misspelt name stops the start."""
    with pytest.raises(SettingsError, match=r"models\.a\.price: no 'azure/gtp-4o'.*azure/gpt-4o"):
        settings(a={"openai": HERE, "price": "azure/gtp-4o"})


def test_tiers_must_rise() -> None:
    """Tiers out of order are a fault of the config."""
    tier = {"input_usd_per_token": 1, "output_usd_per_token": 1}
    price = {**tier, "tiers": [{**tier, "above_input_tokens": 9}, {**tier, "above_input_tokens": 5}]}
    with pytest.raises(SettingsError, match="must rise"):
        settings(a={"openai": HERE, "price": price})


def test_of_several_deployments_the_dearest_counts() -> None:
    """So that a budget holds whichever of them answers."""
    dear = {**OPENAI, "model": "gpt-4o"}
    for deployments in ([OPENAI, dear], [dear, OPENAI]):
        told = settings(a={"openai": deployments}).models["a"].price
        assert told is not None
        assert told.price == priced("openai/gpt-4o")
