"""Keys, limits and ledger as callers and administrators see them, over HTTP."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.scripted import Script, ScriptedUpstream
from gateway.admin import admin_server
from gateway.admin_api import AdminApi
from gateway.keys.office import Order
from gateway.tenancy import make_office, make_shared
from protocol.settings import Settings, parse_settings
from tests.gateway.test_money import free_port

CANARY = "canary-words"


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    return {
        "keys": {"required": True, "pepper": "pepper", "admin": "sk-admin"},
        "state": {"folder": str(tmp_path / "kept")},
    }


def settings_of(sections: dict[str, Any]) -> Settings:
    import yaml

    models = {"one": {"openai": {"base_url": "http://x/v1", "model": "x"}}}
    return parse_settings(yaml.safe_dump({"models": models, **sections}))


async def make_key(sections: dict[str, Any], **order: Any) -> dict[str, str]:
    """The headers of a new key."""
    settings = settings_of(sections)
    shared = make_shared(settings)
    _, secret = await make_office(settings, shared).create(Order.parse(order), "test")
    await shared.store.close()
    return {"authorization": f"Bearer {secret}"}


async def test_models_are_filtered(serve: Any, chat: Any, sections: dict[str, Any]) -> None:
    """A key sees and names only its models; another one does not exist for it, in lists and in errors."""
    headers = await make_key(sections, models=["two"])
    client = await serve(**sections)
    assert [m["id"] for m in (await client.get("/v1/models", headers=headers)).json()["data"]] == ["two"]
    assert (await client.get("/v1/models/one", headers=headers)).status_code == 404
    assert (await chat(client, "two", headers=headers)).status_code == 200
    for name in ("one", "none"):
        response = await chat(client, name, headers=headers)
        assert response.json()["error"]["code"] == "model_not_found"
        assert "Known names: two." in response.json()["error"]["message"]
    assert (await chat(client, "two")).status_code == 401


async def test_limits_are_told(serve: Any, chat: Any, sections: dict[str, Any]) -> None:
    """The request beyond a limit gets 429 with the headers that SDKs read."""
    headers = await make_key(sections, limits={"rpm": 1})
    client = await serve(**sections)
    first = await chat(client, "one", headers=headers)
    assert first.headers["x-ratelimit-limit-requests"] == "1"
    assert first.headers["x-ratelimit-remaining-requests"] == "0"
    response = await chat(client, "one", headers=headers)
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    assert 59_000 <= int(response.headers["retry-after-ms"]) <= 60_000
    assert response.headers["x-ratelimit-remaining-requests"] == "0"


async def test_caps_are_sent(
    serve: Any, chat: Any, sections: dict[str, Any], upstream: ScriptedUpstream
) -> None:
    """Under a budget a request without a bound gets the model's; without a budget nothing is changed."""
    rich, plain = await make_key(sections, limits={"budgets_usd": {"day": 1}}), await make_key(sections)
    client = await serve({"one": {"max_output_tokens": 33}}, **sections)
    await chat(client, "one", headers=rich)
    await chat(client, "one", headers=rich, max_completion_tokens=5)
    await chat(client, "one", headers=plain)
    assert [seen.body.get("max_tokens") for seen in upstream.seen] == [33, None, None]


