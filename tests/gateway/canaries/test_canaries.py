"""Secrets and words, driven through every route and kind of failure of a real `chorus serve`, then looked for in all
that it writes, keeps or tells: logs, errors, headers, metrics, spans, ledger, shared state, admin API, doctor.

The redaction of logs and spans is switched off meanwhile (`sitecustomize.py`): nothing may get that far.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from gateway.passing import RELAYS
from gateway.surfaces import SURFACES
from protocol.redaction import Redaction
from tests.gateway.tracing.collector import Collector
from tests.raw_upstream import SSE, RawUpstream, Recorded, Seen, recorded
from tests.redis_server import RedisServer

ROOT = Path(__file__).parents[3]
SERVE = "from gateway.cli import main; main()"

SECRETS = {
    "upstream key": "canary-upstream-key-5f1c",
    "master key": "canary-master-key-77aa",
    "admin key": "canary-admin-key-9e20",
    "pepper": "canary-pepper-31d5",
    "collector key": "canary-collector-key-c0de",
    "client header": "canary-client-header-64b2",
    "wrong key": "sk-canary-wrong-key-08f3",
    "path": "canary-path-1b7d",
    "baggage": "canary-baggage-2c9e",
}
"""What may stand nowhere at all but in what is sent upstream or to the collector's door."""

WORDS = {
    "prompt": "canary-prompt-d3ad",
    "answer": "canary-answer-beef",
    "backend": "canary-upstream-words-e1e1",
    "unknown model": "canary-unknown-model-4f4f",
}
"""What may stand in the answer to who sent or asked for it, and nowhere else."""

PAGES = (
    "/admin/keys",
    "/admin/keys/canary",
    "/admin/audit",
    "/admin/usage",
    "/status",
    "/metrics",
    "/readyz",
)
KINDS = ("ok", "400", "401", "403", "404", "422", "429", "500", "503", "event", "garbage", "cut", "hang")
FEW = ("ok", "400", "500", "hang")
ENDPOINTS = [
    "chat", "completions", "embeddings", "messages", "responses", "images", "audio", "moderations", "files", "batches",
]  # fmt: skip
FORM = (
    b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nnative\r\n'
    b'--b\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n'
    + WORDS["prompt"].encode()
    + b"\r\n--b--\r\n"
)


@dataclass
class Sinks:
    """`public`: everything that anybody may read: nothing may stand there. `answers`: what callers were told."""

    public: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, *data: bytes) -> None:
        self.public[name] = self.public.get(name, b"") + b"\n".join(data)

    def answer(self, name: str, response: httpx.Response) -> None:
        told = {k: v for k, v in response.headers.items() if k not in ("x-request-id", "request-id")}
        self.add("headers", str(told).encode())
        self.answers[name] = self.answers.get(name, b"") + response.content

    def leaks(self, secrets: Mapping[str, str]) -> set[tuple[str, str]]:
        """Which canary stands where, as (sink, canary)."""
        found = {
            (sink, name)
            for sink, data in self.public.items()
            for name, canary in {**secrets, **WORDS}.items()
            if canary.encode() in data
        }
        return found | {
            (f"answer to {sink}", name)
            for sink, data in self.answers.items()
            for name, canary in secrets.items()
            if canary.encode() in data
        }


def echoing(seen: Seen) -> Recorded:
    """A backend that answers as the prompt asks, and repeats all that it was sent wherever it can."""
    told = f"{WORDS['backend']} {dict(seen.headers)} {seen.raw.decode(errors='replace')}"
    kind = next((kind for kind in KINDS if f"[{kind}]".encode() in seen.raw), "ok")
    error = {"message": told, "type": told, "code": told, "param": told}
    if kind.isdigit():
        return recorded({"error": error, "type": "error"}, status=int(kind), headers={"x-leak": "canary"})
    if kind == "garbage":  # on a relay that is an answer, which is passed on unread
        relay = ("POST", seen.path.partition("?")[0]) not in SURFACES
        return recorded((WORDS["backend"] if relay else told).encode(), content_type="text/html")
    if kind == "event":
        return recorded(f"data: {json.dumps({'error': error})}\n\n".encode(), content_type=SSE)
    answer = WORDS["answer"]
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    if b'"stream":true' in seen.raw.replace(b" ", b""):
        chunk = {
            "id": "x",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "delta": {"content": answer}}],
        }
        cut = [] if kind == "cut" else [b"data: [DONE]\n\n"]
        return recorded(f"data: {json.dumps(chunk)}\n\n".encode(), *cut, content_type=SSE)
    body = {
        "id": "x", "model": "m", "object": "chat.completion", "usage": usage, "system_fingerprint": "fp",
        "choices": [{"message": {"role": "assistant", "content": answer}, "text": answer, "finish_reason": "stop"}],
        "data": [{"embedding": [1.0], "index": 0}], "content": [{"type": "text", "text": answer}],
        "output": [], "type": "message", "role": "assistant",
    }  # fmt: skip
    return recorded(body)


