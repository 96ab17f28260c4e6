"""Prompts and answers of keys that have them stored: whole on every surface, and of nobody else."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.scripted import Script, ScriptedUpstream
from gateway.admin import admin_server
from gateway.admin_api import AdminApi
from gateway.ports import bind
from tests.gateway.test_tenancy import make_key, settings_of

PROMPT, SAID = "canary-prompt", "canary answer, word by word"
SURFACES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": PROMPT}]},
    "/v1/completions": {"prompt": PROMPT},
    "/v1/messages": {"max_tokens": 9, "messages": [{"role": "user", "content": PROMPT}]},
    "/v1/responses": {"input": PROMPT},
}


@pytest.fixture
def sections(tmp_path: Path) -> dict[str, Any]:
    return {
        "keys": {"required": True, "pepper": "pepper", "admin": "sk-admin"},
        "state": {"folder": str(tmp_path / "kept")},
    }


@pytest.fixture
def ledger(sections: dict[str, Any]) -> Path:
    return Path(sections["state"]["folder"]) / "ledger.db"


@pytest.fixture
async def admin(sections: dict[str, Any], tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the admin port."""
    listener = bind("127.0.0.1", 0, "port")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    api = AdminApi(settings_of(sections))
    async with (
        admin_server(listener, lambda: {"status": "ready"}, tmp_path, api),
        httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer sk-admin"}, verify=False) as client,
    ):
        yield client


def rows(ledger: Path, statement: str) -> list[Any]:
    """None while the tables are just being made."""
    if not ledger.exists():
        return []
    with closing(sqlite3.connect(ledger)) as connection:
        try:
            return connection.execute(statement).fetchall()
        except sqlite3.OperationalError:
            return []


TEXTS = "SELECT requests.path, prompt, answer, cut FROM texts JOIN requests ON requests.id = request ORDER BY texts.at"


def words_in(answer: str) -> str:
    """The text of a whole answer of any surface."""
    body = json.loads(answer)
    match body.get("object") or body.get("type"):
        case "chat.completion":
            return str(body["choices"][0]["message"]["content"])
        case "text_completion":
            return str(body["choices"][0]["text"])
        case "message":
            return str(body["content"][0]["text"])
        case "response":
            return str(body["output"][0]["content"][0]["text"])
    raise AssertionError(answer)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", SURFACES)
async def test_every_surface(
    serve: Any,
    upstream: ScriptedUpstream,
    sections: dict[str, Any],
    ledger: Path,
    until: Any,
    path: str,
    stream: bool,
) -> None:
    """What was asked stands there as it was sent, what was answered as one body, streamed or not; of a key that has
    not asked for that nothing does."""
    upstream.default = Script(text=SAID)
    stored, plain = await make_key(sections, text_days=7), await make_key(sections)
    client = await serve(**sections)
    body = {"model": "one", "stream": stream, **SURFACES[path]}
    for headers in (plain, stored):
        assert (await client.post(path, json=body, headers=headers)).status_code == 200
    await until(lambda: len(rows(ledger, "SELECT 1 FROM requests")) == 2)
    ((where, prompt, answer, cut),) = rows(ledger, TEXTS)
    assert (where, json.loads(prompt), cut) == (path.removeprefix("/v1"), body, 0)
    assert words_in(answer) == SAID


async def test_what_did_not_end_well(
    serve: Any, upstream: ScriptedUpstream, sections: dict[str, Any], ledger: Path, until: Any
) -> None:
    """A refusal, a stream that broke and one whose reader left stand there as far as they came; a prompt of vectors is
    stored without them."""
    upstream.scripts = {
        "upstream-one": Script(text=SAID, reset_after=2),
        "upstream-two": Script(text=SAID, chunk_delay_s=0.05),
    }
    headers = await make_key(sections, text_days=7)
    client = await serve(resilience={"retries": 0}, **sections)
    ask = SURFACES["/v1/chat/completions"]
    await client.post("/v1/chat/completions", json={"model": "none", **ask}, headers=headers)
    await client.post("/v1/chat/completions", json={"model": "one", "stream": True, **ask}, headers=headers)
    body = {"model": "two", "stream": True, **ask}
    async with (
        client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer,
        aclosing(answer.aiter_bytes()) as data,
    ):
        await anext(data)
    await client.post("/v1/embeddings", json={"model": "two", "input": PROMPT}, headers=headers)
    await until(lambda: len(rows(ledger, TEXTS)) == 4)
    refused, broken, left, vectors = rows(ledger, TEXTS)
    assert all(PROMPT in row[1] for row in (refused, broken, left, vectors))
    assert json.loads(refused[2])["error"]["code"] == "model_not_found"
    assert "canary" in broken[2]
    assert '"error"' in broken[2]
    assert "canary" in left[2]
    assert vectors[2] is None


