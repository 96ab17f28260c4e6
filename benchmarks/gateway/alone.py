"""What a request costs without sockets: a gateway between a server and an upstream that are both faked, in one process.

python -m benchmarks.gateway.alone [--rounds 20] [--requests 500] [--calls]

Processor time, which other processes disturb less than they do rates; still, read the ratios. `off` has neither key nor
ledger, `ledger` a master key and the ledger in SQLite, `limits` a virtual key with rates, places and a budget, `keys`
both. The ledger's thread counts, up to the last row. `--calls` tells how many functions a request calls instead.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

from backends.http1 import Http1, Response
from benchmarks.gateway.targets import INPUT_USD, OUTPUT_USD
from benchmarks.gateway.workload import KEY, MODEL, WORKLOADS, answer
from gateway.app import Gateway, make_app
from gateway.keys.office import Order
from gateway.tenancy import make_office, make_shared
from gateway.wire import WIRE
from gateway.worker import GARBAGE
from protocol.settings import Settings, parse_settings

MODES = ("off", "ledger", "limits", "keys")
LIMITS = {"rpm": 10**8, "tpm": 10**12, "concurrent": 10**5, "budgets_usd": {"day": 1_000_000}}
AT_ONCE = 32
WARM = 1_500
BODY, ANSWER = WORKLOADS[0].body(), answer(WORKLOADS[0].size)


class Wire:
    """A server that has the whole request and takes every answer."""

    full = False

    def whole_body(self) -> bytes:
        return BODY

    def start(self, status: int, head: bytes, length: int | None = None, *, close: bool = False) -> None:
        if status != 200:
            raise RuntimeError(f"the gateway answered {status}")

    def end(self, data: bytes = b"") -> None:
        """The answer is complete."""

    def watch(self, left: Any) -> None:
        """Nobody leaves."""

    def unwatch(self) -> None:
        """Nor stays."""


async def exchanged(client: Http1, *request: Any) -> Response:
    """An upstream that answers at the loop's next turn."""
    response = Response(None)  # type: ignore[arg-type]
    response.status, response.complete = 200, True
    response.raw_headers, response.parts = [(b"content-type", b"application/json")], [ANSWER]
    await asyncio.sleep(0)
    return response


class Alone:
    """A gateway, and what its caller sends."""

    def __init__(self, gateway: Gateway, key: str | None) -> None:
        self._gateway = gateway
        self._headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        if key is not None:
            self._headers.append((b"authorization", f"Bearer {key}".encode()))

    async def ask(self, requests: int) -> float:
        """Microseconds of processor time for each of so many `requests`."""
        left = iter(range(requests))

        async def caller() -> None:
            for _ in left:
                await asyncio.create_task(self._one())

        began = time.process_time()
        await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
        ledger = self._gateway.in_force.tenancy._ledger  # noqa: SLF001 - its thread is not done yet
        while ledger is not None and ledger._waiting:  # noqa: ASYNC110, SLF001
            await asyncio.sleep(0.05)
        return 1e6 * (time.process_time() - began) / requests

    async def _one(self) -> None:
        path = "/v1/chat/completions"
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": list(self._headers), "extensions": {WIRE: Wire()},
        }  # fmt: skip
        await self._gateway(scope, None, None)  # type: ignore[arg-type]


@asynccontextmanager
async def alone(mode: str, folder: Path) -> AsyncIterator[Alone]:
    """A gateway in this `mode`."""
    settings, key = settings_of(mode, folder), None if mode == "off" else KEY
    if mode in ("limits", "keys"):
        shared = make_shared(settings)
        order = Order.parse({"alias": "bench", "limits": LIMITS})
        _, key = await make_office(settings, shared).create(order, "benchmark")
        await shared.store.close()
    gateway = make_app(settings, {})
    pages: Any = gateway._pages  # noqa: SLF001 - whose lifespan is the gateway's
    async with pages.router.lifespan_context(pages):
        yield Alone(gateway, key)


def settings_of(mode: str, folder: Path) -> Settings:
    """The settings of a gateway in this `mode`."""
    told: dict[str, Any] = {
        "models": {
            MODEL: {
                "openai": {"base_url": "http://127.0.0.1:9/v1", "model": MODEL, "api_key": "sk-up"},
                "price": {"input_usd_per_token": INPUT_USD, "output_usd_per_token": OUTPUT_USD},
            }
        },
        "server": {} if mode == "off" else {"master_key": KEY},
        "state": {"folder": str(folder / mode)},
        "logging": {"access": False},
        "ledger": {"enabled": mode in ("ledger", "keys")},
    }
    return parse_settings(json.dumps(told))  # JSON is YAML


async def compare(rounds: int, requests: int, calls: bool) -> None:
    """Ask every gateway in turn, and print what it took."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        gateways = {mode: await stack.enter_async_context(alone(mode, folder)) for mode in MODES}
        for each in gateways.values():
            await each.ask(WARM)
        gc.collect()
        gc.freeze()  # as a worker does
        gc.set_threshold(GARBAGE, 10, 20)
        if calls:
            for mode, each in gateways.items():
                with cProfile.Profile() as profile:
                    await each.ask(requests)
                made: int = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
                print(f"{mode:8} {made / requests:6.0f} calls")
            return
        took = [{mode: await each.ask(requests) for mode, each in gateways.items()} for _ in range(rounds)]
        for mode in MODES:
            us, ratios = [each[mode] for each in took], [each[mode] / each["off"] for each in took]
            print(f"{mode:8} {median(us):6.1f} µs, least {min(us):6.1f}; × {median(ratios):.2f} of off")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway.alone", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--calls", action="store_true")
    arguments = parser.parse_args()
    Http1._exchange = exchanged  # type: ignore[assignment,method-assign] # noqa: SLF001
    uvloop.run(compare(arguments.rounds, arguments.requests, arguments.calls))
