"""The application as a whole: doors, routes and pages."""

from __future__ import annotations

from typing import Any

import pytest

KEY = "sk-canary-master"


def error(response: Any) -> dict[str, Any]:
    """The error of a response, which must be in OpenAI's shape."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    told: dict[str, Any] = body["error"]
    return told


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nope", 404, "not_found"),
        ("GET", "/v1/nope", 404, "not_found"),
        ("GET", "/v1/models/nope", 404, "model_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/embeddings", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("PUT", "/livez", 405, "method_not_allowed"),
    ],
)
async def test_wrong_routes(serve: Any, method: str, path: str, status: int, code: str) -> None:
    """What does not exist is told in OpenAI's shape, never in FastAPI's."""
    response = await (await serve()).request(method, path)
    assert response.status_code == status
    assert error(response)["code"] == code
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/models", "/v1/models"),
        ("/v1/completion", "/v1/completions"),
        ("/healthz", "/health"),
    ],
)
async def test_the_route_that_was_meant(serve: Any, path: str, meant: str) -> None:
    """A base URL without `/v1`, or with two, is the first thing that goes wrong; the answer says so."""
    told = error(await (await serve()).post(path))["message"]
    assert told.endswith(f"did you mean {meant}?")


async def test_a_route_that_is_like_no_other(serve: Any) -> None:
    """No advice is better than bad advice, and a long path is not repeated."""
    assert error(await (await serve()).get("/" + "x" * 9000))["message"] == f"There is no route /{'x' * 199}."


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/v1/models", "/v1/models/one", "/metrics"])
async def test_head(serve: Any, path: str) -> None:
    """What can be got can be looked at: monitors and load balancers ask with HEAD."""
    client = await serve()
    response = await client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == (await client.get(path)).headers["content-type"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
async def test_a_compressed_body(serve: Any, path: str) -> None:
    """It is refused for what it is, not for JSON that cannot be read."""
    response = await (await serve()).post(path, content=b"\x1f\x8b", headers={"content-encoding": "gzip"})
    assert (response.status_code, error(response)["code"]) == (415, "unsupported_encoding")
    assert response.headers["accept-encoding"] == "identity"


async def test_models(serve: Any, sdk: Any) -> None:
    """Every name is listed, and can be looked up."""
    client = sdk(await serve())
    listed = await client.models.list()
    assert [model.id for model in listed.data] == ["one", "two"]
    assert (await client.models.retrieve("one")).id == "one"


@pytest.mark.parametrize(
    "path",
    [
        "/livez",
        "/readyz",
        "/health",
        "/health/liveliness",
        "/health/liveness",
        "/health/readiness",
        "/metrics",
    ],
)
async def test_probes(serve: Any, path: str, upstream: Any) -> None:
    """Probes and metrics need no key and ask no hosted model anything."""
    response = await (await serve(server={"master_key": KEY})).get(path)
    assert response.status_code == 200
    assert not upstream.seen


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/one", "/v1/nope"])
@pytest.mark.parametrize("given", [None, "Bearer wrong", "Basic " + KEY, KEY, "Bearer " + KEY + "x"])
async def test_pages_need_the_key(serve: Any, path: str, given: str | None) -> None:
    """With a master key every page below /v1 needs it."""
    headers = {} if given is None else {"authorization": given}
    response = await (await serve(server={"master_key": KEY})).get(path, headers=headers)
    assert response.status_code == 401
    assert error(response)["code"] == "invalid_api_key"
    assert "canary" not in response.text


async def test_answers_need_the_key(serve: Any, chat: Any, upstream: Any) -> None:
    """With a master key every answer needs it; the key goes no further than the door."""
    client = await serve(server={"master_key": KEY})
    for path in ("chat/completions", "completions", "embeddings"):
        refused = await client.post(
            f"/v1/{path}", json={"model": "one"}, headers={"authorization": "Bearer sk-guess"}
        )
        assert refused.status_code == 401
        assert "guess" not in refused.text
    admitted = await chat(client, "one", headers={"authorization": f"bearer {KEY}"})
    assert admitted.status_code == 200
    assert "canary" not in str(upstream.seen)


async def test_metrics_are_text(serve: Any) -> None:
    """Metrics come in Prometheus's text format, with the loop's delay among them."""
    response = await (await serve()).get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "chorus_event_loop_delay_seconds" in response.text
