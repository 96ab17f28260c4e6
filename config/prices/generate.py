"""Write protocol/prices.json, the prices Chorus knows: what litellm's table says of models that read and write tokens.

    python config/prices/generate.py                      (or: make prices)

litellm's table has dozens of fields for pictures, videos, searches and batches; kept are the prices of tokens, in US
dollars per million, under "provider/model". The table is read from the installed litellm, which is not imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[2] / "protocol" / "prices.json"
SOURCE = "litellm/model_prices_and_context_window_backup.json"
MODES = ("chat", "completion", "embedding", "responses", None)
FIELDS = {
    "input": "input_cost_per_token",
    "output": "output_cost_per_token",
    "cached": "cache_read_input_token_cost",
    "written": "cache_creation_input_token_cost",
    "written_1h": "cache_creation_input_token_cost_above_1hr",
    "reasoning": "output_cost_per_reasoning_token",
    "audio_in": "input_cost_per_audio_token",
    "audio_out": "output_cost_per_audio_token",
}
"""Our name of a price → litellm's."""
DEAREST = 1000.0
"""Dollars per million tokens. What is above is a price per thousand entered as one per token; no model costs that."""
TIER = re.compile(r"^input_cost_per_token_above_(\d+)k_tokens$")
PROVIDERS = {"bedrock_converse": "bedrock", "cohere_chat": "cohere", "azure_text": "azure"}
"""LiteLLM's names of providers that are one to a config."""


def generate() -> str:
    """The whole of protocol/prices.json."""
    litellm = distribution("litellm")
    table = json.loads(Path(str(litellm.locate_file(SOURCE))).read_text(encoding="utf-8"))
    prices: dict[str, Any] = {}
    for name, entry in sorted(table.items()):
        if name == "sample_spec" or entry.get("mode") not in MODES:
            continue
        if (price := _price(entry)) is not None:
            prices.setdefault(_full(name, entry), price)
    lines = ",\n".join(f"{json.dumps(name)}:{_compact(price)}" for name, price in sorted(prices.items()))
    head = f'"source":"litellm {litellm.version}","unit":"US dollars per million tokens"'
    return "{" + head + ',"models":{\n' + lines + "\n}}\n"


def _full(name: str, entry: Mapping[str, Any]) -> str:
    """`name` with its provider in front."""
    told = str(entry.get("litellm_provider") or "")
    provider = PROVIDERS.get(told) or re.sub(r"^(vertex_ai|fireworks_ai)-.*|^text-completion-", r"\1", told)
    return name if name.startswith(f"{provider}/") else f"{provider}/{name}"


def _price(entry: Mapping[str, Any]) -> dict[str, Any] | None:
    price = dict(_parts(entry, ""))
    if "input" not in price or any(usd > DEAREST for usd in price.values()):
        return None
    price.setdefault("output", 0)
    tiers = sorted(int(found[1]) for field in entry if (found := TIER.match(field)))
    if tiers:
        price["tiers"] = {str(k * 1000): dict(_parts(entry, f"_above_{k}k_tokens")) for k in tiers}
    return price


def _parts(entry: Mapping[str, Any], suffix: str) -> Iterator[tuple[str, float]]:
    for ours, theirs in FIELDS.items():
        value = entry.get(theirs + suffix)
        if isinstance(value, (int, float)):
            yield ours, float(f"{value * 1e6:.10g}")


def _compact(value: Any) -> str:
    return re.sub(r"\.0(?=[,}])", "", json.dumps(value, separators=(",", ":")))


if __name__ == "__main__":
    TABLE.write_text(generate(), encoding="utf-8")
    print(f"{TABLE}: {TABLE.read_text().count(chr(10)) - 2} models")
