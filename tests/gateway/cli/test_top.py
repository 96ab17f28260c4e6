"""`chorus top`: numbers from two looks at metrics, and a view of a real gateway."""

from __future__ import annotations

import asyncio
import io
import math
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from backends.scripted import Script, ScriptedUpstream
from gateway.cli import main
from gateway.cli.gauges import Between, Look
from gateway.cli.top import _views
from gateway.telemetry import Telemetry
from protocol.run import Call, Trace
from protocol.usage import Usage
from tests.gateway.conftest import start
from tests.served import Start

__all__ = ["start"]


def answered(telemetry: Telemetry, took_s: float, outcome: str = "ok") -> None:
    call = Call("one", Usage(10, 5), 0.001, took_s, attempts=2)
    telemetry.started()
    telemetry.finished("auto", "auto", outcome, Trace(calls=[call]), began_s=took_s / 2, took_s=took_s)


def test_between_two_looks() -> None:
    """Rates, failures, quantiles within buckets and money are of the time between; a restart counts from 0."""
    telemetry = Telemetry(["auto"])
    answered(telemetry, 0.5)
    before = Look.parse(telemetry.exposition().decode())
    for _ in range(9):
        answered(telemetry, 0.2)
    answered(telemetry, 20.0, "upstream_busy")
    after = Look.parse(telemetry.exposition().decode())
    told = Between(before, after, 2.0)
    (name,) = told.names()
    assert (name.name, name.requests, name.failed) == ("auto", 5.0, pytest.approx(0.1))
    assert 0.1 <= name.p50_s <= 0.25
    assert name.p95_s > 10
    assert name.usd_h == pytest.approx(10 * 0.001 / 2 * 3600)
    (model,) = told.models()
    assert (model.calls, model.retries, model.read, model.written) == (5.0, 5.0, 50.0, 25.0)
    assert model.spent_usd == pytest.approx(0.011)
    (idle,) = Between(after, after, 1.0).names()
    assert idle.requests == 0
    assert math.isnan(idle.p95_s)
    (anew,) = Between(after, before, 1.0).names()
    assert anew.requests == 1


async def test_a_real_gateway(start: Start, config: str, upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """`--once` as a process without a terminal: what was asked, what it cost by key, and a breaker that opened."""
    upstream.default = Script(status=500)
    served = await start(
        config.replace(
            ", model: x}", ", model: x}, price: {input_usd_per_token: 1.0e-6, output_usd_per_token: 1.0e-6}"
        )
        + "\nstate: {folder: state}\nresilience: {cooldown_s: 60, retries: 0}"
    )
    await served.ready()
    base = str(served.admin.base_url)
    key = (served.config.parent / "state" / "admin.key").read_text().strip()
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    with httpx.Client(base_url=base, headers={"authorization": f"Bearer {key}"}, trust_env=False) as admin:
        views = _views(admin, 0.0)
        next(views)
        async with httpx.AsyncClient(verify=False, base_url=f"http://127.0.0.1:{served.port}") as client:
            upstream.default = Script()
            for _ in range(4):
                assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
            upstream.default = Script(status=500)
            for _ in range(6):
                assert (await client.post("/v1/chat/completions", json=body)).status_code >= 500
        async with asyncio.timeout(10):
            while not _settled(admin):  # noqa: ASYNC110 - numbers and rows are handed on now and then
                await asyncio.sleep(0.1)
        (asked,) = _lines(next(views), "%")
    assert asked.split()[2] == "60.0%"
    command = (
        "-c",
        "from gateway.cli import main; main()",
        "top",
        "--url",
        base,
        "--config",
        str(served.config),
    )
    environ = {**os.environ, "COLUMNS": "140", "TERM": "dumb"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, "--once", "--every", "0.3", stdout=PIPE, env=environ
    )
    text = (await process.communicate())[0].decode()
    assert process.returncode == 0
    assert " ready " in text
    (model,) = _lines(text, "open")
    assert "1 open" in model
    assert "0.000060" in model  # four answers of 7 and 8 tokens
    (spender,) = _lines(text.partition("key, last day")[2], "0.000060", "")
    assert spender.split()[1] == "10"
    assert "\x1b[" not in text


def _settled(admin: httpx.Client) -> bool:
    """Whether metrics and ledger have all ten requests, and the breaker is known to be open."""
    metrics = Look.parse(admin.get("/metrics").text)
    told = admin.get("/admin/usage", params={"by": "key", "days": 1}).json()["data"]
    counted = (metrics.one("chorus_requests_total"), metrics.one("chorus_deployment_open"))
    return counted == (10, 1) and bool(told) and told[0]["requests"] == 10


def _lines(view: Any, holding: str, first: str = "echo") -> list[str]:
    """The lines of a view in which `holding` stands, and that begin with a name."""
    if not isinstance(view, str):
        console = Console(width=140, file=io.StringIO())
        console.print(view)
        view = console.file.getvalue()  # type: ignore[attr-defined]
    return [line for line in view.splitlines() if holding in line and line.strip().startswith(first)]


def test_no_gateway(capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody listens it says so in one line."""
    with pytest.raises(SystemExit) as ended:
        main(["top", "--url", "http://127.0.0.1:9", "--once"])
    assert ended.value.code == 1
    assert "No gateway answers" in capsys.readouterr().err
