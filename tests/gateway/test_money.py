"""Budgets hold to the cent: real gateways, hundreds of requests at once, one budget.

Each client asks until it is refused. What the upstream billed, what the ledger says and what the budget allowed are
then compared.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from backends.scripted import Script, ScriptedUpstream
from gateway.keys.office import Order
from gateway.tenancy import make_office, make_shared
from protocol.settings import load_settings

ROOT = Path(__file__).parents[2]
SERVE = """
import sys
from pathlib import Path
from gateway.supervisor import serve
from protocol.settings import load_settings
config, port, admin_port, workers = Path(sys.argv[1]), *map(int, sys.argv[2:])
sys.exit(serve(load_settings(config), config, port=port, admin_port=admin_port, workers=workers))
"""
BILLED_NANO = 7 * 1_000 + 8 * 2_000
"""What the scripted upstream's usual answer costs."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Running:
    """A gateway of real processes, with the config it runs on."""

    url: str
    admin: str
    config: Path
    process: asyncio.subprocess.Process

    @property
    def ledger(self) -> Path:
        return self.config.parent / "state" / "ledger.db"

    def billed(self) -> tuple[int, int, int]:
        """Answered requests, and the nanodollars of requests and of calls, by the ledger."""
        with sqlite3.connect(self.ledger) as ledger:
            (count,) = ledger.execute("SELECT count(*) FROM requests WHERE outcome = 'ok'").fetchone()
            (requests,) = ledger.execute("SELECT coalesce(sum(cost_nano), 0) FROM requests").fetchone()
            (calls,) = ledger.execute("SELECT coalesce(sum(cost_nano), 0) FROM calls").fetchone()
        ledger.close()
        return count, requests, calls


Start = Callable[..., Awaitable[Running]]


@pytest.fixture
async def start(
    tmp_path: Path, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Starts gateways in front of the scripted upstream, each with a state folder of its own."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    async with AsyncExitStack() as stack:
        base = await stack.enter_async_context(upstream.serving())

        async def begin(name: str, *, workers: int = 1, **sections: Any) -> Running:
            folder = tmp_path / name
            folder.mkdir()
            config = folder / "config.yaml"
            price = {"input_usd_per_token": 1e-6, "output_usd_per_token": 2e-6}
            told = {
                "models": {"one": {"openai": {"base_url": base, "model": "x"}, "price": price}},
                "keys": {"required": True, "pepper": "pepper-of-the-test"},
                "state": {"folder": "state"},
                **sections,
            }
            config.write_text(yaml.safe_dump(told))
            port, admin = free_port(), free_port()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", SERVE, str(config), str(port), str(admin), str(workers)), stdout=PIPE
            )

            async def end() -> None:
                if process.returncode is None:
                    process.terminate()
                await process.communicate()

            stack.push_async_callback(end)
            assert process.stdout is not None
            async with asyncio.timeout(60):
                while b"is ready" not in (line := await process.stdout.readline()):
                    assert line, "it ended before it was ready"
            return Running(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}", config, process)

        yield begin


async def make_key(gateway: Running, **limits: Any) -> str:
    """A key made as an administrator makes one, while the gateway runs."""
    settings = load_settings(gateway.config)
    shared = make_shared(settings)
    order = Order.parse({"alias": "test", "limits": limits})
    _, secret = await make_office(settings, shared).create(order, "test")
    await shared.store.close()
    await asyncio.sleep(0.6)  # until every worker has looked
    return secret


@dataclass
class Spending:
    """What clients saw: answers, refusals by code, and the answers there were when the first one was refused."""

    answered: int = 0
    answered_at_first_refusal: int | None = None
    refused: int = 0