async def test_bounds(
    serve: Any, upstream: ScriptedUpstream, sections: dict[str, Any], ledger: Path, until: Any
) -> None:
    """No more is stored than the setting says, and that it was cut is told; callers are told all."""
    upstream.default = Script(text="word " * 3000)
    sections["ledger"] = {"max_text_kib": 1}
    headers = await make_key(sections, text_days=7)
    client = await serve(**sections)
    for stream in (False, True):
        ask = {"model": "one", "stream": stream, "messages": [{"role": "user", "content": "x" * 5000}]}
        told = await client.post("/v1/chat/completions", json=ask, headers=headers)
        assert told.text.count("word") == 3000
    await until(lambda: len(rows(ledger, TEXTS)) == 2)
    for _, prompt, answer, cut in rows(ledger, TEXTS):
        assert (len(prompt), len(answer), cut) == (1024, 1024, 1)


async def test_read_by_the_admin_alone(
    serve: Any, sections: dict[str, Any], ledger: Path, until: Any, admin: httpx.AsyncClient
) -> None:
    """The request tells that there is a text; who reads it stands in the audit log; switched off, it is gone from the
    file at once."""
    headers = await make_key(sections, alias="a", text_days=7)
    client = await serve(**sections)
    body = {"model": "one", **SURFACES["/v1/chat/completions"]}
    told = await client.post("/v1/chat/completions", json=body, headers=headers)
    id = told.headers["x-request-id"]
    await until(lambda: bool(rows(ledger, TEXTS)))
    found = (await admin.get(f"/admin/requests/{id}")).json()
    assert found["text"] is True
    assert PROMPT not in str(found)
    said = (await admin.get(f"/admin/requests/{id}/text")).json()
    assert PROMPT in said["prompt"]
    assert "word at a time" in said["answer"]
    (deed,) = (await admin.get("/admin/audit?limit=1")).json()["data"]
    assert (deed["action"], deed["request"]) == ("read text", said["request"])
    assert (await admin.get("/admin/requests/none/text")).status_code == 404
    changed = await admin.patch("/admin/keys/a", json={"text_days": None})
    assert changed.json()["text_days"] is None
    assert (await admin.get(f"/admin/requests/{id}/text")).status_code == 404
    for file in ledger.parent.iterdir():
        assert PROMPT.encode() not in file.read_bytes()
    await asyncio.sleep(0.7)
    await client.post("/v1/chat/completions", json=body, headers=headers)
    await until(lambda: len(rows(ledger, "SELECT 1 FROM requests")) == 2)
    assert rows(ledger, TEXTS) == []


@pytest.mark.parametrize(
    ("settings", "days", "status"),
    [
        ({}, 30, 201),
        ({}, 31, 400),
        ({}, 0, 400),
        ({"max_text_days": 0}, 1, 400),
        ({"retention_days": 5}, 6, 400),
        ({"enabled": False}, 1, 400),
    ],
)
async def test_the_bound_of_the_settings(
    sections: dict[str, Any], tmp_path: Path, settings: dict[str, Any], days: float, status: int
) -> None:
    """No key has more stored than the settings allow, whether made so or changed."""
    listener = bind("127.0.0.1", 0, "port")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    api = AdminApi(settings_of({**sections, "ledger": settings}))
    async with (
        admin_server(listener, lambda: {"status": "ready"}, tmp_path, api),
        httpx.AsyncClient(base_url=url, headers={"authorization": "Bearer sk-admin"}, verify=False) as admin,
    ):
        made = await admin.post("/admin/keys", json={"alias": "a", "text_days": days})
        assert made.status_code == status
        if status != 201:
            assert made.json()["error"]["param"] == "text_days"
            await admin.post("/admin/keys", json={"alias": "a"})
        changed = await admin.patch("/admin/keys/a", json={"text_days": days})
        assert changed.status_code == (200 if status == 201 else status)
