"""A small fleet: three gateways over one Redis, two engine-like upstreams, a balancer in front. Each is replaced while
clients ask, and no client notices."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from backends.scripted import Script, ScriptedUpstream
from gateway.keys.office import Order
from gateway.tenancy import make_office, make_shared
from protocol.settings import load_settings
from tests.served import Served, Start, free_port

GATEWAYS = 3
CLIENTS = 4


@asynccontextmanager
async def balancer(ports: Sequence[int]) -> AsyncIterator[str]:
    """TCP in turn to those whose `/readyz` says 200, as it was when last asked; who refuses is passed over."""
    ready: set[int] = set()
    turn = itertools.count()
    open_pipes: set[asyncio.Task[None]] = set()

    async def watch(session: aiohttp.ClientSession, port: int) -> None:
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as told:
                    (ready.add if told.status == 200 else ready.discard)(port)
            except aiohttp.ClientError:
                ready.discard(port)
            await asyncio.sleep(0.05)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while block := await reader.read(65536):
                writer.write(block)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()

    async def balance(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_pipes.add(task)
        task.add_done_callback(open_pipes.discard)
        for _ in range(1000):
            choice = sorted(ready)
            try:
                if not choice:
                    raise ConnectionRefusedError
                inner, out = await asyncio.open_connection("127.0.0.1", choice[next(turn) % len(choice)])
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            await asyncio.gather(pipe(reader, out), pipe(inner, writer))
            out.close()
            break
        writer.close()

    server = await asyncio.start_server(balance, "127.0.0.1", 0)
    async with aiohttp.ClientSession() as session:
        watches = [asyncio.create_task(watch(session, port)) for port in ports]
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in (*watches, *open_pipes):
                task.cancel()
            await asyncio.gather(*watches, *open_pipes, return_exceptions=True)


class Traffic:
    """What clients saw."""

    def __init__(self, url: str, secret: str) -> None:
        self.url, self.secret = url, secret
        self.answered = 0
        self.failed: list[Any] = []
        self.over = asyncio.Event()

    async def client(self, session: aiohttp.ClientSession, *, stream: bool) -> None:
        body = {
            "model": "one",
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 16,
            "stream": stream,
        }
        headers = {"authorization": f"Bearer {self.secret}", "connection": "close"}
        while not self.over.is_set():
            try:
                async with session.post(
                    f"{self.url}/v1/chat/completions", json=body, headers=headers
                ) as response:
                    text = await response.text()
                whole = text.endswith("data: [DONE]\n\n") if stream else '"finish_reason"' in text
                if response.status == 200 and whole and '"error"' not in text:
                    self.answered += 1
                elif response.status == 503 and '"state_unavailable"' in text:
                    # A busy machine's Redis took more than 50 ms; SDKs ask again.
                    await asyncio.sleep(0.1)
                else:
                    self.failed.append((response.status, text[-300:]))
            except (aiohttp.ClientError, TimeoutError) as error:
                self.failed.append(repr(error))
            await asyncio.sleep(0.05)

    async def more(self, count: int) -> None:
        """Wait for so many answers more."""
        until = self.answered + count
        async with asyncio.timeout(30):
            while self.answered < until:  # noqa: ASYNC110 - clients are tasks of their own
                await asyncio.sleep(0.02)


@pytest.mark.requires("redis-server")
async def test_each_is_replaced_under_traffic(start: Start, redis: Any, tmp_path: Path) -> None:
    """Two upstreams and three gateways are ended with SIGTERM and started again, one after the other: no request
    fails, streamed or not (but for a Redis that this machine kept waiting, which is asked again), and the ledgers agree
    with what was answered."""
    script = Script(text="word " * 10, chunk_delay_s=0.005)
    upstreams = [ScriptedUpstream(default=script) for _ in range(2)]
    places = [free_port() for _ in upstreams]
    config = yaml.safe_dump(
        {
            "models": {
                "one": {
                    "openai": [{"base_url": f"http://127.0.0.1:{port}/v1", "model": "x"} for port in places],
                    "price": {"input_usd_per_token": 1e-6, "output_usd_per_token": 2e-6},
                }
            },
            "redis": {"url": redis.url},
            "keys": {"required": True, "pepper": "pepper-of-the-test"},
            "limits": {"everyone": {"rpm": 1_000_000, "budgets_usd": {"total": 100}}},
            "resilience": {"cooldown_s": 0.5},
            "server": {"unready_s": 0.5},
            "state": {"folder": "state"},
        }
    )
    folders = [tmp_path / f"gateway-{number}" for number in range(GATEWAYS)]
    ports = [free_port() for _ in folders]
    async with AsyncExitStack() as stack:
        serving = [
            await stack.enter_async_context(AsyncExitStack()) for _ in upstreams
        ]  # each can be ended by itself

        async def begin(number: int) -> None:
            await serving[number].enter_async_context(
                upstreams[number].serving(port=places[number], drain_s=10)
            )

        async def gateway(number: int) -> Served:
            folders[number].mkdir(exist_ok=True)
            served = await start(config, port=ports[number], at=folders[number] / "config.yaml")
            await served.ready()
            return served

        for number in range(len(upstreams)):
            await begin(number)
        gateways = list(await asyncio.gather(*(gateway(number) for number in range(GATEWAYS))))
        settings = load_settings(gateways[0].config)
        shared = make_shared(settings)
        order = Order.parse({"alias": "test", "limits": {"budgets_usd": {"day": 50}}})
        _, secret = await make_office(settings, shared).create(order, "test")
        await shared.store.close()
        url = await stack.enter_async_context(balancer(ports))
        traffic = Traffic(url, secret)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        clients = [asyncio.create_task(traffic.client(session, stream=bool(i % 2))) for i in range(CLIENTS)]
        await traffic.more(15)
        for number in range(len(upstreams)):
            await serving[number].aclose()
            await traffic.more(15)
            await begin(number)
            await asyncio.sleep(1.0)  # as old as the metrics may be
            for served in gateways:
                await _trusting(served)
        for number, served in enumerate(gateways):
            served.process.terminate()
            assert await served.process.wait() == 0
            await traffic.more(10)
            gateways[number] = await gateway(number)
            await traffic.more(10)
        traffic.over.set()
        await asyncio.gather(*clients)
        for served in gateways:
            served.process.terminate()
            assert await served.process.wait() == 0
    assert traffic.failed == []
    assert all(len(upstream.seen) > 10 for upstream in upstreams)
    books = [_answered(folder / "state" / "ledger.db") for folder in folders]
    assert sum(books) == traffic.answered
    assert min(books) > 0


async def _trusting(served: Served) -> None:
    """Wait until the gateway leaves no deployment alone any more: who rolls upstreams has to."""
    async with asyncio.timeout(20):
        while True:
            metrics = (await served.admin.get("/metrics")).text
            told = [line for line in metrics.splitlines() if line.startswith("chorus_deployment_open{")]
            if len(told) == 2 and all(line.endswith(" 0.0") for line in told):
                return
            await asyncio.sleep(0.1)


def _answered(ledger: Path) -> int:
    with closing(sqlite3.connect(ledger)) as connection:
        count: int = connection.execute("SELECT count(*) FROM requests WHERE outcome = 'ok'").fetchone()[0]
        return count
