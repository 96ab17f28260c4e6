"""The dashboard's way in, over HTTP: what a browser, another site's page and a program may do."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.admin import admin_server
from gateway.admin_api import AdminApi
from gateway.dashboard.sessions import ROTATE_S, Sessions
from gateway.dashboard.site import POLICY, STATIC
from protocol.settings import parse_settings

ADMIN_KEY = "sk-admin-of-the-test"
SOON_S = ROTATE_S + 1


class Clock:
    at = 0.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def client(tmp_path: Path, clock: Clock) -> AsyncIterator[httpx.AsyncClient]:
    """A browser, as it were, on the admin port."""
    settings = {
        "models": {"m": {"openai": {"base_url": "http://127.0.0.1:9", "model": "m"}}},
        "keys": {"admin": ADMIN_KEY, "pepper": "pepper"},
        "state": {"folder": str(tmp_path / "state")},
        "server": {"port": 9, "trusted_proxies": ["127.0.0.1"]},
    }
    listener = socket.create_server(("127.0.0.1", 0))
    api = AdminApi(parse_settings(json.dumps(settings)))
    api.door.sessions = Sessions(clock)
    async with (
        admin_server(listener, dict, tmp_path, api),
        httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", verify=False, timeout=30
        ) as client,
    ):
        yield client


async def log_in(client: httpx.AsyncClient, **headers: str) -> str:
    """Begins a session; gives the token that writes must show."""
    told = await client.post("/admin/session", json={"key": ADMIN_KEY}, headers=headers)
    assert told.status_code == 201
    csrf: str = told.json()["csrf"]
    return csrf


async def test_writes_need_the_token(client: httpx.AsyncClient) -> None:
    """The cookie alone may read. To write, the session's own token must be shown; another session's is none."""
    csrf = await log_in(client)
    assert (await client.get("/admin/keys")).status_code == 200
    for headers in ({}, {"x-chorus-csrf": ""}, {"x-chorus-csrf": "x" * 43}, {"x-chorus-csrf": "ÿ".encode()}):
        refused = await client.post("/admin/keys", json={"alias": "a"}, headers=headers)
        assert refused.status_code == 403
    made = await client.post("/admin/keys", json={"alias": "a"}, headers={"x-chorus-csrf": csrf})
    assert made.status_code == 201
    audit = (await client.get("/admin/audit")).json()["data"]
    assert [deed["actor"] for deed in audit] == ["dashboard:127.0.0.1"]
    assert (await client.delete("/admin/session")).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
async def test_pages_of_others_write_nothing(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    """Not even with cookie and token, and they begin no session."""
    csrf = await log_in(client)
    for method, path, body in (
        ("POST", "/admin/keys", {"alias": "a"}),
        ("POST", "/admin/session", {"key": ADMIN_KEY}),
        ("DELETE", "/admin/session", None),
    ):
        told = await client.request(method, path, json=body, headers={**headers, "x-chorus-csrf": csrf})
        assert told.status_code == 403, path
    own = str(client.base_url).rstrip("/")
    fine = {"origin": own, "sec-fetch-site": "same-origin", "x-chorus-csrf": csrf}
    assert (await client.post("/admin/keys", json={"alias": "a"}, headers=fine)).status_code == 201


async def test_the_cookie_is_hardened(client: httpx.AsyncClient, clock: Clock) -> None:
    """No script reads it, no other site sends it, it ends; behind TLS it is bound to this host. It changes while it is
    used, and a logout ends every one of its tokens."""
    plain = await client.post("/admin/session", json={"key": ADMIN_KEY})
    told = plain.headers["set-cookie"]
    assert all(
        word in told for word in ("chorus-session=", "HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=28800")
    )
    assert "Secure" not in told
    tls = await client.post("/admin/session", json={"key": ADMIN_KEY}, headers={"x-forwarded-proto": "https"})
    assert tls.headers["set-cookie"].startswith("__Host-chorus-session=")
    assert "Secure" in tls.headers["set-cookie"]
    client.cookies.clear()
    csrf = await log_in(client)
    first = client.cookies["chorus-session"]
    clock.at += SOON_S
    assert (await client.get("/admin/keys")).status_code == 200
    second = client.cookies["chorus-session"]
    assert first != second
    ended = await client.delete("/admin/session?all=1", headers={"x-chorus-csrf": csrf})
    assert ended.status_code == 200
    for token in (first, second):
        assert (
            await client.get("/admin/keys", headers={"cookie": f"chorus-session={token}"})
        ).status_code == 401


async def test_a_wrong_key_is_refused_and_slowed(client: httpx.AsyncClient) -> None:
    """Ten guesses a minute, then even the right one waits; the programs' way stays open."""
    for key in (None, 1, "", "sk-wrong", *["guess"] * 6):
        told = await client.post("/admin/session", content=json.dumps({"key": key}))
        assert told.status_code == 401
        assert "set-cookie" not in told.headers
    told = await client.post("/admin/session", json={"key": ADMIN_KEY})
    assert told.status_code == 429
    assert int(told.headers["retry-after"]) >= 1
    bearer = {"authorization": f"Bearer {ADMIN_KEY}"}
    assert (await client.get("/admin/keys", headers=bearer)).status_code == 200


