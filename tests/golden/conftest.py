"""A gateway on a real socket in front of an upstream that answers exact bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import anthropic
import httpx
import openai
import pytest

from gateway.app import Gateway
from gateway.catalogue import Catalogue
from gateway.composition import make_catalogue
from protocol.run import Strategy
from protocol.settings import parse_settings
from tests.listening import listening
from tests.raw_upstream import RawUpstream

PRICE = {"input_usd_per_token": 1e-6, "output_usd_per_token": 2e-6}
EVERYTHING = [
    "chat", "completions", "embeddings", "messages", "responses", "images", "audio", "moderations", "files", "batches",
]  # fmt: skip


@pytest.fixture
def upstream() -> RawUpstream:
    """The upstream behind every model of `gateway`; tests fill in its answers."""
    return RawUpstream()


@pytest.fixture
async def gateway(upstream: RawUpstream) -> AsyncIterator[Callable[..., Awaitable[str]]]:
    """Starts gateways; awaiting one gives its URL. Its models are `plain`, with chat, completions and
    embeddings, and `native`, whose backend has everything; both are called `theirs` there."""
    async with AsyncExitStack() as stack:
        base = await stack.enter_async_context(upstream.serving())

        async def start(
            strategies: Mapping[str, Strategy] | None = None,
            models: Mapping[str, Any] | None = None,
            **sections: Any,
        ) -> str:
            there = {"base_url": base, "model": "theirs", "api_key": "sk-canary-upstream"}
            told = {
                "plain": {"openai": there, "price": PRICE},
                "native": {"openai": {**there, "endpoints": EVERYTHING}, "price": PRICE},
                **{name: {"openai": {**there, **fields}} for name, fields in (models or {}).items()},
            }
            settings = parse_settings(json.dumps({"models": told, **sections}))
            catalogue = make_catalogue(settings, {})
            if strategies:
                catalogue = Catalogue(catalogue.models, strategies)
            return await stack.enter_async_context(listening(Gateway(catalogue, settings)))

        yield start


@pytest.fixture
async def client(gateway: Callable[..., Awaitable[str]]) -> AsyncIterator[httpx.AsyncClient]:
    """A plain HTTP client of a gateway with the default models."""
    async with httpx.AsyncClient(base_url=await gateway(), timeout=30, verify=False) as made:
        yield made


@pytest.fixture
async def openai_sdk(client: httpx.AsyncClient) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official OpenAI SDK on that gateway."""
    async with openai.AsyncOpenAI(base_url=f"{client.base_url}/v1", api_key="sk-x", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def anthropic_sdk(client: httpx.AsyncClient) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The official Anthropic SDK on that gateway."""
    async with anthropic.AsyncAnthropic(base_url=str(client.base_url), api_key="sk-x", max_retries=0) as sdk:
        yield sdk
