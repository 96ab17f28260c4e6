"""Settings to models."""

from __future__ import annotations

from pathlib import Path

import pytest

from backends.registry import make_models
from backends.scripted import Script, ScriptedUpstream
from protocol.errors import UpstreamRefused
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


def test_accounts() -> None:
    """Within a model, deployments of one server and key share an account; across models those that name one do."""
    here, there = '"http://127.0.0.1:9/v1"', '"http://127.0.0.1:8/v1"'
    text = f"""
models:
  a:
    openai:
      - {{base_url: {here}, model: x, api_key: k}}
      - {{base_url: {here}, model: y, api_key: k}}
      - {{base_url: {there}, model: x, api_key: k}}
      - {{base_url: {there}, model: x, api_key: k, account: shared}}
  b:
    openai:
      - {{base_url: {here}, model: x, api_key: k}}
      - {{base_url: {here}, model: y, account: shared}}
"""
    models = make_models(parse_settings(text), {})
    one, two, three, four = (seat.account for seat in models["a"].seats)
    five, six = (seat.account for seat in models["b"].seats)
    assert one is two
    assert four is six
    assert len({id(account) for account in (one, three, four, five)}) == 4


async def test_a_limit_rests_the_account() -> None:
    """After a 429 with Retry-After no deployment of the account is asked, and the caller is told to wait; without
    Retry-After the next one is."""
    for headers, asked in (({"retry-after": "60"}, ["x"]), ({}, ["x", "y"])):
        upstream = ScriptedUpstream({name: Script(status=429, headers=headers) for name in ("x", "y")})
        async with upstream.serving() as url:
            each = [f"{{base_url: {url}, model: {name}, api_key: k}}" for name in ("x", "y")]
            text = f"models: {{m: {{balance: least-busy, openai: [{', '.join(each)}]}}}}\nresilience: {{retries: 1}}"
            models = make_models(parse_settings(text), {})
            with pytest.raises(UpstreamRefused) as refused:
                await models["m"].call("/chat/completions", {"messages": []})
            assert refused.value.status == 429
            assert [seen.body["model"] for seen in upstream.seen] == asked
            await models["m"].close()


async def test_prefix_affinity() -> None:
    """With balance `prefix`, prompts that begin alike go to one deployment, and others elsewhere."""
    upstream = ScriptedUpstream()
    async with upstream.serving() as url:
        each = ", ".join(f"{{base_url: {url}, model: {name}}}" for name in "wxyz")
        text = f"models: {{m: {{balance: prefix, prefix_bytes: 64, openai: [{each}]}}}}"
        model = make_models(parse_settings(text), {})["m"]
        for prompt in range(8):
            for ending in range(3):
                content = f"{prompt}" * 100 + f"{ending}"
                await model.call("/chat/completions", {"messages": [{"role": "user", "content": content}]})
        asked = [seen.body["model"] for seen in upstream.seen]
        assert all(len(set(asked[i : i + 3])) == 1 for i in range(0, 24, 3))
        assert len(set(asked)) > 1
        await model.close()


async def test_fallbacks_and_caps(tmp_path: Path) -> None:
    """A model knows its fallbacks and its longest answer; a fusion has no fallback of its own."""
    sockets = {"engines": tmp_path / "e.sock", "embedder": tmp_path / "m.sock"}
    text = CONFIG.replace(
        "a: {engine: {weights: x},", "a: {engine: {weights: x}, max_output_tokens: 5, fallbacks: [b],"
    )
    models = make_models(parse_settings(text), sockets)
    assert (models["a"].fallbacks, models["duet"].fallbacks) == (("b",), ())
    assert models["a"].reserve_usd({"messages": []}) == 5.0
