"""Models in front of a scripted upstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from backends.model import Model
from backends.openai_http import Deployment
from backends.scripted import ScriptedUpstream
from protocol.settings import OpenAIModel
from protocol.usage import Price


@pytest.fixture
async def upstream() -> ScriptedUpstream:
    """The scripted upstream behind `deploy`."""
    return ScriptedUpstream()


@pytest.fixture
async def url(upstream: ScriptedUpstream) -> AsyncIterator[str]:
    """Where it serves."""
    async with upstream.serving() as base:
        yield base


@pytest.fixture
async def deploy(url: str) -> AsyncIterator[Callable[..., Deployment]]:
    """Makes deployments of model `m`, known upstream as `theirs`; fields override its settings."""
    async with AsyncExitStack() as stack:

        def make(**fields: Any) -> Deployment:
            section = {"base_url": url, "model": "theirs", "api_key": "sk-canary", **fields}
            deployment = Deployment("m", OpenAIModel.model_validate(section))
            stack.push_async_callback(deployment.close)
            return deployment

        yield make


@pytest.fixture
def model(deploy: Callable[..., Deployment]) -> Model:
    """The model `m` with one deployment, at 1 US dollar a token read and 10 a token written."""
    return Model("m", [deploy()], prices={"m": Price(1.0, 10.0)})


@pytest.fixture(name="until")
def _until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Waits for what another task does: `await until(condition)`."""

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 - what it waits for is another task's affair
                await asyncio.sleep(0.01)

    return until
