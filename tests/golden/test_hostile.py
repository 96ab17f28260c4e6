"""What hostile callers and backends send: nothing of the caller's choosing reaches a backend but the body, and no
secret comes out."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.admin import admin_server
from gateway.admin_api import AdminApi
from gateway.openapi import document
from gateway.passing import RELAYS
from gateway.surfaces import SURFACES
from protocol.chat import MAX_DEPTH, MAX_MESSAGES
from protocol.settings import parse_settings
from tests.gateway.tracing.collector import Collector
from tests.raw_upstream import SSE, RawUpstream, Seen, recorded

SECRET = "sk-canary-upstream"
OUTGOING = {
    "accept", "accept-encoding", "anthropic-version", "authorization", "content-length", "content-type", "host",
    "user-agent",
}  # fmt: skip
"""Headers a backend may be sent, all of the gateway's own making."""

EVIL_HEADERS = {
    "authorization": "Bearer sk-callers-canary",
    "x-api-key": "sk-callers-canary",
    "api-key": "sk-callers-canary",
    "cookie": "callers=canary",
    "x-forwarded-for": "6.6.6.6",
    "x-forwarded-host": "callers.example",
    "x-portkey-custom-host": "http://callers.example",
    "x-litellm-api-base": "http://callers.example",
    "x-chorus-model": "callers",
    "x-chorus-cost-usd": "0",
    "x-chorus-admin": "callers",
    "anthropic-beta": "callers",
    "openai-organization": "callers",
    "traceparent": "callers",
    "baggage": "who=callers",
    "user-agent": "callers",
    "proxy-authorization": "Basic callers",
    "x-request-id": "callers",
}
ASK = {
    "model": "native",
    "max_tokens": 1,
    "messages": [{"role": "user", "content": "x"}],
    "prompt": "x",
    "input": "x",
}
PAGES = [
    *(
        ("GET", path)
        for path in ("/v1/models", "/v1/models/native", "/v1/models/nope", "/v1/nothing", "/openapi.json")
    ),
    *(("GET", path) for path in ("/livez", "/health", "/readyz", "/metrics", "/docs", "/")),
    *(("POST", path) for path in ("/v1/models", "/v1/nothing", "/metrics", "/admin/keys")),
    ("GET", "/v1/chat/completions"),
    ("DELETE", "/v1/files"),
]
FORM = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nnative\r\n--b--\r\n'


def routes() -> Iterator[tuple[str, str]]:
    """Every route that can reach a backend, an id filled in."""
    yield from SURFACES
    for relay in RELAYS:
        yield relay.method, f"/v1{relay.path.replace('{id}', 'some-id')}"


def request(client: httpx.AsyncClient, method: str, path: str, **fields: Any) -> httpx.Request:
    """A sound request to a route, with `fields` in its JSON body."""
    form = any(r.body == "form" and (r.method, f"/v1{r.path}") == (method, path) for r in RELAYS)
    if method != "POST":
        return client.build_request(
            method, path, params={"model": "native", **{k: str(v) for k, v in fields.items()}}
        )
    if form:
        return client.build_request(
            method, path, content=FORM, headers={"content-type": "multipart/form-data; boundary=b"}
        )
    return client.build_request(method, path, json={**ASK, **fields})


def test_every_route_is_listed() -> None:
    """The list below is complete: the document's routes are those that reach backends, and the model list."""
    told = {(method.upper(), path) for path, found in document()["paths"].items() for method in found}
    assert told - {("GET", "/v1/models"), ("GET", "/v1/models/{id}")} == {
        *SURFACES,
        *((relay.method, f"/v1{relay.path}") for relay in RELAYS),
    }