async def test_headers(client: httpx.AsyncClient) -> None:
    """Every page and every answer is for this origin alone and cannot be framed; figures are kept by nobody."""
    for path in (
        "/",
        "/dashboard/",
        "/dashboard/app.js",
        "/dashboard/none.js",
        "/admin/keys",
        "/admin/session",
    ):
        told = await client.get(path)
        assert told.headers["content-security-policy"] == POLICY, path
        assert told.headers["x-frame-options"] == "DENY", path
        assert told.headers["x-content-type-options"] == "nosniff", path
        assert told.headers["referrer-policy"] == "no-referrer", path
        kept = "no-cache" if path.startswith("/dashboard/") and told.status_code == 200 else "no-store"
        assert told.headers["cache-control"] == kept, path
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY
    assert "content-security-policy" not in (await client.get("/metrics")).headers


async def test_only_shipped_files(client: httpx.AsyncClient) -> None:
    """Every file of the folder, unchanged, and nothing outside of it; unchanged ones are not sent again."""
    for path in STATIC.iterdir():
        told = await client.get(f"/dashboard/{path.name}")
        assert told.content == path.read_bytes()
        again = await client.get(f"/dashboard/{path.name}", headers={"if-none-match": told.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for path in ("site.py", "..%2fsite.py", "%2e%2e/site.py", "../admin_api.py", "%00", "index.html%00.js"):
        assert (await client.get(f"/dashboard/{path}")).status_code == 404


def test_the_page_has_nothing_inline() -> None:
    """No script, style or handler in the markup, no address of another host, and no way to make markup of text."""
    page = (STATIC / "index.html").read_text()
    assert "<style" not in page
    assert " on" not in page.lower().replace(" on the", "")
    assert "style=" not in page
    for path in STATIC.iterdir():
        text = path.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "sessionStorage",
        ):
            assert word not in text, path.name
        assert "//" not in text.replace("http://www.w3.org/2000/svg", "").replace("// ", ""), path.name


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/admin/live?minutes=0", 400),
        ("/admin/live?minutes=x", 400),
        ("/admin/live?minutes=²", 400),
        ("/admin/timeline?by=prompt", 400),
        ("/admin/savings?against=nobody", 400),
        ("/admin/savings?against=nobody&by=prompt", 400),
        ("/admin/timeline?minutes=999999999999", 400),
        ("/admin/requests?before=x", 400),
        ("/admin/requests?limit=201", 400),
        ("/admin/requests/none", 404),
        ("/admin/requests?key=';DROP TABLE requests", 200),
        ("/admin/requests?before=nan,x", 200),
    ],
)
async def test_odd_questions(client: httpx.AsyncClient, path: str, status: int) -> None:
    """They are refused in the usual shape, or are about nothing."""
    told = await client.get(path, headers={"authorization": f"Bearer {ADMIN_KEY}"})
    assert told.status_code == status
    if status >= 400:
        assert set(told.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("key", ["sk-a b", "sk-a\r\nx-evil: 1", 7, "\udcff", "x" * 600])
async def test_a_playground_key_is_a_key(client: httpx.AsyncClient, key: Any) -> None:
    """Nothing else gets into a header; and the admin's own is used for nobody."""
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    body = json.dumps({"key": key, "request": {"model": "m", "messages": []}})
    for path in ("/admin/playground/chat", "/admin/playground/models"):
        assert (await client.post(path, content=body, headers=headers)).status_code == 400
    away = await client.post("/admin/playground/chat", json={"request": {}}, headers=headers)
    assert away.json()["error"]["code"] == "gateway_unreachable"
