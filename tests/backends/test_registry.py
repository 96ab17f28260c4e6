"""Settings to models."""

from __future__ import annotations

from pathlib import Path

import pytest

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


def test_limits_are_shared_by_the_workers() -> None:
    """Each worker gets an equal part of a limit, and at least one call at once."""
    section = '{base_url: "http://127.0.0.1:9/v1", model: x, max_concurrent: 6, rpm: 120, weight: 2}'
    for workers, slots, per_s in ((1, 6, 2.0), (4, 1, 0.5), (12, 1, 1 / 6)):
        text = f"models: {{o: {{openai: {section}}}}}\nserver: {{workers: {workers}}}"
        (seat,) = make_models(parse_settings(text), {})["o"].seats
        assert (seat.weight, seat.max_concurrent) == (2.0, slots)
        assert seat.requests is not None
        seat.requests.take(1.0, 120 / workers)
        assert seat.requests.wait_s(1.0) == pytest.approx(1 / per_s)


async def test_fallbacks_and_caps(tmp_path: Path) -> None:
    """A model knows its fallbacks and its longest answer; a fusion has no fallback of its own."""
    sockets = {"engines": tmp_path / "e.sock", "embedder": tmp_path / "m.sock"}
    text = CONFIG.replace(
        "a: {engine: {weights: x},", "a: {engine: {weights: x}, max_output_tokens: 5, fallbacks: [b],"
    )
    models = make_models(parse_settings(text), sockets)
    assert (models["a"].fallbacks, models["duet"].fallbacks) == (("b",), ())
    assert models["a"].reserve_usd({"messages": []}) == 5.0
