"""The gateway's own faults: the store of limits and budgets away or slow, the clock set, the disk full."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from shutil import rmtree
from signal import SIGCONT, SIGSTOP
from tempfile import mkdtemp
from typing import Any

import httpx
import pytest
import yaml

from backends.scripted import Script, ScriptedUpstream
from gateway.app import make_app
from gateway.ledger import sqlite_ledger
from protocol.settings import parse_settings
from protocol.usage import Usage
from tests.listening import listening
from tests.redis_server import RedisServer

PRICE = {"input_usd_per_token": 0, "output_usd_per_token": 1e-3}
SPENT = Usage(prompt_tokens=4, completion_tokens=6)
"""Each answer costs 0.006 US dollars, which is also the most it may cost: a budget of ten is spent by ten."""
TEN_USD = 0.06

Serve = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def upstream() -> ScriptedUpstream:
    return ScriptedUpstream(default=Script(text="good", usage=SPENT))


@asynccontextmanager
async def served(upstream: ScriptedUpstream, **sections: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A gateway with two models: `free` has limits of rates and calls at once, `paid` also a budget for ten answers."""
    async with upstream.serving() as url:
        model = {"openai": {"base_url": url, "model": "x"}, "price": PRICE, "max_output_tokens": 6}
        limits = {
            "everyone": {"rpm": 100_000, "concurrent": 50},
            "models": {"paid": {"budgets_usd": {"total": TEN_USD}}},
            "patience_s": 0.2,
        }
        told = {"models": {"free": model, "paid": model}, "limits": limits, **sections}
        app = make_app(parse_settings(yaml.safe_dump(told)), {})
        async with (
            listening(app) as base,
            httpx.AsyncClient(base_url=base, timeout=30, verify=False) as client,
        ):
            yield client


async def ask(client: httpx.AsyncClient, model: str) -> tuple[int, str | None]:
    """Status and error code of one request."""
    body = {"model": model, "messages": [{"role": "user", "content": "x"}]}
    answer = await client.post("/v1/chat/completions", json=body)
    error = answer.json().get("error", {})
    if answer.status_code in (429, 503):
        assert "retry-after-ms" in answer.headers or answer.headers.get("x-should-retry") == "false"
    return answer.status_code, error.get("code")


async def degraded(client: httpx.AsyncClient) -> list[str]:
    """What `/readyz` says does not work; it must stay ready."""
    told = await client.get("/readyz")
    assert (told.status_code, told.json()["status"]) == (200, "ready")
    missing: list[str] = told.json()["degraded"]
    return missing


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it holds."""
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - what it waits for is another process's affair
            await asyncio.sleep(0.05)


async def goes_on_without_store(client: httpx.AsyncClient) -> None:
    """With the store away: what has no budget is answered, what has one is not admitted, and it is declared."""

    async def refused() -> bool:
        told = await ask(client, "paid")
        assert told in ((200, None), (503, "state_unavailable"), (429, "rate_limit_exceeded")), told
        return told == (503, "state_unavailable")

    await eventually(refused)
    told = await asyncio.gather(*(ask(client, "free") for _ in range(40)))
    assert set(told) == {(200, None)}

    async def declared() -> bool:
        return "shared state" in await degraded(client)

    await eventually(declared)
    assert 'chorus_degraded{component="shared state"} 1.0' in (await _gauge(client, "1.0"))


async def comes_back(client: httpx.AsyncClient) -> None:
    """With the store back, so are budgets, to the cent."""

    async def admitted() -> bool:
        return (await ask(client, "paid")) == (200, None)

    await eventually(admitted)

    async def whole() -> bool:
        return not await degraded(client)

    await eventually(whole)


async def spend_all(client: httpx.AsyncClient) -> None:
    """Spend the rest of the budget: in all ten answers of `paid` were given, and no more ever are."""

    async def spent() -> bool:
        return (await ask(client, "paid")) == (429, "insufficient_quota")

    await eventually(spent)


async def _gauge(client: httpx.AsyncClient, value: str) -> str:
    """The metrics, once the gauge has that value."""

    async def shown() -> bool:
        return f'chorus_degraded{{component="shared state"}} {value}' in (await client.get("/metrics")).text

    await eventually(shown)
    return (await client.get("/metrics")).text


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A Redis server of the test's own."""
    server = RedisServer(Path(mkdtemp(prefix="chorus-redis-")))  # a socket's path must be short
    await server.start()
    yield server
    await server.stop()
    rmtree(server.folder)


@pytest.mark.requires("redis-server")
async def test_redis_killed(upstream: ScriptedUpstream, redis: RedisServer) -> None:
    """Redis is killed: requests without a budget are answered, those with one get 503 `state_unavailable`; `/readyz`
    stays ready and names it; a new Redis that knows nothing is used again, and what was spent before still counts."""
    async with served(upstream, redis={"url": redis.url}, keys={"pepper": "x"}) as client:
        for _ in range(6):
            assert await ask(client, "paid") == (200, None)
        assert redis.process is not None
        redis.process.kill()
        await redis.process.wait()
        await goes_on_without_store(client)
        (redis.folder / "redis.sock").unlink(missing_ok=True)
        await redis.start()
        # The worker reports what it has spent in all, so the new store learns of the six and more.
        await comes_back(client)
        await spend_all(client)
        answered = await _answers(client, "paid")
        assert answered <= 10, f"{answered} answers of a budget for ten"


