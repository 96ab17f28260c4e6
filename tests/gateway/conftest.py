"""A gateway on a real socket in front of a scripted upstream, all in the test's own event loop."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import httpx
import openai
import pytest

from backends.scripted import ScriptedUpstream
from gateway.app import Gateway
from gateway.catalogue import Catalogue
from gateway.composition import make_catalogue
from protocol.run import Strategy
from protocol.settings import Settings, parse_settings
from tests.listening import listening
from tests.redis_server import RedisServer
from tests.served import start

__all__ = ["listening", "start"]

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
            base = await stack.enter_async_context(listening(Gateway(catalogue, settings)))
            return await stack.enter_async_context(httpx.AsyncClient(base_url=base, timeout=30, verify=False))

        yield start


@pytest.fixture
async def config(upstream: ScriptedUpstream) -> AsyncIterator[str]:
    """A config of one model behind the scripted upstream."""
    async with upstream.serving() as url:
        yield f"models: {{echo: {{openai: {{base_url: '{url}', model: x}}}}}}"


@pytest.fixture
async def sdk(serve: ServeGateway) -> AsyncIterator[Callable[[httpx.AsyncClient], openai.AsyncOpenAI]]:
    """`sdk(client)` → the official SDK, without retries, on the gateway that `client` talks to."""
    async with AsyncExitStack() as stack:

        def connect(client: httpx.AsyncClient) -> openai.AsyncOpenAI:
            made = openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="sk-test", max_retries=0)
            stack.push_async_callback(made.close)
            return made

        yield connect


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