async def test_callers_choose_no_upstream(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """Addresses, keys and headers that a caller sends reach no backend, on any route; the gateway's own do."""
    for method, path in routes():
        await choose_upstream(client, upstream, method, path)


async def test_traced_callers_choose_no_upstream(gateway: Any, upstream: RawUpstream) -> None:
    """Nor do they where traces are handed on: backends are told which trace, and nothing else more."""
    collector = Collector()
    async with collector.serving():
        url = await gateway(telemetry={"endpoint": collector.url, "metrics": False})
        async with httpx.AsyncClient(base_url=url, timeout=30, verify=False) as client:
            trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            for method, path in routes():
                await choose_upstream(client, upstream, method, path, traceparent=trace)
                for seen in upstream.seen:
                    told = seen.headers["traceparent"].split("-")
                    assert told[1] == trace.split("-")[1], path
                    assert told[2] != trace.split("-")[2], path


async def choose_upstream(
    client: httpx.AsyncClient, upstream: RawUpstream, method: str, path: str, **headers: str
) -> None:
    """Send one route all that a caller could hope to choose; the names of `headers` may go on, too."""
    upstream.seen.clear()
    async with RawUpstream().serving() as evil:
        chosen = {
            "api_base": evil, "base_url": evil, "api_key": "sk-callers-canary", "custom_host": evil, "proxy": evil,
            "headers": {"x-evil": "callers"}, "extra_headers": {"x-evil": "callers"}, "organization": "callers",
            "extra_body": {"api_base": evil}, "litellm_params": {"api_base": evil}, "metadata": {"api_base": evil},
        }  # fmt: skip
        made = request(client, method, path, **chosen)
        made.headers.update(
            {**EVIL_HEADERS, **headers, "content-type": made.headers.get("content-type", "x")}
        )
        upstream.answers[path] = recorded(
            {"choices": [{"message": {}, "text": ""}], "data": [{"embedding": [1]}]}
        )
        response = await client.send(made)
    assert response.status_code == 200, response.text
    if path == "/v1/route":
        assert not upstream.seen  # it asks nobody
        return
    (seen,) = upstream.seen
    assert set(seen.headers) <= OUTGOING | set(headers)
    assert "callers" not in str(seen.headers)
    assert seen.headers["authorization"] == f"Bearer {SECRET}"
    assert seen.headers["host"].startswith("127.0.0.1:")
    assert evil not in seen.path
    assert "callers" not in str(
        {k: v for k, v in response.headers.items() if k != "x-request-id" and k != "request-id"}
    )


async def test_other_routes_reach_nobody(
    client: httpx.AsyncClient, upstream: RawUpstream, tmp_path: Path
) -> None:
    """What is neither surface nor relay, pages and admin API alike, asks no backend, whatever a caller sends; and no
    answer repeats a header of his."""
    api = AdminApi(
        parse_settings(
            json.dumps(
                {
                    "models": {"m": {"openai": {"base_url": "http://127.0.0.1:9", "model": "m"}}},
                    "server": {"port": 9},
                    "keys": {"admin": "sk-canary-admin", "pepper": "pepper-canary"},
                    "state": {"folder": str(tmp_path / "state")},
                }
            )
        )
    )
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    listener = socket.create_server(("127.0.0.1", 0))
    async with (
        admin_server(listener, lambda: {"status": "ready"}, metrics, api),
        RawUpstream().serving() as evil,
    ):
        there = f"http://127.0.0.1:{listener.getsockname()[1]}"
        served = [(f"{client.base_url}", method, path) for method, path in PAGES]
        served += [(there, route.method, route.path.replace("{name}", "x")) for route in api.routes()]
        served += [(there, route.method, route.path) for route in api.open_routes()]
        served += [(there, "GET", path) for path in ("/livez", "/readyz", "/status", "/metrics", "/nope")]
        assert len(served) > 15
        async with httpx.AsyncClient(verify=False, timeout=10) as asking:
            for base, method, path in served:
                for key in ("Bearer sk-canary-admin", "Bearer callers"):
                    headers = {**EVIL_HEADERS, "authorization": key}
                    body = {"api_base": evil, "base_url": evil, "alias": "callers-own"}
                    fields: Any = {} if method == "GET" else {"json": body}
                    response = await asking.request(
                        method, base.rstrip("/") + path, headers=headers, **fields
                    )
                    told = {
                        name: value for name, value in response.headers.items() if "request-id" not in name
                    }
                    away = path.startswith("/admin/playground") and response.status_code == 502
                    assert response.status_code < 500 or away, path
                    assert "callers" not in str(told), path
                    assert "canary" not in str(told), path
                    assert "canary" not in response.text, path
    assert not upstream.seen


async def test_every_route_asks_for_the_key(gateway: Any, upstream: RawUpstream) -> None:
    """No route below /v1 is open when a key is set, and no refusal repeats what was sent."""
    url = await gateway(server={"master_key": "sk-canary-master"})
    pages = [("GET", "/v1/models"), ("GET", "/v1/models/native"), ("GET", "/v1/nothing")]
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
        for method, path in [*routes(), *pages]:
            for headers in (
                {},
                {"authorization": "Bearer sk-guess"},
                {"x-api-key": "sk-guess"},
                {"x-chorus-admin": "1"},
            ):
                made = request(client, method, path)
                made.headers.update(headers)
                refused = await client.send(made)
                assert refused.status_code == 401, path
                assert "guess" not in refused.text
                assert "canary" not in refused.text
    assert not upstream.seen


def leaking(seen: Seen) -> Any:
    """A backend that repeats the key it was sent, in whatever way the path of its test says."""
    told = f"bad key {seen.headers['authorization']} at {seen.headers['host']}"
    kind = seen.body["kind"]
    error = {"message": told, "type": told, "code": told, "param": told}
    if kind.isdigit():
        return recorded({"error": error, "type": "error"}, status=int(kind), headers={"x-leak": "leaked"})
    event = {"type": "error", "error": error} if kind == "event" else {"error": told}
    return recorded(b"event: error\ndata: " + json.dumps(event).encode() + b"\n\n", content_type=SSE)


KINDS = ("400", "401", "403", "404", "422", "429", "500", "503", "event", "text")


@pytest.mark.parametrize("path", [path for (_, path), surface in SURFACES.items() if not surface.decides])
async def test_secrets_stay(client: httpx.AsyncClient, upstream: RawUpstream, caplog: Any, path: str) -> None:
    """A backend that repeats the key or its address in an error does not get them to the caller, the log or the
    metrics: not in the message, and not in type, code or param."""
    caplog.set_level(logging.DEBUG)
    for _, there in SURFACES:
        upstream.answers[there] = leaking
    for kind, model, stream in itertools.product(KINDS, ("plain", "native"), (False, True)):
        if stream and "embeddings" in path:
            continue
        response = await client.post(path, json={**ASK, "model": model, "kind": kind, "stream": stream})
        assert "canary" not in response.text
        assert "127.0.0.1" not in response.text
        assert "leak" not in str(response.headers)
    assert upstream.seen
    assert "canary" not in (await client.get("/metrics")).text
    assert "canary" not in caplog.text


async def test_names_cannot_break_lines(client: httpx.AsyncClient) -> None:
    """A model's name with line breaks reaches no header."""
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
        response = await client.post(path, json={**ASK, "model": "a\r\nx-evil: 1\r\n\r\n"})
        assert response.status_code == 404
        assert "x-evil" not in response.headers


@pytest.mark.parametrize("given", ["text/html\tx", "a" * 300, "text/plain; charset=é"])
async def test_odd_content_types(client: httpx.AsyncClient, upstream: RawUpstream, given: str) -> None:
    """A relayed answer's content type is repeated only where it is a plain one."""
    upstream.answer("/v1/files/f/content", b"x", content_type=given)
    response = await client.get("/v1/files/f/content")
    assert response.headers["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("path", [path for _, path in SURFACES] + ["/v1/moderations"])
async def test_depth(client: httpx.AsyncClient, upstream: RawUpstream, path: str) -> None:
    """A body nested too deep is a 400 on every surface."""
    deep = b'{"model": "native", "x": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}"
    response = await client.post(path, content=deep)
    assert response.status_code == 400
    assert "deeper" in response.text
    deepest = await client.post(path, content=b"[" * 1_000_000)
    assert deepest.status_code == 400
    assert not upstream.seen


async def test_count(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """Too many messages, blocks or tools are a 400."""
    many = [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1)
    for path, fields in (
        ("/v1/chat/completions", {"messages": many}),
        ("/v1/chat/completions", {"tools": [{}] * 1025}),
        ("/v1/messages", {"messages": many}),
        ("/v1/messages", {"tools": [{"name": "x"}] * 1025}),
        ("/v1/responses", {"input": many}),
        ("/v1/responses", {"tools": [{"type": "function", "name": "x"}] * 1025}),
    ):
        response = await client.post(path, json={**ASK, "model": "plain", "prompt": None, **fields})
        assert response.status_code == 400
        assert "at most" in response.text
    assert not upstream.seen


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/files"])
async def test_slow_body(gateway: Any, path: str) -> None:
    """A body that drips is a 408, and its connection is closed."""
    url = httpx.URL(await gateway(server={"body_timeout_s": 0.3}))
    reader, writer = await asyncio.open_connection(url.host, url.port)
    writer.write(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n".encode())

    async def drip() -> None:
        while True:
            writer.write(b"{")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    answer = b""
    with suppress(ConnectionResetError):  # what still drips meets a closed socket
        async with asyncio.timeout(10):
            while piece := await reader.read(65536):
                answer += piece
    dripping.cancel()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer.lower()
    assert b'"timeout_error"' in answer


async def test_redirects_are_not_followed(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """A backend that redirects is broken; nobody is sent the key."""
    async with RawUpstream().serving() as evil:
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/files"):
            upstream.answers[path] = recorded({}, status=307, headers={"location": f"{evil}/steal"})
        for path in ("/v1/chat/completions", "/v1/messages"):
            assert (await client.post(path, json=ASK)).status_code == 502
        assert (await client.get("/v1/files")).status_code == 502