async def spend(gateways: list[Running], secret: str, clients: int) -> Spending:
    """`clients` at each gateway ask again and again until they are refused."""
    told = Spending()
    body = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16}
    headers = {"authorization": f"Bearer {secret}"}

    async def client(session: aiohttp.ClientSession, url: str) -> None:
        while True:
            async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as response:
                answer = await response.json()
                if response.status == 200:
                    told.answered += 1
                    continue
                assert (response.status, answer["error"]["code"]) == (429, "insufficient_quota"), answer
                assert response.headers["x-should-retry"] == "false"
                told.refused += 1
                if told.answered_at_first_refusal is None:
                    told.answered_at_first_refusal = told.answered
                return

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session, gateway.url) for gateway in gateways for _ in range(clients)))
    return told


async def check(
    told: Spending, gateways: list[Running], upstream: ScriptedUpstream, budget_nano: int
) -> None:
    """Not a cent too much, nearly all of it before the first refusal, and all books agree."""
    billed = len(upstream.seen) * BILLED_NANO
    assert told.answered == len(upstream.seen)
    assert billed <= budget_nano
    assert told.answered_at_first_refusal is not None
    assert told.answered_at_first_refusal * BILLED_NANO >= 0.95 * budget_nano
    for gateway in gateways:
        gateway.process.terminate()
        await gateway.process.wait()
    books = [gateway.billed() for gateway in gateways]
    assert sum(count for count, _, _ in books) == told.answered
    assert sum(nano for _, nano, _ in books) == billed
    assert sum(nano for _, _, nano in books) == billed


async def test_two_workers_on_sqlite(start: Start, upstream: ScriptedUpstream) -> None:
    """200 clients on two workers that share a file: overshoot 0, and the budget is used."""
    upstream.default = Script(delay_s=0.01)
    gateway = await start("gateway", workers=2)
    secret = await make_key(gateway, budgets_usd={"day": 0.02})
    told = await spend([gateway], secret, 200)
    await check(told, [gateway], upstream, 20_000_000)


@pytest.mark.requires("redis-server")
async def test_two_replicas_on_redis(start: Start, upstream: ScriptedUpstream, redis: Any) -> None:
    """100 clients on each of two gateways that share a Redis: the same."""
    upstream.default = Script(delay_s=0.01)
    gateways = [await start(name, redis={"url": redis.url}) for name in ("first", "second")]
    secret = await make_key(gateways[0], budgets_usd={"total": 0.02})
    told = await spend(gateways, secret, 100)
    await check(told, gateways, upstream, 20_000_000)


async def test_a_killed_worker_leaks_nothing(start: Start, upstream: ScriptedUpstream) -> None:
    """What a killed worker had reserved is free again when its lease ends, to the last cent."""
    upstream.default = Script(delay_s=60)
    gateway = await start("gateway", workers=1)
    # Room for one request under way, not for two.
    secret = await make_key(gateway, budgets_usd={"total": 0.0002})
    body = {"model": "one", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 16}
    headers = {"authorization": f"Bearer {secret}"}
    async with aiohttp.ClientSession() as session:

        async def ask() -> tuple[int, str | None]:
            async with session.post(
                f"{gateway.url}/v1/chat/completions", json=body, headers=headers
            ) as response:
                return response.status, (await response.json()).get("error", {}).get("code")

        lost = asyncio.create_task(ask())
        async with asyncio.timeout(10):
            while not upstream.seen:  # noqa: ASYNC110 - another process asks it
                await asyncio.sleep(0.01)
        assert await ask() == (429, "rate_limit_exceeded")
        async with session.get(f"{gateway.admin}/status") as response:
            pid = (await response.json())["components"]["worker-0"]["pid"]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(aiohttp.ClientError):
            await lost
        upstream.default = Script()
        async with asyncio.timeout(30):
            while True:
                try:
                    if (told := await ask()) == (200, None):
                        break
                    assert told == (429, "rate_limit_exceeded")
                except aiohttp.ClientError:
                    await asyncio.sleep(0.1)  # the worker is being started again
        for _ in range(3):
            assert await ask() == (200, None)
