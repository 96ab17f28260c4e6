"""What browsers of other origins are told."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.errors import SettingsError
from tests.gateway.conftest import settings_for

APP, OTHER = "https://app.example", "https://other.example"
ASKS = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,x-stainless-os",
}


def allowed(response: Any) -> str | None:
    told: str | None = response.headers.get("access-control-allow-origin")
    return told


async def test_off_by_default(serve: Any, chat: Any) -> None:
    """Without the setting no origin is let in, and no preflight answered."""
    client = await serve()
    assert allowed(await chat(client, "one", headers={"origin": APP})) is None
    preflight = await client.options("/v1/chat/completions", headers={"origin": APP, **ASKS})
    assert preflight.status_code == 405


async def test_preflight(serve: Any, upstream: Any) -> None:
    """A page of an allowed origin may call, with the headers it wants; the key is not needed to be told so. Others are
    refused."""
    client = await serve(server={"master_key": "sk-canary", "cors": {"origins": [APP], "max_age_s": 7}})
    told = await client.options("/v1/chat/completions", headers={"origin": APP, **ASKS})
    assert told.status_code == 204
    assert allowed(told) == APP
    assert "POST" in told.headers["access-control-allow-methods"]
    assert told.headers["access-control-allow-headers"] == ASKS["access-control-request-headers"]
    assert told.headers["access-control-max-age"] == "7"
    assert "access-control-allow-credentials" not in told.headers
    refused = await client.options("/v1/chat/completions", headers={"origin": OTHER, **ASKS})
    assert refused.status_code == 403
    assert refused.json()["error"]["code"] == "forbidden"
    assert allowed(refused) is None
    assert not upstream.seen


async def test_preflight_repeats_no_nonsense(serve: Any) -> None:
    """What is no list of header names is not repeated."""
    client = await serve(server={"cors": {"origins": [APP]}})
    asks = {**ASKS, "access-control-request-headers": 'x"y; z=<1>'}
    told = await client.options("/v1/models", headers={"origin": APP, **asks})
    assert told.status_code == 204
    assert "access-control-allow-headers" not in told.headers


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_can_be_read(serve: Any, chat: Any, stream: bool) -> None:
    """An allowed page may read every header of its answer, those of Chorus among them, streams and errors too; another
    one's browser is told nothing; caches are told that origins matter."""
    client = await serve(server={"cors": {"origins": [APP], "credentials": True}})
    told = await chat(client, "one", stream=stream, headers={"origin": APP})
    assert allowed(told) == APP
    assert told.headers["access-control-allow-credentials"] == "true"
    exposed = told.headers["access-control-expose-headers"].split(", ")
    assert {"x-request-id", "x-chorus-strategy", "x-chorus-model"} <= set(exposed)
    assert "Origin" in told.headers["vary"]
    assert allowed(await chat(client, "nobody", headers={"origin": APP})) == APP
    assert allowed(await client.get("/v1/models", headers={"origin": APP})) == APP
    other = await chat(client, "one", stream=stream, headers={"origin": OTHER})
    assert other.status_code == 200
    assert allowed(other) is None
    assert other.headers["vary"] == (await chat(client, "one")).headers["vary"] == "Origin"


async def test_every_origin(serve: Any, chat: Any) -> None:
    """`*` lets every origin in, and no credentials with it."""
    client = await serve(server={"cors": {"origins": ["*"]}})
    told = await chat(client, "one", headers={"origin": OTHER})
    assert allowed(told) == "*"
    assert "access-control-allow-credentials" not in told.headers


@pytest.mark.parametrize(
    ("cors", "fault"),
    [
        ({"origins": ["*"], "credentials": True}, "credentials must not be allowed to every origin"),
        ({"origins": ["https://app.example/"]}, "without a path"),
        ({"origins": ["app.example"]}, "scheme://host"),
        ({"origins": []}, "at least 1"),
    ],
)
def test_refused_settings(cors: dict[str, Any], fault: str) -> None:
    """What would let anybody use somebody's credentials, or never match, stops the start."""
    with pytest.raises(SettingsError, match=fault):
        settings_for("http://a/v1", {"one": {}}, server={"cors": cors})
