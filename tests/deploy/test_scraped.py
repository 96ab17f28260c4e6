"""Prometheus scrapes a real run, and every panel of every dashboard has something to show."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from aiohttp import web

from backends.scripted import Script, ScriptedUpstream
from deploy.grafana.generate import DASHBOARDS, FOLDER
from engines.metrics import CONTENT_TYPE, EngineNumbers, Steps, exposition

ROOT = Path(__file__).parents[2]
SERVE = "from gateway.cli import main; main()"
NAMES = ("smollm2-135m", "gemma3-270m", "duet", "auto", "cascade", "vote", "no such model")
ROUNDS = 12
WINDOWS = {"$__rate_interval": "20s", "$__range": "30s"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@asynccontextmanager
async def running(*argv: str, **environ: str) -> AsyncIterator[None]:
    """A process that ends with the block."""
    process = await asyncio.create_subprocess_exec(*argv, cwd=ROOT, env={**os.environ, **environ})
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def answers(client: httpx.AsyncClient, url: str) -> None:
    """Wait until `url` answers 200."""
    async with asyncio.timeout(30):
        while True:
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)


async def ask(client: httpx.AsyncClient, base: str, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "What is the capital of Peru?"}]}
    await client.post(f"{base}/v1/chat/completions", json=body)


async def asked(client: httpx.AsyncClient, prometheus: str, expr: str) -> Sequence[float]:
    """The values that the expression has now."""
    for variable, window in WINDOWS.items():
        expr = expr.replace(variable, window)
    told: dict[str, Any] = (await client.get(f"{prometheus}/api/v1/query", params={"query": expr})).json()
    assert told["status"] == "success", told
    return [value for row in told["data"]["result"] if not math.isnan(value := float(row["value"][1]))]


@asynccontextmanager
async def engine_page() -> AsyncIterator[str]:
    """An engine host's page, whose loop goes on with each look at it; gives its address."""
    steps = Steps()

    async def metrics(request: web.Request) -> web.Response:
        steps.steps += 20
        steps.step_s += 0.9
        steps.forward_s["smollm2-135m"] += 0.5
        steps.decide_s["duet"] += 0.1
        steps.begun["duet"] += 1
        engines = {"smollm2-135m": EngineNumbers(2, 1, 0.4, 1 << 29)}
        return web.Response(text=exposition(engines, ["duet"], steps), headers={"content-type": CONTENT_TYPE})

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics)])
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.requires("prometheus", "weights:all-minilm-l6-v2-int8")
async def test_every_panel_has_data(tmp_path: Path) -> None:
    """The shipped gateway config, with two workers and an engine host that is scripted, serves every strategy
    and fails some requests. Each query of each panel then returns a number, and each rule is evaluated."""
    port, admin, scraper = free_port(), free_port(), free_port()
    gateway, prometheus = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{scraper}"
    scraping = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(FOLDER.parent / "rules.yaml")],
    }
    config = tmp_path / "prometheus.yml"
    async with AsyncExitStack() as stack:
        targets = [f"127.0.0.1:{admin}", await stack.enter_async_context(engine_page())]
        jobs = [{"job_name": "chorus", "static_configs": [{"targets": targets}]}]
        config.write_text(yaml.safe_dump({**scraping, "scrape_configs": jobs}))
        upstream = ScriptedUpstream({"duet": Script(status=500)})
        url = await stack.enter_async_context(upstream.serving())
        client = await stack.enter_async_context(httpx.AsyncClient(verify=False, timeout=30, trust_env=False))
        serve = (
            "serve",
            "config/gateway.yaml",
            "--workers",
            "2",
            "--port",
            str(port),
            "--admin-port",
            str(admin),
        )
        await stack.enter_async_context(
            running(
                sys.executable,
                "-c",
                SERVE,
                *serve,
                CHORUS_ENGINES_URL=url,
                TMPDIR=str(tmp_path),
                PYTHONPATH=".",
            )
        )
        await answers(client, f"http://127.0.0.1:{admin}/readyz")
        await stack.enter_async_context(
            running(
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{scraper}",
                "--log.level=error",
            )
        )
        await answers(client, f"{prometheus}/-/ready")
        async with asyncio.timeout(30):
            # It looks for its targets every five seconds only.
            while not await asked(client, prometheus, "up"):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
        for _ in range(ROUNDS):
            await asyncio.gather(*(ask(client, gateway, name) for name in NAMES))
            await asyncio.sleep(0.5)
        silent = [
            f"{dashboard.uid}: {panel.title} ({legend})"
            for dashboard in DASHBOARDS
            for panel in dashboard.panels
            for legend, expr in panel.queries.items()
            if not await asked(client, prometheus, expr)
        ]
        assert silent == []
        groups = (await client.get(f"{prometheus}/api/v1/rules")).json()["data"]["groups"]
        assert {
            rule["health"] for group in groups for rule in group["rules"] if rule["type"] == "alerting"
        } == {"ok"}
