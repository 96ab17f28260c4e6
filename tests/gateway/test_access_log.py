"""The line that each request leaves in the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest

from backends.scripted import Script, ScriptedUpstream
from gateway.app import make_app
from protocol.log_pipe import LogPipe
from protocol.redaction import Redaction
from protocol.settings import parse_settings
from tests.gateway.conftest import until
from tests.listening import listening
from tests.served import free_port

CONFIG = """
models:
  good: {{openai: {{base_url: "{url}", model: good}}}}
  broken: {{openai: {{base_url: "{url}", model: broken, api_key: sk-canary}}, fallbacks: [good]}}
  locked: {{openai: {{base_url: "{url}", model: locked, api_key: sk-canary}}}}
  gone: {{openai: {{base_url: "http://127.0.0.1:{port}/v1", model: x}}}}
  unknown: {{openai: {{base_url: "http://nowhere.invalid/v1", model: x}}}}
resilience: {{retries: 0}}
ledger: {{enabled: false}}
logging: {{format: json}}
"""


@asynccontextmanager
async def logged(upstream: ScriptedUpstream) -> AsyncIterator[tuple[httpx.AsyncClient, list[bytes]]]:
    """A client of a gateway, and what it logs."""
    async with upstream.serving() as url:
        settings = parse_settings(CONFIG.format(url=url, port=free_port()))
        lines: list[bytes] = []
        log = LogPipe(settings.logging, "worker", Redaction(), lines.append).start()
        try:
            async with (
                listening(make_app(settings, {}, log)) as base,
                httpx.AsyncClient(base_url=base, timeout=30) as client,
            ):
                yield client, lines
        finally:
            await asyncio.to_thread(log.close)


@pytest.mark.parametrize(
    ("model", "outcome", "failed"),
    [
        ("good", "ok", None),
        ("broken", "ok", "broken upstream_broken (status 500)"),
        ("locked", "upstream_credentials", "locked upstream_credentials (status 401)"),
        ("gone", "upstream_unavailable", "gone upstream_unavailable (no connection: Connection refused)"),
        ("unknown", "upstream_unavailable", "unknown upstream_unavailable (no connection: "),
    ],
)
async def test_why_a_model_failed(model: str, outcome: str, failed: str | None, messages: Any) -> None:
    """An operator reads which model failed and why, also where a fallback answered; not the backend's own words, and no
    address."""
    body = orjson.dumps({"error": {"message": "their words, sk-canary"}})
    upstream = ScriptedUpstream(
        {"broken": Script(status=500, body=body), "locked": Script(status=401, body=body)}
    )
    async with logged(upstream) as (client, lines):
        await client.post("/v1/chat/completions", json={"model": model, "messages": messages})
        await until(lambda: bool(lines))
    told = orjson.loads(lines[0].splitlines()[0])
    assert (told["requested_model"], told["outcome"]) == (model, outcome)
    assert told.get("failed", "").startswith(failed or "")
    assert ("failed" in told) is (failed is not None)
    for hidden in (b"canary", b"their words", b"127.0.0.1", b"invalid"):
        assert hidden not in b"".join(lines)
