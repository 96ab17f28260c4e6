"""Reloading as an operator does it: real processes, a file that changes, a signal."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.scripted import Script, ScriptedUpstream
from tests.served import Served, Start


def url(served: Served, path: str) -> str:
    return f"http://127.0.0.1:{served.port}{path}"


async def names(client: httpx.AsyncClient, served: Served) -> list[str]:
    listed = (await client.get(url(served, "/v1/models"))).json()
    return [model["id"] for model in listed["data"]]


async def in_force(served: Served, before: str) -> dict[str, Any]:
    """What is told of the config that follows the one with the digest `before`."""
    async with asyncio.timeout(30):
        while (told := await served.config_told())["digest"] == before:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return told


async def test_sighup(start: Start, config: str, upstream: ScriptedUpstream) -> None:
    """SIGHUP brings a changed file into force in every worker while a stream runs on; what needs a restart is said;
    a bad file is refused, and counted; a worker that starts after that starts with the config in force."""
    served = await start(config + "\nserver: {watch_config: false}", workers=2)
    await served.ready()
    before = await served.config_told()
    upstream.default = Script(text="word " * 30, chunk_delay_s=0.05)
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "stream": True}
    async with (
        httpx.AsyncClient(verify=False, timeout=30) as client,
        client.stream("POST", url(served, "/v1/chat/completions"), json=body) as response,
    ):
        events = response.aiter_text()
        await anext(events)
        renamed = config.replace("echo:", "other:") + "\nserver: {watch_config: false, workers: 5}"
        served.config.write_text(renamed)
        served.process.send_signal(signal.SIGHUP)
        after = await in_force(served, before["digest"])
        await served.logs("needs a restart: server.workers")
        assert after["restart_needed"] == ["server.workers"]
        for _ in range(6):  # each over a connection of its own, so that either worker may take it
            async with httpx.AsyncClient(verify=False, timeout=30) as fresh:
                assert await names(fresh, served) == ["other"]
        rest = "".join([event async for event in events])
        assert rest.endswith("data: [DONE]\n\n")

        served.config.write_text("models: {")
        served.process.send_signal(signal.SIGHUP)
        await served.logs("the new config is refused, and the old one stays in force")
        told = await served.config_told()
        assert told["digest"] == after["digest"]
        assert told["refused_at"]
        metrics = (await served.admin.get("/metrics")).text
        assert 'chorus_config_reloads_total{outcome="applied"} 1.0' in metrics
        assert 'chorus_config_reloads_total{outcome="refused"} 1.0' in metrics
        assert "chorus_config_restart_needed 1.0" in metrics
        (line,) = (line for line in metrics.splitlines() if line.startswith("chorus_config_hash "))
        assert float(line.split()[1]) == int(after["digest"][:12], 16)

        for name in ("worker-0", "worker-1"):
            os.kill((await served.components())[name]["pid"], signal.SIGKILL)
        async with asyncio.timeout(30):
            while not all(  # noqa: ASYNC110
                child["restarts"] == 1 and child["state"] == "ready"
                for child in (await served.components()).values()
            ):
                await asyncio.sleep(0.1)
        async with httpx.AsyncClient(verify=False, timeout=30) as fresh:
            assert await names(fresh, served) == ["other"]


@pytest.fixture
def config_map(tmp_path: Path) -> Path:
    """A folder as Kubernetes mounts a ConfigMap: files are links through `..data`, which is a link to a version."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    (folder / "config.yaml").symlink_to("..data/config.yaml")
    return folder


def mount(folder: Path, version: str, text: str) -> None:
    """Show another version, as kubelet does: written beside, then the link is moved."""
    (folder / version).mkdir()
    (folder / version / "config.yaml").write_text(text)
    (folder / "..new").symlink_to(version)
    (folder / "..new").rename(folder / "..data")


async def test_config_map(start: Start, config: str, config_map: Path) -> None:
    """A moved link is noticed without a signal; a bad version keeps the old one; a good one after it comes in."""
    mount(config_map, "..v1", config)
    served = await start(config, at=config_map / "config.yaml")
    await served.ready()
    before = await served.config_told()
    mount(config_map, "..v2", config.replace("echo", "second"))
    after = await in_force(served, before["digest"])
    async with httpx.AsyncClient(verify=False, timeout=30) as client:
        assert await names(client, served) == ["second"]
        mount(config_map, "..v3", config.replace("models", "modells"))
        await served.logs("did you mean 'models'?")
        assert await names(client, served) == ["second"]
        mount(config_map, "..v4", config.replace("echo", "fourth"))
        await in_force(served, after["digest"])
        assert await names(client, served) == ["fourth"]


@pytest.mark.requires("weights:all-minilm-l6-v2-int8")
async def test_embedder_is_replaced(start: Start, config: str) -> None:
    """Other embedding models get a process of their own before the old one ends; requests fail in no moment."""
    embedder = "{embedder: {weights: all-minilm-l6-v2-int8}}"
    served = await start(f"{config[:-1]}, mini: {embedder}}}")
    await served.ready()
    before = await served.config_told()
    pid = (await served.components())["embedder"]["pid"]
    over = asyncio.Event()

    async def embed() -> None:
        async with httpx.AsyncClient(verify=False, timeout=30) as client:
            while not over.is_set():
                body = {"model": "mini", "input": os.urandom(8).hex()}
                answer = await client.post(url(served, "/v1/embeddings"), json=body)
                assert answer.status_code == 200, answer.text

    load = asyncio.create_task(embed())
    served.config.write_text(f"{config[:-1]}, mini: {embedder}, small: {embedder}}}")
    await in_force(served, before["digest"])
    async with httpx.AsyncClient(verify=False, timeout=30) as client:
        answer = await client.post(url(served, "/v1/embeddings"), json={"model": "small", "input": "x"})
        assert answer.status_code == 200
    async with asyncio.timeout(30):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.1)
    over.set()
    await load
    assert (await served.components())["embedder"]["state"] == "ready"
