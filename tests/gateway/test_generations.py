"""A reload inside one process: what is under way goes on, what comes is answered by the new config."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.scripted import Script, ScriptedUpstream
from gateway.app import Gateway, make_app
from gateway.reloadable import effective
from outcomes.artefact import annotate
from protocol.errors import SettingsError
from tests.gateway.conftest import listening, settings_for

ROOT = Path(__file__).parents[2]
RELOADS = 50


@asynccontextmanager
async def gateway(url: str, **sections: Any) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    """A gateway of the models "one" and "two", and a client of it."""
    app = make_app(settings_for(url, {"one": {}, "two": {}}, **sections), {})
    async with listening(app) as base, httpx.AsyncClient(base_url=base, timeout=30, verify=False) as client:
        yield app, client


async def reload(app: Gateway, url: str, models: dict[str, Any], **sections: Any) -> None:
    """What a worker does when it is told to prepare and to commit."""
    app.commit(await asyncio.to_thread(app.prepare, settings_for(url, models, **sections), {}))


def chat(model: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "x"}], **fields}


async def test_a_stream_is_untouched(upstream: ScriptedUpstream, until: Any) -> None:
    """A stream that runs across a reload, of a model that is gone with it, ends whole; then its connections are
    closed."""
    upstream.default = Script(text="word " * 20, chunk_delay_s=0.03)
    async with upstream.serving() as url, gateway(url) as (app, client):
        (deployment,) = app.in_force.catalogue.models["two"].deployments
        async with client.stream("POST", "/v1/chat/completions", json=chat("two", stream=True)) as response:
            events = response.aiter_text()
            await anext(events)
            await reload(app, url, {"one": {}, "three": {}})
            assert app.older == 1
            assert (await client.post("/v1/chat/completions", json=chat("two"))).status_code == 404
            upstream.default = Script()
            assert (await client.post("/v1/chat/completions", json=chat("three"))).status_code == 200
            names = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
            assert names == ["one", "three"]
            rest = "".join([event async for event in events])
        assert rest.count("word") == 20 - 1 or rest.count("word") == 20
        assert rest.endswith("data: [DONE]\n\n")
        await until(lambda: app.older == 0 and deployment.client.open == 0)


async def test_what_is_unchanged_goes_on(upstream: ScriptedUpstream) -> None:
    """An unchanged model keeps its connections and breakers; of a changed one, each unchanged deployment does."""
    async with upstream.serving() as url, gateway(url) as (app, client):
        assert (await client.post("/v1/chat/completions", json=chat("one"))).status_code == 200
        before = app.in_force.catalogue.models["one"]
        before.seats[0].breaker.failed(0.0, probe=False, wait_s=1e9)
        await reload(app, url, {"one": {}, "two": {"context_length": 999}})
        assert app.in_force.catalogue.models["one"] is before
        await reload(app, url, {"one": {"fallbacks": ["two"]}, "two": {}})
        after = app.in_force.catalogue.models["one"]
        assert after is not before
        assert after.deployments == before.deployments
        assert after.seats[0] is before.seats[0]
        assert before.deployments[0].client.idle == 1
        slower = {"openai": {"base_url": url, "model": "upstream-one", "timeout_s": 5}}
        await reload(app, url, {"one": slower, "two": {}})
        last = app.in_force.catalogue.models["one"]
        assert last.deployments != after.deployments
        assert last.seats[0].breaker.open


async def test_twins_stay_two(upstream: ScriptedUpstream) -> None:
    """Two deployments that are alike stay two after a reload."""
    async with upstream.serving() as url, gateway(url) as (app, _):
        twin = {"base_url": url, "model": "x"}
        for fallbacks in ([], ["two"]):
            await reload(app, url, {"one": {"openai": [twin, twin], "fallbacks": fallbacks}, "two": {}})
            model = app.in_force.catalogue.models["one"]
            assert len({id(seat) for seat in model.seats}) == len(set(model.deployments)) == 2


async def test_rules_change(upstream: ScriptedUpstream) -> None:
    """Keys, limits and caps of a new config hold for requests that come after it, over the same accounts."""
    async with upstream.serving() as url, gateway(url, limits={"everyone": {"rpm": 2}}) as (app, client):
        models: dict[str, Any] = {"one": {}, "two": {}}
        assert (await client.post("/v1/chat/completions", json=chat("one"))).status_code == 200
        await reload(app, url, models, limits={"everyone": {"rpm": 2}}, server={"master_key": "sk-new"})
        assert (await client.post("/v1/chat/completions", json=chat("one"))).status_code == 401
        headers = {"authorization": "Bearer sk-new"}
        told = [
            (await client.post("/v1/chat/completions", json=chat("one"), headers=headers)).status_code
            for _ in range(2)
        ]
        assert told == [200, 429]  # the first of three was counted before the reload


async def test_a_bad_config_changes_nothing(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """What cannot be made is refused when it is prepared."""
    async with upstream.serving() as url, gateway(url) as (app, client):
        stages = {"stages": ["one", "two"], "artefact": str(tmp_path / "nope")}
        with pytest.raises(SettingsError, match=r"strategies\.late"):
            await reload(app, url, {"one": {}, "two": {}}, strategies={"late": {"cascade": stages}})
        assert app.older == 0
        assert (await client.post("/v1/chat/completions", json=chat("one"))).status_code == 200


async def test_fifty_reloads_under_load(upstream: ScriptedUpstream, until: Any) -> None:
    """Not one request is lost while the config changes fifty times; no task, connection or generation is left."""
    upstream.default = Script(text="a b c", chunk_delay_s=0.005)
    async with upstream.serving() as url, gateway(url) as (app, client):
        await client.post("/v1/chat/completions", json=chat("one"))
        tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        over, answered = asyncio.Event(), [0, 0]

        async def ask(stream: bool) -> None:
            while not over.is_set():
                response = await client.post("/v1/chat/completions", json=chat("one", stream=stream))
                assert response.status_code == 200, response.text
                assert not stream or response.text.endswith("data: [DONE]\n\n")
                answered[stream] += 1

        load = [asyncio.create_task(ask(bool(i % 2))) for i in range(8)]
        for i in range(RELOADS):
            # Another deployment each time, so that no connection can be kept.
            section = {"openai": {"base_url": url, "model": f"x{i}", "timeout_s": 100 + i}}
            await reload(app, url, {"one": section, "two": {}})
            await asyncio.sleep(0.01)
        over.set()
        await asyncio.gather(*load)
        assert min(answered) > RELOADS / 2
        await until(lambda: app.older == 0)
        open_upstream = [
            deployment.client.open for deployment in app.in_force.catalogue.models["one"].deployments
        ]
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 16)  # uvicorn's, one a kept connection
        slack = (
            2 * len(load) + sum(open_upstream) + 8
        )  # the load's own connections, both ends in this process
        await until(lambda: len(os.listdir("/proc/self/fd")) <= files + slack)  # noqa: PTH208


async def test_artefacts_are_taken_over_until_they_change(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """A strategy goes on, with all it knows, while its section and artefact are the same; when the folder changes, it
    is made anew."""
    folder = tmp_path / "artefact"
    shutil.copytree(ROOT / "config" / "artefacts" / "token-uncertainty", folder)
    models: dict[str, Any] = {"smollm2-135m": {}, "gemma3-270m": {}}
    cascade = {"stages": list(models), "artefact": str(folder)}
    strategies = {"first": {"cascade": cascade}}
    async with upstream.serving() as url:
        app = make_app(settings_for(url, models, strategies=strategies), {})
        async with listening(app):
            before = app.in_force.catalogue.strategies["first"]
            await reload(app, url, models, strategies=strategies, server={"max_calls": 9})
            assert app.in_force.catalogue.strategies["first"] is before
            annotate(folder, created="2030-01-01T00:00:00+00:00")
            await reload(app, url, models, strategies=strategies)
            assert app.in_force.catalogue.strategies["first"] is not before


def test_what_needs_a_restart() -> None:
    """What cannot change is kept and named; the rest changes; what makes no sense without it is refused."""
    boot = settings_for("http://a/v1", {"one": {}}, server={"port": 8000})
    wanted = settings_for(
        "http://a/v1", {"one": {}, "two": {}}, server={"port": 9000, "max_calls": 3}, ledger={"queue": 7}
    )
    settings, kept = effective(boot, wanted)
    assert kept == ("ledger", "server.port")
    assert (settings.server.port, settings.server.max_calls, settings.ledger) == (8000, 3, boot.ledger)
    assert list(settings.models) == ["one", "two"]


def test_engines_stay_as_they_were_loaded() -> None:
    """Engine models and fusions cannot be loaded, or loaded otherwise, by a reload; one that is gone is not asked."""
    engine = {"openai": None, "engine": {"weights": "smollm2-135m-instruct"}}
    other = {"openai": None, "engine": {"weights": "smollm2-135m-instruct", "max_running": 3}}
    boot = settings_for("http://a/v1", {"small": engine, "away": engine, "one": {}})
    wanted = settings_for("http://a/v1", {"small": other, "new": engine, "one": {}})
    settings, kept = effective(boot, wanted)
    assert kept == ("models.new.engine", "models.small.engine")
    assert list(settings.models) == ["one", "small"]
    assert settings.models["small"].engine == boot.models["small"].engine
    strategies = {"both": {"aggregate": {"members": ["new", "one"]}}}
    with pytest.raises(SettingsError, match=r"restart \(models\.new\.engine\)"):
        effective(
            boot,
            settings_for("http://a/v1", {"small": engine, "new": engine, "one": {}}, strategies=strategies),
        )


async def test_kept_answers_are_forgotten_with_who_gave_them(upstream: ScriptedUpstream) -> None:
    """Answers in memory stay while models and strategies are the same, and no longer."""
    cache = {"cache": {}}
    async with upstream.serving() as url, gateway(url, **cache) as (app, client):
        asked = []
        models: dict[str, Any] = {"one": {}, "two": {}}
        for changed, server in (({}, {}), ({}, {"max_calls": 9}), ({"context_length": 999}, {})):
            await reload(app, url, {**models, "two": changed}, server=server, **cache)
            body = chat("one", temperature=0)
            assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            asked.append(len(upstream.seen))
        assert asked == [1, 1, 2]


async def test_vectors_are_forgotten_with_their_embedder() -> None:
    """Answers in Redis outlive a reload; the vectors of another embedder, maybe of another size, are not compared."""
    cache = {"store": "redis", "semantic": {"embedder": "one"}}
    sections: dict[str, Any] = {
        "cache": cache,
        "redis": {"url": "redis://127.0.0.1:1"},
        "keys": {"pepper": "p" * 32},
    }
    app = make_app(settings_for("http://a/v1", {"one": {}, "two": {}}, **sections), {})
    before = app.in_force.caches
    await reload(app, "http://a/v1", {"one": {}, "two": {}}, **sections)
    assert app.in_force.caches is before
    await reload(
        app,
        "http://a/v1",
        {"one": {"openai": {"base_url": "http://b/v1", "model": "larger"}}, "two": {}},
        **sections,
    )
    after = app.in_force.caches
    assert before is not None
    assert before.semantic is not None
    assert after is not None
    assert after.semantic is not None
    assert after.store is before.store
    assert after.semantic.index is not before.semantic.index