class Echoing(RawUpstream):
    """That backend; it can also be slower than anybody waits."""

    def __init__(self) -> None:
        super().__init__()
        for path in [
            *(f"/v1{relay.path.replace('{id}', 'some-id')}" for relay in RELAYS),
            *(p for _, p in SURFACES),
        ]:
            self.answers[path] = echoing

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if b"[hang]" in await request.read():
            await asyncio.sleep(1.5)
            raise web.HTTPGatewayTimeout  # nobody is there any more
        return await super()._answer(request)


class Canaries:
    """One gateway with canaries everywhere, and all that it lets out."""

    def __init__(
        self, folder: Path, upstream: RawUpstream, collector: Collector, environ: dict[str, str]
    ) -> None:
        self.folder, self.upstream, self.collector, self.environ = folder, upstream, collector, environ
        self.sinks, self.secrets = Sinks(), dict(SECRETS)

    async def serve(self, base: str, **sections: Any) -> None:
        there = {
            "base_url": base,
            "model": "theirs",
            "api_key": SECRETS["upstream key"],
            "first_token_timeout_s": 0.4,
        }
        self.config = {
            "models": {
                "plain": {"openai": {**there, "timeout_s": 0.4}},
                "native": {"openai": {**there, "timeout_s": 0.4, "endpoints": ENDPOINTS}},
                "other": {"openai": there, "fallbacks": ["plain"]},
            },
            "strategies": {"vote": {"aggregate": {"members": ["plain", "native"], "samples": 1}}},
            "server": {"master_key": SECRETS["master key"], "port": _free(), "admin_port": _free()},
            "keys": {"admin": SECRETS["admin key"], "pepper": SECRETS["pepper"]},
            "limits": {"models": {"native": {"rpm": 100000}}},
            "resilience": {"retries": 1, "backoff_s": 0.01, "breaker_failures": 1000000},
            "state": {"folder": str(self.folder / "state")},
            "logging": {"format": "json", "level": "debug"},
            "telemetry": {
                "endpoint": self.collector.url,
                "headers": {"x-key": SECRETS["collector key"]},
                "metrics_interval_s": 1,
            },
            **sections,
        }
        path = self.folder / "config.yaml"
        path.write_text(json.dumps(self.config))
        with (self.folder / "stdout").open("wb") as stdout, (self.folder / "stderr").open("wb") as stderr:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", SERVE, "serve", str(path)),
                stdin=DEVNULL, stdout=stdout, stderr=stderr, env=self.environ, cwd=self.folder,
            )  # fmt: skip
        server = self.config["server"]
        self.public, self.admin = (f"http://127.0.0.1:{server[name]}" for name in ("port", "admin_port"))
        async with asyncio.timeout(60), httpx.AsyncClient(verify=False) as client:
            while True:
                assert self.process.returncode is None, (self.folder / "stderr").read_text()
                with suppress(httpx.TransportError):
                    if (await client.get(f"{self.admin}/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.1)

    async def drive(self, kinds: Sequence[str], **order: Any) -> None:
        """Every route, all `kinds` of failure, and the admin API, with a key of this `order`."""
        admin = {"authorization": f"Bearer {SECRETS['admin key']}"}
        async with httpx.AsyncClient(verify=False, timeout=20, base_url=self.admin, headers=admin) as client:
            made = await client.post("/admin/keys", json={"alias": "canary", "team": "birds", **order})
            assert made.status_code == 201, made.text
            self.secrets["virtual key"] = key = made.json()["secret"]
            await self._ask(key, kinds)
            for path in PAGES:
                self.sinks.add(f"admin {path}", (await client.get(path)).content)
            for wrong in (
                {"authorization": f"Bearer {SECRETS['wrong key']}"},
                {"authorization": f"Basic {key}"},
            ):
                self.sinks.answer("admin refusal", await client.get("/admin/keys", headers=wrong))
            self.sinks.answer(
                "admin fault", await client.post("/admin/keys", json={"alias": 5, "x": SECRETS["path"][::-1]})
            )
            await client.post("/admin/keys/canary/revoke")

    async def _ask(self, key: str, kinds: Sequence[str]) -> None:
        headers = {
            "authorization": f"Bearer {key}",
            "x-mine": SECRETS["client header"],
            "cookie": SECRETS["client header"],
            "user-agent": SECRETS["client header"],
            "x-session-id": SECRETS["client header"],
            "x-chorus-strategy": SECRETS["client header"],
            "baggage": f"who={SECRETS['baggage']}",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }
        async with httpx.AsyncClient(
            verify=False, timeout=20, base_url=self.public, headers=headers
        ) as client:
            limit = asyncio.Semaphore(16)

            async def send(name: str, method: str, path: str, **fields: Any) -> None:
                async with limit:
                    self.sinks.answer(name, await client.request(method, path, **fields))

            async with asyncio.TaskGroup() as group:
                for kind in kinds:
                    for _, path in SURFACES:
                        for model, stream in (
                            ("plain", False),
                            ("native", True),
                            ("other", True),
                            ("vote", False),
                        ):
                            body = _body(model, kind, stream and "embeddings" not in path)
                            group.create_task(send(f"{kind} {path}", "POST", path, json=body))
                for relay in RELAYS:
                    path = f"/v1{relay.path.replace('{id}', 'some-id')}"
                    for kind in {"ok", "400", "401", "500", "garbage"}.intersection(kinds):
                        if relay.body == "form":
                            form = {"content-type": "multipart/form-data; boundary=b"}
                            fields: Any = {
                                "content": FORM.replace(b"canary-prompt", f"[{kind}] canary-prompt".encode()),
                                "headers": form,
                            }
                        elif relay.body == "json":
                            fields = {"json": _body("native", kind, False)}
                        else:
                            fields = {"params": {"model": "native", "order": WORDS["prompt"]}}
                        group.create_task(send(f"{kind} {path}", relay.method, path, **fields))
                ask = _body("plain", "ok", False)
                for name, body in {
                    "unknown": {**ask, "model": WORDS["unknown model"]},
                    "bad field": {**ask, "temperature": WORDS["prompt"]},
                    "late": {**ask, "chorus": {"deadline_ms": 1}},
                    "poor": {**ask, "chorus": {"max_cost_usd": 1e-12}},
                }.items():
                    group.create_task(send(name, "POST", "/v1/chat/completions", json=body))
                broken = json.dumps(ask).encode()[:-9]
                group.create_task(send("broken", "POST", "/v1/chat/completions", content=broken))
                for wrong in (f"Bearer {SECRETS['wrong key']}", f"Basic {key}", key):
                    told = {"authorization": wrong}
                    group.create_task(send("refused", "POST", "/v1/messages", json=ask, headers=told))
                    group.create_task(send("refused", "GET", "/v1/models", headers=told))
                for method in ("GET", "PUT"):
                    group.create_task(send("405", method, "/v1/chat/completions"))
                for path in ("/v1/models", "/v1/models/plain", "/metrics", "/readyz", "/openapi.json"):
                    group.create_task(send(path, "GET", path))
            # Told nobody but who asked for it.
            response = await client.get(f"/v1/{SECRETS['path']}", params={"q": SECRETS["path"]})
            assert response.status_code == 404
            self.sinks.add("metrics", (await client.get("/metrics")).content)
            leaving = asyncio.create_task(
                client.post("/v1/chat/completions", json=_body("plain", "hang", False))
            )
            await asyncio.sleep(0.1)
            leaving.cancel()

    async def gather(self, commands: Sequence[str]) -> None:
        """Stop it, and collect what it wrote and kept, and what our `commands` tell of it."""
        if self.process.returncode is None:
            self.process.terminate()
        async with asyncio.timeout(40):
            await self.process.wait()
        for name in ("stdout", "stderr"):
            self.sinks.add(name, (self.folder / name).read_bytes())
        self.sinks.add("OTLP", *self.collector.raw)
        for file in sorted((self.folder / "state").rglob("*")):
            if file.is_file() and file.name != "pepper":
                self.sinks.add(f"state {file.name}", file.read_bytes())
        for command in commands:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", SERVE, command, str(self.folder / "config.yaml")),
                stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=self.environ, cwd=self.folder,
            )  # fmt: skip
            self.sinks.add(f"chorus {command}", *(await process.communicate()))


def _body(model: str, kind: str, stream: bool) -> dict[str, Any]:
    words = f"[{kind}] {WORDS['prompt']}"
    return {
        "model": model, "stream": stream, "max_tokens": 9, "input": words, "prompt": words, "user": "somebody",
        "messages": [{"role": "user", "content": words}], "chorus": {"explain": True},
    }  # fmt: skip


def _free() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
async def canaries(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Drives a gateway and gives what leaked."""
    upstream, collector = Echoing(), Collector()
    paths = f"{Path(__file__).parent}{os.pathsep}{ROOT}"
    environ = {**os.environ, "PYTHONPATH": paths, "CHORUS_CANARIES": "1", "TMPDIR": str(tmp_path)}
    started: list[Canaries] = []
    async with upstream.serving() as base, collector.serving():

        async def run(
            kinds: Sequence[str],
            *,
            sabotage: bool = False,
            order: Mapping[str, Any] | None = None,
            **sections: Any,
        ) -> Canaries:
            made = Canaries(
                tmp_path, upstream, collector, environ | ({"CHORUS_SABOTAGE": "1"} if sabotage else {})
            )
            started.append(made)
            await made.serve(base, **sections)
            await made.drive(kinds, **(order or {}))
            await made.gather(() if sabotage else ("doctor", "check"))
            return made

        yield run
        for made in started:
            if made.process.returncode is None:
                made.process.kill()
                await made.process.wait()


def _everything_was_seen(made: Canaries) -> None:
    """The run reached what it looks at: nothing is clean for being empty."""
    sinks = made.sinks.public
    lines = [json.loads(line) for line in sinks["stderr"].splitlines()]
    access = [line for line in lines if line["logger"] == "chorus.access"]
    assert len(access) > 100
    outcomes = {"ok", "model_not_found", "upstream_broken", "upstream_timeout", "cancelled"}
    assert outcomes <= {line["outcome"] for line in access}
    assert all(line["request_id"] and line["trace_id"] for line in access if "/v1/chat" in line["path"])
    assert all(line["path"] != f"/v1/{SECRETS['path']}" for line in access)
    assert b"invoke_workflow" in sinks["OTLP"]
    assert b"gen_ai.client.token.usage" in sinks["OTLP"]
    assert b"chorus_requests_total" in sinks["metrics"]
    assert b"birds" in sinks["admin /admin/keys"]
    assert b"plain" in sinks["chorus check"]
    assert b"telemetry" in sinks["chorus doctor"]
    assert any(SECRETS["upstream key"] in str(seen.headers) for seen in made.upstream.seen)


async def test_nothing_leaks(canaries: Any) -> None:
    """No key, word, header or path of anybody's stands anywhere, without any help from redaction."""
    made = await canaries(KINDS)
    _everything_was_seen(made)
    assert b"/chat/completions" in made.sinks.public["state ledger.db"]
    assert made.sinks.leaks(made.secrets) == set()


async def test_what_a_key_has_stored_is_in_the_ledger_alone(canaries: Any) -> None:
    """With a key that has its prompts and answers stored they stand there, and nowhere else; no secret does."""
    made = await canaries(FEW, order={"text_days": 7})
    _everything_was_seen(made)
    leaks = made.sinks.leaks(made.secrets)
    assert {("state ledger.db", "prompt"), ("state ledger.db", "answer")} <= leaks
    assert {sink for sink, _ in leaks} == {"state ledger.db"}
    assert {name for _, name in leaks} <= set(WORDS)


@pytest.mark.requires("redis-server")
async def test_nothing_leaks_into_redis(canaries: Any, start_redis: Any) -> None:
    """Nor do they in Redis: neither in names nor in values."""
    redis: RedisServer = await start_redis()
    made = await canaries(FEW, redis={"url": redis.url})
    made.sinks.add("redis", await _dumped(redis))
    _everything_was_seen(made)
    assert b"birds" in made.sinks.public["redis"]
    assert made.sinks.leaks(made.secrets) == set()


async def test_it_bites(canaries: Any) -> None:
    """A gateway that leaks on purpose is caught at every leak; and redaction would have caught the keys in its log."""
    made = await canaries(FEW, sabotage=True)
    leaks = made.sinks.leaks(made.secrets)
    assert {
        ("stderr", "virtual key"),
        ("stderr", "client header"),
        ("stderr", "wrong key"),
        ("OTLP", "prompt"),
        ("state ledger.db", "prompt"),
        ("metrics", "prompt"),
        ("answer to 400 /v1/chat/completions", "upstream key"),
    } <= leaks
    log = made.sinks.public["stderr"].decode()
    redacted = Redaction().text(log)
    assert made.secrets["virtual key"] not in redacted
    assert SECRETS["wrong key"] not in redacted


async def _dumped(server: RedisServer) -> bytes:
    """Every key of a Redis, with its value in Redis's own serialisation."""
    import redis.asyncio

    client = redis.asyncio.Redis(unix_socket_path=f"{server.folder}/redis.sock")
    try:
        found = b""
        async for key in client.scan_iter():
            kind = (await client.type(key)).decode()
            value: Any = {
                "string": client.get, "hash": client.hgetall, "set": client.smembers,
                "zset": lambda name: client.zrange(name, 0, -1), "list": lambda name: client.lrange(name, 0, -1),
                "stream": client.xrange,
            }[kind](key)  # fmt: skip
            found += key + b" " + repr(await value).encode() + b"\n"
        return found
    finally:
        await client.aclose()
