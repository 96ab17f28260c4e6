"""Caches as callers meet them, on every surface that is answered by chat."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.scripted import ScriptedUpstream
from gateway.app import make_app
from gateway.caching.memory import MemoryStore
from gateway.state.redis_client import RedisClient
from tests.gateway.conftest import settings_for
from tests.gateway.test_tenancy import make_key
from tests.listening import listening
from tests.redis_server import RedisServer

ASK = {"model": "one", "max_tokens": 5, "messages": [{"role": "user", "content": "Say something."}]}
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"


@pytest.fixture
async def client(serve: Any) -> httpx.AsyncClient:
    """A gateway that keeps answers of `one`."""
    return await serve(cache={"names": ["one"]})  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
async def test_the_second_costs_nothing(
    client: httpx.AsyncClient, upstream: ScriptedUpstream, path: str, first: bool, second: bool
) -> None:
    """On every surface, streamed or not and however the first was asked, the second is the first one's answer, for
    nothing; nothing of one surface is told on another."""
    ask = {**ASK, "input": "Say something.", "stream": first}
    if path == RESPONSES:
        ask = {"model": "one", "input": "Say something.", "stream": first}
    miss = await client.post(path, json=ask)
    assert miss.headers["x-chorus-cache"] == "miss"
    hit = await client.post(path, json={**ask, "stream": second})
    assert hit.headers["x-chorus-cache"] == "exact"
    assert int(hit.headers["age"]) >= 0
    assert "one word at a time" in hit.text
    if not second:
        assert hit.headers["x-chorus-cost-usd"] == "0"
    assert len(upstream.seen) == 1
    assert "x-chorus-cache" not in (await client.post(path, json={**ask, "model": "two"})).headers


async def test_explained(client: httpx.AsyncClient) -> None:
    """`explain` says that no call was made, and why; an answer that is asked for anew is kept in the other's place."""
    await client.post(CHAT, json=ASK)
    told = (await client.post(CHAT, json={**ASK, "chorus": {"explain": True}})).json()
    assert told["chorus"]["decision"] == {"cache": "exact"}
    assert told["chorus"]["calls"] == []
    assert told["chorus"]["cost_usd"] == 0
    assert told["usage"]["completion_tokens"] == 8
    anew = await client.post(CHAT, json=ASK, headers={"cache-control": "no-cache"})
    assert anew.headers["x-chorus-cache"] == "miss"
    only = {**ASK, "temperature": 0.5}
    refused = await client.post(CHAT, json=only, headers={"cache-control": "only-if-cached"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (504, "not_cached")
    metrics = (await client.get("/metrics")).text
    assert 'chorus_cache_answers_total{how="exact",requested_model="one"} 1.0' in metrics
    assert 'chorus_cache_answers_total{how="miss",requested_model="one"} 2.0' in metrics


async def test_what_passes_by(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    """Embeddings, completions and decisions go past the cache."""
    for path, body in (
        ("/v1/embeddings", {"model": "one", "input": "x"}),
        ("/v1/completions", {"model": "one", "prompt": "x"}),
        ("/v1/route", ASK),
    ):
        for _ in range(2):
            answer = await client.post(path, json=body)
            assert answer.status_code == 200
            assert "x-chorus-cache" not in answer.headers
    assert len(upstream.seen) == 4


async def test_tenants_are_apart(serve: Any, tmp_path: Path) -> None:
    """Keys of a team share, others do not, and a key may take no part at all."""
    sections = {"keys": {"required": True, "pepper": "pepper"}, "state": {"folder": str(tmp_path / "kept")}}
    client = await serve(cache={}, **sections)
    alice, bob = [await make_key(sections, team="a") for _ in range(2)]
    carol, dave = await make_key(sections), await make_key(sections, team="a", cached=False)

    async def told(headers: dict[str, str]) -> str | None:
        answer = await client.post(CHAT, json=ASK, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.headers.get("x-chorus-cache")

    assert [await told(key) for key in (dave, alice, bob, carol, dave, alice)] == [
        None, "miss", "exact", "miss", None, "exact",
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
async def test_nobody_waits_for_the_store(
    serve: Any, monkeypatch: pytest.MonkeyPatch, until: Any, stream: bool
) -> None:
    """An answer is told whole and its request settled before it is kept, however long the store takes; what cannot be
    kept in time, where too many wait, is not."""
    answers, asked = asyncio.Event(), []
    put = MemoryStore.put

    async def slow(self: MemoryStore, name: str, value: bytes, ttl_s: float) -> None:
        asked.append(name)
        await answers.wait()
        await put(self, name, value, ttl_s)

    monkeypatch.setattr(MemoryStore, "put", slow)
    monkeypatch.setattr("gateway.caching.keeping.MOST", 1)
    client = await serve(cache={})
    for text in ("kept", "too many"):
        ask = {**ASK, "stream": stream, "messages": [{"role": "user", "content": text}]}
        assert '"stop"' in (await client.post(CHAT, json=ask)).text
    counted = 'chorus_requests_total{outcome="ok",requested_model="one",strategy="direct"} 2.0'
    assert counted in (await client.get("/metrics")).text
    assert len(asked) == 1
    answers.set()
    for text, how in (("kept", "exact"), ("too many", "miss")):
        ask = {**ASK, "messages": [{"role": "user", "content": text}]}
        assert (await client.post(CHAT, json=ask)).headers["x-chorus-cache"] == how


@pytest.mark.requires("redis-server")
async def test_leaves_no_connection_behind(upstream: ScriptedUpstream, redis: RedisServer) -> None:
    """What a gateway keeps in Redis it asks for over connections of its own, and it closes them when it ends."""

    async def connected(client: Any) -> int:
        return len(await client.client_list())

    looker = RedisClient(redis.url, timeout_s=2.0)
    own = await looker.run(connected)
    async with upstream.serving() as url:
        settings = settings_for(
            url,
            {"one": {}},
            redis={"url": redis.url},
            keys={"pepper": "p" * 32},
            cache={"store": "redis"},
        )
        async with listening(make_app(settings, {})) as base, httpx.AsyncClient(base_url=base) as client:
            assert (await client.post(CHAT, json=ASK)).headers["x-chorus-cache"] == "miss"
            assert await looker.run(connected) > own
    async with asyncio.timeout(5):
        while await looker.run(connected) > own:  # noqa: ASYNC110 - the server hears of each end by itself
            await asyncio.sleep(0.01)
    await looker.close()
