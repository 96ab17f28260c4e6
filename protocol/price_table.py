"""What models cost where the settings do not say: the table in `prices.json`, read when it is first needed.

`make prices` writes the table from litellm's. Models stand in it as "provider/model"; a price of the settings always
goes before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from protocol.usage import Price, Tier

__all__ = ["HOSTS", "PriceTable", "price_table", "priced_name"]

HOSTS: Mapping[str, str] = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gemini",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral",
    "api.deepseek.com": "deepseek",
    "openrouter.ai": "openrouter",
    "api.together.xyz": "together_ai",
    "api.fireworks.ai": "fireworks_ai",
    "api.x.ai": "xai",
}
"""Where a base URL leads → the provider as the table calls it. The same name elsewhere is somebody else's model."""

_ALIASES = {"cohere_chat": "cohere", "bedrock_converse": "bedrock", "google": "gemini"}
_BEDROCK_ROUTE = re.compile(r"^(converse|converse_like|invoke)/")
_BEDROCK_REGION = re.compile(r"^[a-z]{2}(-[a-z]+)+-\d/")
_MILLION = 1e6


class PriceTable:
    """Prices by "provider/model". `source` names where they are from, and its version."""

    def __init__(self, source: str, models: Mapping[str, Mapping[str, Any]]) -> None:
        self.source, self._models = source, models

    def find(self, name: str) -> tuple[str, Price] | None:
        """The entry's name and price for a model written as "provider/model"; None when it is not known."""
        for candidate in _candidates(name):
            if candidate in self._models:
                return candidate, _price(self._models[candidate])
        return None

    def near(self, name: str) -> list[str]:
        """Names in the table that `name` may have been meant as."""
        return get_close_matches(name, self._models, n=3)

    def __len__(self) -> int:
        return len(self._models)

    def names(self) -> Iterable[str]:
        """Every "provider/model" in it."""
        return self._models.keys()


@cache
def price_table() -> PriceTable:
    """The table that comes with Chorus. It is data, and does not change while a process runs."""
    told = json.loads(files("protocol").joinpath("prices.json").read_text(encoding="utf-8"))
    return PriceTable(told["source"], told["models"])


def priced_name(base_url: str, model: str) -> str | None:
    """What the table calls a model behind an OpenAI-compatible `base_url`; None where no provider known here is."""
    host = urlsplit(base_url).hostname or ""
    provider = "azure" if host.endswith(".openai.azure.com") else HOSTS.get(host)
    return f"{provider}/{model}" if provider else None


def _candidates(name: str) -> Iterator[str]:
    """The names under which a model may stand in the table, the most exact first."""
    provider, _, model = name.partition("/")
    provider = _ALIASES.get(provider, provider)
    yield f"{provider}/{model}"
    if provider == "bedrock":
        model = _BEDROCK_ROUTE.sub("", model)
        yield f"bedrock/{model}"
        yield f"bedrock/{_BEDROCK_REGION.sub('', model)}"
    if provider == "gemini":
        yield f"gemini/{model.removeprefix('models/')}"


def _price(entry: Mapping[str, Any]) -> Price:
    """An entry of the table as a price; what a tier does not name costs there what it does below it."""
    tiers = entry.get("tiers") or {}
    price = _plain(entry)
    for above, parts in sorted(tiers.items(), key=lambda tier: int(tier[0])):
        raised = _plain({**{key: value for key, value in entry.items() if key != "tiers"}, **parts})
        if "output" in parts and "reasoning" not in parts:
            raised = replace(raised, reasoning_usd=None)
        price = replace(price, tiers=(*price.tiers, Tier(int(above), raised)))
    return price


def _plain(entry: Mapping[str, Any]) -> Price:
    def usd(key: str) -> float | None:
        value = entry.get(key)
        return None if value is None else value / _MILLION

    return Price(
        usd("input") or 0.0,
        usd("output") or 0.0,
        usd("cached"),
        usd("written"),
        usd("written_1h"),
        usd("reasoning"),
        usd("audio_in"),
        usd("audio_out"),
    )