@pytest.mark.requires("redis-server")
async def test_redis_paused(upstream: ScriptedUpstream, redis: RedisServer) -> None:
    """Redis hangs (SIGSTOP): the same, no request waits for it longer than its bound; afterwards the whole budget is
    spent, to the cent."""
    async with served(upstream, redis={"url": redis.url}, keys={"pepper": "x"}) as client:
        assert await ask(client, "paid") == (200, None)
        assert redis.process is not None
        redis.process.send_signal(SIGSTOP)
        await goes_on_without_store(client)
        redis.process.send_signal(SIGCONT)
        await comes_back(client)
        await spend_all(client)
        assert await _answers(client, "paid") == 10


@pytest.mark.requires("redis-server")
async def test_redis_slow(upstream: ScriptedUpstream, redis: RedisServer) -> None:
    """Redis is slow (a delaying proxy): 5 ms are borne, half a second is as good as away, and recovery is noticed."""
    async with (
        delayed(redis) as proxy,
        served(upstream, redis={"url": proxy.url}, keys={"pepper": "x"}) as client,
    ):
        proxy.delay_s = 0.005
        assert await ask(client, "paid") == (200, None)
        assert await ask(client, "free") == (200, None)
        proxy.delay_s = 0.5
        await goes_on_without_store(client)
        proxy.delay_s = 0.0
        await comes_back(client)
        await spend_all(client)
        assert await _answers(client, "paid") == 10


async def _answers(client: httpx.AsyncClient, model: str) -> int:
    """How many requests for a model were answered, by the metrics."""
    line = f'chorus_requests_total{{outcome="ok",requested_model="{model}",strategy="direct"}} '
    (found,) = [told for told in (await client.get("/metrics")).text.splitlines() if told.startswith(line)]
    return int(float(found.removeprefix(line)))


class Delayed:
    """A TCP proxy on loopback in front of a Redis; each way of what passes takes `delay_s`."""

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self.url = f"redis://127.0.0.1:{port}/0"

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay_s)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def delayed(redis: RedisServer) -> AsyncIterator[Delayed]:
    """A proxy in front of `redis`."""
    tasks = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection(str(redis.folder / "redis.sock"))
        for source, sink in ((reader, back), (there, writer)):
            tasks.add(asyncio.create_task(proxy.pass_on(source, sink)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Delayed(server.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_clock_jumps(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is set five hours forward, nine back and to the year 2000: rates, places, budgets and leases go on as
    if nothing had happened."""
    real, began = time.time, time.monotonic()
    limits = {
        "everyone": {"rpm": 30, "concurrent": 2},
        "models": {"paid": {"budgets_usd": {"total": TEN_USD}}},
        "patience_s": 0.2,
    }
    async with served(upstream, limits=limits, state={"folder": str(tmp_path / "kept")}) as client:
        for jump_s in (0.0, 5 * 3600.0, -9 * 3600.0, 946_684_800.0 - real()):
            monkeypatch.setattr("time.time", lambda jump_s=jump_s: real() + jump_s)
            told = await asyncio.gather(*(ask(client, "paid") for _ in range(2)))
            assert told == [(200, None)] * 2
            # Longer than a pass over the leases, and than idle money takes to come back.
            await asyncio.sleep(0.5)
        await spend_all(client)
        assert await _answers(client, "paid") == 10

        async def rates() -> bool:
            return await ask(client, "free") == (429, "rate_limit_exceeded")

        await eventually(rates)  # a bucket that a jump had filled anew would not run dry
        most = 30 + (time.monotonic() - began) * 30 / 60 + 1
        assert len(upstream.seen) <= most, "more than a minute's allowance, and what fills it meanwhile"
        assert not await degraded(client)


async def test_disk_full(upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger's file cannot grow (SQLite says that the disk is full): requests are answered, `/readyz` names the
    ledger, what its queue does not hold is dropped and counted; with room again the rest is written."""
    connect, connections = sqlite_ledger.connect, list[sqlite3.Connection]()

    def small(path: Path, migrations: Any) -> sqlite3.Connection:
        connection = connect(path, migrations)
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages + 6}")
        connections.append(connection)
        return connection

    monkeypatch.setattr(sqlite_ledger, "connect", small)
    state = {"folder": str(tmp_path / "kept")}
    async with served(upstream, limits={}, state=state, ledger={"queue": 40}) as client:
        asked = 0

        async def full() -> bool:
            nonlocal asked
            told = await asyncio.gather(*(ask(client, "free") for _ in range(20)))
            asked += 20
            assert set(told) == {(200, None)}
            return await degraded(client) == ["ledger"] and await _dropped(client) > 0

        await eventually(full)
        connections[0].execute("PRAGMA max_page_count = 100000")

        async def whole() -> bool:
            return not await degraded(client)

        await eventually(whole)
        assert await ask(client, "free") == (200, None)
        asked += 1

        async def written() -> bool:
            return await _rows(tmp_path / "kept" / "ledger.db") + await _dropped(client) == asked

        await eventually(written)
        assert await _rows(tmp_path / "kept" / "ledger.db") > 20


async def _dropped(client: httpx.AsyncClient) -> int:
    lines = (await client.get("/metrics")).text.splitlines()
    return int(
        float(next(line for line in lines if line.startswith("chorus_ledger_dropped_total ")).split()[1])
    )


async def _rows(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        count: int = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
    connection.close()
    return count