async def test_every_surface_passes_the_door(
    serve: Any, chat: Any, sections: dict[str, Any], upstream: ScriptedUpstream
) -> None:
    """Messages and text completions are for keys too, limited and counted as chat is, each with its own errors."""
    headers = await make_key(sections, models=["one"], limits={"rpm": 2, "budgets_usd": {"day": 1}})
    secret = headers["authorization"].removeprefix("Bearer ")
    client = await serve({"one": {}, "two": {}}, **sections)
    message = {"model": "one", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    told = await client.post("/v1/messages", json=message, headers={"x-api-key": secret})
    assert told.status_code == 200
    told = await client.post("/v1/completions", json={"model": "one", "prompt": "hi"}, headers=headers)
    assert told.status_code == 200
    assert upstream.seen[-1].body["max_tokens"] == 4096
    told = await client.post("/v1/messages", json=message, headers={"x-api-key": secret})
    assert (told.status_code, told.json()["type"]) == (429, "error")
    assert "retry-after-ms" in told.headers
    told = await client.post("/v1/embeddings", json={"model": "two", "input": "hi"}, headers=headers)
    assert told.json()["error"]["code"] == "model_not_found"


async def test_no_batches_under_a_budget(
    serve: Any, sections: dict[str, Any], upstream: ScriptedUpstream
) -> None:
    """What a batch will cost is not known: a key with a budget may make none."""
    headers = await make_key(sections, limits={"budgets_usd": {"day": 1}})
    async with upstream.serving() as base:
        model = {"openai": {"base_url": base, "model": "x", "endpoints": ["chat", "batches"]}}
        client = await serve({"one": model}, **sections)
        told = await client.post("/v1/batches", json={"input_file_id": "f"}, headers=headers)
    assert (told.status_code, told.json()["error"]["code"]) == (403, "forbidden")


async def test_a_spent_budget(
    serve: Any, chat: Any, sections: dict[str, Any], upstream: ScriptedUpstream
) -> None:
    """429 `insufficient_quota`, not to be retried; streams count as well."""
    headers = await make_key(sections, limits={"budgets_usd": {"total": 0.0002}})
    client = await serve(**sections)
    seen = []
    for _ in range(12):
        response = await chat(client, "one", headers=headers, max_tokens=20, stream=True)
        seen.append(response.status_code)
    assert seen[0] == 200
    assert seen[-1] == 429
    assert seen.count(200) * 23 <= 200
    assert response.json()["error"]["type"] == response.json()["error"]["code"] == "insufficient_quota"
    assert response.headers["x-should-retry"] == "false"


async def test_the_ledger_knows_all_and_says_nothing(
    serve: Any, chat: Any, sections: dict[str, Any], upstream: ScriptedUpstream, tmp_path: Path, until: Any
) -> None:
    """Good and bad requests have their rows; of prompt and answer there is not a word in any file."""
    upstream.default = Script(text=f"{CANARY} answer")
    headers = await make_key(sections, alias="a")
    client = await serve(**sections)
    messages = [{"role": "user", "content": CANARY}]
    body = {"messages": messages, "user": "u-1", "metadata": {"job": "nightly"}}
    for model in ("one", "nope"):
        await client.post("/v1/chat/completions", json={"model": model, **body}, headers=headers)
    path = tmp_path / "kept" / "ledger.db"

    def rows() -> list[Any]:
        if not path.exists():
            return []
        connection = sqlite3.connect(path)
        try:
            return connection.execute(
                "SELECT alias, user, metadata, requested, outcome, cost_nano FROM requests ORDER BY at"
            ).fetchall()
        except sqlite3.OperationalError:
            return []  # its tables are just being made
        finally:
            connection.close()

    await until(lambda: len(rows()) == 2)
    assert rows() == [
        ("a", "u-1", '{"job":"nightly"}', "one", "ok", 23_000),
        ("a", "u-1", '{"job":"nightly"}', "unknown", "model_not_found", 0),
    ]
    for file in path.parent.iterdir():
        assert CANARY.encode() not in file.read_bytes()


async def test_degraded_is_declared(serve: Any, chat: Any, tmp_path: Path, until: Any) -> None:
    """A gateway that cannot write its ledger stays ready, answers, and says so."""
    (tmp_path / "file").write_text("")
    client = await serve(state={"folder": str(tmp_path / "file")})
    assert (await chat(client, "one")).status_code == 200
    async with asyncio.timeout(10):
        while not (ready := (await client.get("/readyz")).json())["degraded"]:  # noqa: ASYNC110 - a thread's affair
            await asyncio.sleep(0.05)
    assert ready["status"] == "ready"
    assert "ledger" in ready["degraded"]


@pytest.fixture
async def admin(sections: dict[str, Any], tmp_path: Path) -> Any:
    """A client of the admin port."""
    listener = socket.create_server(("127.0.0.1", free_port()))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    api = AdminApi(settings_of(sections))
    async with (
        admin_server(listener, lambda: {"status": "ready"}, tmp_path, api),
        httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer sk-admin"}, verify=False) as client,
    ):
        yield client


async def test_admin_api(
    admin: httpx.AsyncClient, serve: Any, chat: Any, sections: dict[str, Any], until: Any
) -> None:
    """The life of a key over HTTP: made, used, changed, rotated, revoked, audited."""
    client = await serve(**sections)
    made = await admin.post("/admin/keys", json={"alias": "a", "limits": {"rpm": 100}})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    headers = {"authorization": f"Bearer {made.json()['secret']}"}
    assert (await chat(client, "one", headers=headers)).status_code == 200
    changed = await admin.patch("/admin/keys/a", json={"models": ["two"]})
    assert (changed.json()["models"], changed.json()["limits"]["rpm"]) == (["two"], 100)
    assert (await admin.post("/admin/keys/a/rotate", json={"colour": "red"})).status_code == 400
    rotated = await admin.post("/admin/keys/a/rotate", json={"grace_s": 0, "tags": ["x"]})
    assert (rotated.json()["tags"], rotated.json()["limits"]["rpm"]) == (["x"], 100)
    fresh = {"authorization": f"Bearer {rotated.json()['secret']}"}
    await asyncio.sleep(0.7)
    assert (await chat(client, "one", headers=headers)).status_code == 401
    assert (await chat(client, "one", headers=fresh)).status_code == 404
    assert (await admin.post("/admin/keys/a/revoke")).json()["state"] == "revoked"
    await asyncio.sleep(0.7)
    assert (await chat(client, "two", headers=fresh)).status_code == 401
    listed = (await admin.get("/admin/keys")).text
    assert "secret" not in listed
    assert "digest" not in listed
    deeds = [entry["action"] for entry in (await admin.get("/admin/audit")).json()["data"]]
    assert deeds == ["revoke", "rotate", "change", "create"]
    (line,) = (await admin.get("/admin/usage", params={"by": "key"})).json()["data"]
    assert line["key"] == "a"


async def test_a_bug_of_the_admin_port(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is told in OpenAI's shape, without a traceback, which stands in the log."""

    def status() -> dict[str, Any]:
        raise RuntimeError("sk-canary")

    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with admin_server(listener, status, tmp_path), httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "canary" not in answer.text
    assert "a bug of ours" in caplog.text


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"aliass": "a"}, "Unknown field 'aliass'; known: alias, owner, team, models"),
        ({"limits": {"rmp": 1}}, "Unknown field 'limits.rmp'; known: rpm, tpm, concurrent, budgets_usd."),
        ({"alias": 3}, "'alias': must be text."),
        (
            {"limits": {"budgets_usd": {"daily": 1}}},
            "'limits.budgets_usd.daily': must be 'day', 'week', 'month' or",
        ),
    ],
)
async def test_admin_says_what_is_wrong(admin: httpx.AsyncClient, body: dict[str, Any], told: str) -> None:
    """A field that is wrong or unknown is named, with what is accepted."""
    refused = await admin.post("/admin/keys", json=body)
    assert (refused.status_code, told in refused.json()["error"]["message"]) == (400, True)


