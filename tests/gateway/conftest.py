"""A gateway on a real socket in front of a scripted upstream, all in the test's own event loop."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx
import openai
import pytest
import uvicorn

from backends.scripted import ScriptedUpstream
from gateway.app import Gateway
from gateway.catalogue import Catalogue
from gateway.composition import make_catalogue
from gateway.http_server import HttpServer
from protocol.run import Strategy
from protocol.settings import Settings, parse_settings
from tests.redis_server import RedisServer

ServeGateway = Callable[..., Awaitable[httpx.AsyncClient]]

MESSAGES = [{"role": "user", "content": "Say something."}]
PRICE = {"input_usd_per_token": 1e-6, "output_usd_per_token": 2e-6}


def settings_for(url: str, models: Mapping[str, Any], **sections: Any) -> Settings:
    """Settings with one priced OpenAI-compatible model for each name; values override its section."""
    import yaml

    told = {
        name: {"openai": {"base_url": url, "model": f"upstream-{name}"}, "price": PRICE, **changes}
        for name, changes in models.items()
    }
    return parse_settings(yaml.safe_dump({"models": told, **sections}))


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait until `condition()` holds; fails after `timeout_s` seconds."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - what it waits for is another process's or task's affair
            await asyncio.sleep(0.01)


@pytest.fixture
async def upstream() -> ScriptedUpstream:
    """The scripted upstream that `serve` puts behind the gateway; tests fill in its scripts."""
    return ScriptedUpstream()


@pytest.fixture
async def serve(upstream: ScriptedUpstream) -> AsyncIterator[ServeGateway]:
    """Starts gateways, and gives an HTTP client of each."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(upstream.serving())

        async def start(
            models: Mapping[str, Any] | None = None,
            *,
            strategies: Mapping[str, Strategy] | None = None,
            configured: Mapping[str, Any] | None = None,
            **sections: Any,
        ) -> httpx.AsyncClient:
            """`strategies`: objects, in place of those `configured` in the settings."""
            named = {"strategies": configured} if configured else {}
            settings = settings_for(url, models or {"one": {}, "two": {}}, **named, **sections)
            catalogue = make_catalogue(settings, {})
            if strategies:
                catalogue = Catalogue(catalogue.models, strategies)
            base = await stack.enter_async_context(_listening(Gateway(catalogue, settings)))
            return await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=30, verify=False))

        yield start


@pytest.fixture
async def sdk(serve: ServeGateway) -> AsyncIterator[Callable[[httpx.AsyncClient], openai.AsyncOpenAI]]:
    """`sdk(client)` → the official SDK, without retries, on the gateway that `client` talks to."""
    async with AsyncExitStack() as stack:

        def connect(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
            made = openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="sk-test", max_retries=0)
            stack.push_async_callback(made.close)
            return made

        yield connect


class _listening:  # noqa: N801 - used like a function
    """The application served by uvicorn on a free port; entered, it gives the base URL."""

    def __init__(self, app: Gateway) -> None:
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, http=HttpServer, log_config=None, access_log=False, timeout_graceful_shutdown=1
            )
        )
        # Signals are pytest's.
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]

    async def __aenter__(self) -> str:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await until(lambda: self._server.started)
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    async def __aexit__(self, *error: object) -> None:
        self._server.should_exit = True
        await self._task


@pytest.fixture(name="until")
def _until() -> Callable[..., Awaitable[None]]:
    """`await until(condition)`: wait for what another task or process does."""
    return until


@pytest.fixture
def messages() -> list[dict[str, str]]:
    """The messages of a request where they do not matter."""
    return MESSAGES


@pytest.fixture
def chat(messages: list[dict[str, str]]) -> Callable[..., Awaitable[httpx.Response]]:
    """Makes one chat request, with `fields` beside model and messages."""

    async def post(client: httpx.AsyncClient, model: str, **fields: Any) -> httpx.Response:
        headers = fields.pop("headers", None)
        body = {"model": model, "messages": messages, **fields}
        return await client.post("/v1/chat/completions", json=body, headers=headers)

    return post


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes config files: `config_file(yaml)` → its path."""

    def write(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
async def start_redis() -> AsyncIterator[Callable[[], Awaitable[RedisServer]]]:
    """Starts Redis servers, and ends them. Needs `redis-server`: mark the test with `requires`."""
    servers: list[RedisServer] = []

    async def start() -> RedisServer:
        # Not pytest's own folder: its path is too long for a socket.
        servers.append(RedisServer(Path(mkdtemp(prefix="chorus-redis-"))))
        await servers[-1].start()
        return servers[-1]

    yield start
    for server in servers:
        for client in server.clients:
            await client.close()
        await server.stop()
        shutil.rmtree(server.folder)


@pytest.fixture
async def redis(start_redis: Callable[[], Awaitable[RedisServer]]) -> RedisServer:
    """One server."""
    return await start_redis()
