"""Models that cost nothing because nobody said what they cost."""

from __future__ import annotations

import yaml

from gateway.prices import unpriced
from protocol.settings import parse_settings


def test_who_has_no_price() -> None:
    """A model of one's own server without a price is named; a known provider's, and one of the settings, are not."""
    price = {"input_usd_per_token": 0, "output_usd_per_token": 0}
    models = {
        "known": {"openai": {"base_url": "https://api.openai.com/v1", "model": "gpt-4o"}},
        "unknown there": {"openai": {"base_url": "https://api.openai.com/v1", "model": "gpt-99-imaginary"}},
        "own": {"openai": {"base_url": "http://gpu-box/v1", "model": "gpt-4o"}},
        "told": {"openai": {"base_url": "http://gpu-box/v1", "model": "x"}, "price": price},
    }
    named = {name.replace(" ", "-"): model for name, model in models.items()}
    assert list(unpriced(parse_settings(yaml.safe_dump({"models": named}, sort_keys=False)))) == [
        "unknown-there",
        "own",
    ]