async def test_every_admin_answer_has_an_id(admin: httpx.AsyncClient) -> None:
    """Also refusals; the server's make and version stay out of it."""
    for method, path, status in (("GET", "/livez", 200), ("GET", "/nope", 404), ("PUT", "/admin/keys", 405)):
        answer = await admin.request(method, path)
        assert answer.status_code == status
        assert answer.headers["x-request-id"].startswith("req_")
        assert "server" not in answer.headers
    assert set(answer.headers["allow"].split(",")) == {"GET", "HEAD", "POST"}
    mine = await admin.get("/livez", headers={"x-request-id": "mine-1"})
    assert mine.headers["x-request-id"] == "mine-1"


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer sk-wrong"}, {"authorization": "Basic sk-admin"}]
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/admin/keys"),
        ("POST", "/admin/keys"),
        ("GET", "/admin/keys/a"),
        ("PATCH", "/admin/keys/a"),
        ("POST", "/admin/keys/a/rotate"),
        ("POST", "/admin/keys/a/revoke"),
        ("GET", "/admin/audit"),
        ("GET", "/admin/usage"),
        ("GET", "/admin/live"),
        ("GET", "/admin/timeline"),
        ("GET", "/admin/savings"),
        ("GET", "/admin/requests"),
        ("GET", "/admin/requests/a"),
        ("GET", "/admin/requests/a/text"),
        ("GET", "/admin/frontier"),
        ("GET", "/admin/routers"),
        ("GET", "/admin/names"),
        ("GET", "/admin/budgets"),
        ("POST", "/admin/playground/models"),
        ("POST", "/admin/playground/chat"),
    ],
)
async def test_admin_needs_its_key(
    admin: httpx.AsyncClient, method: str, path: str, headers: dict[str, str]
) -> None:
    """Every route of the admin API is closed without the admin key; no other key opens it."""
    del admin.headers["authorization"]
    response = await admin.request(method, path, headers=headers)
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/admin/keys/none", 404),
        ("GET", "/admin/usage?by=prompt", 400),
        ("GET", "/admin/audit?limit=x", 400),
        ("DELETE", "/admin/keys", 405),
    ],
)
async def test_admin_errors(admin: httpx.AsyncClient, method: str, path: str, status: int) -> None:
    """Errors have OpenAI's shape here too."""
    response = await admin.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_admin_routes_are_all_tested(sections: dict[str, Any]) -> None:
    """A route added to the API is in the list above."""
    api = AdminApi(settings_of(sections))
    told = {(route.method, route.path.replace("{name}", "a")) for route in api.routes()}
    marks = test_admin_needs_its_key.pytestmark  # type: ignore[attr-defined]
    tested = next(set(mark.args[1]) for mark in marks if mark.args[0] == ("method", "path"))
    assert told == tested
    await api.close()
