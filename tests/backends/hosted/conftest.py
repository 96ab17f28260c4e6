"""Models behind litellm in front of a provider on loopback: worker's side, socket, host, litellm, wire."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

from backends.hosted.host import HostedHost, HostedModels
from backends.hosted.quiet import clean_environment, load_litellm
from backends.model import Model
from backends.registry import make_models
from protocol.settings import Settings, parse_settings
from tests.backends.hosted.provider import Provider

SECRETS = ("sk-canary-key", "AKIDCANARY", "canary-secret")

Start = Callable[..., Awaitable[Model]]


def section(dialect: str, url: str, **changes: Any) -> dict[str, Any]:
    """A `hosted` section for a provider at `url`."""
    aws = {"region": "us-east-1", "aws_access_key_id": SECRETS[1], "aws_secret_access_key": SECRETS[2]}
    sections: dict[str, dict[str, Any]] = {
        "anthropic": {"model": "anthropic/claude-sonnet-4-5", "api_key": SECRETS[0], "base_url": url},
        "gemini": {"model": "gemini/gemini-2.5-flash", "api_key": SECRETS[0], "base_url": f"{url}/v1beta"},
        "bedrock": {"model": "bedrock/anthropic.claude-sonnet-4-5-20250929-v1:0", "base_url": url, **aws},
        "azure": {
            "model": "azure/gpt-4o", "api_key": SECRETS[0], "base_url": url, "api_version": "2024-10-21",
        },
        "openai": {"model": "openai/gpt-4o", "api_key": SECRETS[0], "base_url": f"{url}/v1"},
        "cohere": {"model": "cohere/embed-v4.0", "api_key": SECRETS[0], "base_url": f"{url}/v2/embed"},
    }  # fmt: skip
    return {**sections[dialect], **changes}


def settings_for(models: Mapping[str, Any], **sections: Any) -> Settings:
    """Settings of these `hosted` sections, without retries."""
    told = {name: {"hosted": hosted} for name, hosted in models.items()}
    return parse_settings(yaml.safe_dump({"models": told, "resilience": {"retries": 0}} | sections))


@pytest.fixture(scope="session")
def litellm() -> Any:
    """LiteLLM as the hosted process has it, in an environment as that process leaves it."""
    import os

    kept = dict(os.environ)
    clean_environment(os.environ, ())
    module = load_litellm()
    logging.getLogger("LiteLLM").propagate = True  # what it would log is what a test may look at
    os.environ.update(kept)
    return module


@pytest.fixture
async def provider() -> Provider:
    """The provider that `start` puts behind a model."""
    return Provider()


@pytest.fixture
async def start(litellm: Any, provider: Provider) -> AsyncIterator[Start]:
    """Makes the model `m` of a dialect, asked through the host; fields override its section."""
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(provider.serving())
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="chorus-")))

        async def make(dialect: str, **changes: Any) -> Model:
            settings = settings_for({"m": section(dialect, url, **changes)})
            socket = folder / f"{dialect}.sock"
            host = HostedHost(HostedModels(litellm, settings))
            await stack.enter_async_context(host.serving(socket))
            model = make_models(settings, {"hosted": socket})["m"]
            stack.push_async_callback(model.close)
            return model

        yield make
