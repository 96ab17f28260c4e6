"""Settings to models."""

from __future__ import annotations

from pathlib import Path

from backends.registry import make_models
from backends.scripted import ScriptedUpstream
from protocol.settings import parse_settings

CONFIG = """
models:
  a: {engine: {weights: x}, price: {input_usd_per_token: 1, output_usd_per_token: 1}}
  b: {engine: {weights: x}}
  e: {embedder: {weights: x}}
  o: {openai: [{base_url: "http://127.0.0.1:9/v1", model: x}, {base_url: "http://127.0.0.1:9/v1", model: y}]}
strategies:
  duet: {fuse: {members: {a: 1, b: 1}}}
"""


async def test_engine_models_and_fusions_share_the_host(tmp_path: Path) -> None:
    """Engine models and fusions are asked at the engine host's socket, under their own names."""
    sockets = {"engines": tmp_path / "engines.sock", "embedder": tmp_path / "embedder.sock"}
    models = make_models(parse_settings(CONFIG), sockets)
    assert models["duet"].members == ("a", "b")
    assert {name: model.local for name, model in models.items()} == {
        "a": "engines",
        "b": "engines",
        "e": "embedder",
        "o": None,
        "duet": "engines",
    }
    assert len(models["o"].deployments) == 2
    host = ScriptedUpstream()
    async with host.serving(uds=sockets["engines"]):
        for name in ("a", "duet"):
            await models[name].call("/chat/completions", {"messages": []})
            await models[name].close()
    assert [seen.body["model"] for seen in host.seen] == ["a", "duet"]
