"""A gateway with a day behind it: its ledger holds requests of many hours, and more are made over HTTP."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from math import pi, sin
from pathlib import Path
from typing import Any

import httpx
import yaml

from backends.scripted import Script, ScriptedUpstream
from gateway.ids import Ids
from gateway.keys.key import Key
from gateway.ledger.entry import Entry
from gateway.ledger.sqlite_ledger import SqliteLedger
from gateway.ledger.writer import LedgerWriter
from protocol.run import Call, Trace
from protocol.usage import Usage
from tests.served import Served, Start

ROOT = Path(__file__).parents[2]
ADMIN_KEY = "sk-chorus-admin-of-the-scene"
SMALL, LARGE = "smollm2-135m", "gemma3-270m"
ANSWER = "Lima is the capital of Peru: it lies on the coast, and a third of the country lives there."
HOSTILE = "<img src=x onerror=alert(1)>"
DAY_S = 86_400.0

STRATEGIES: dict[str, Any] = {
    "auto": {
        "route": {
            "method": "knn-router",
            "artefact": str(ROOT / "config/artefacts/knn-router"),
            "embedder": "mini",
            "default": SMALL,
        }
    },
    "cautious": {
        "cascade": {
            "method": "token-uncertainty",
            "stages": [SMALL, LARGE],
            "artefact": str(ROOT / "config/artefacts/token-uncertainty"),
        }
    },
    "panel": {"aggregate": {"method": "agent-forest", "members": ["auto", LARGE], "samples": 1}},
}


def config(url: str, folder: Path) -> str:
    """Two priced models, one that always fails, and a strategy of each kind."""

    def model(name: str, read: float, written: float) -> dict[str, Any]:
        price = {"input_usd_per_token": read, "output_usd_per_token": written}
        return {"openai": {"base_url": url, "model": name}, "price": price}

    return yaml.safe_dump(
        {
            "models": {
                SMALL: model(SMALL, 1.5e-7, 6e-7),
                LARGE: model(LARGE, 2.5e-6, 1e-5),
                "broken": model("broken", 1e-6, 1e-6),
                "mini": {
                    "embedder": {"weights": "all-minilm-l6-v2-int8"},
                    "price": {"input_usd_per_token": 2e-9, "output_usd_per_token": 0},
                },
            },
            "strategies": STRATEGIES,
            "keys": {"required": True, "admin": ADMIN_KEY, "pepper": "pepper-of-the-scene"},
            "limits": {"teams": {"search": {"budgets_usd": {"day": 2.5}}}},
            "resilience": {"retries": 0},
            "state": {"folder": str(folder)},
        }
    )


def earlier(now: float, count: int, seed: int = 7) -> Iterator[Entry]:
    """Requests of the last twenty-two hours, more by day than by night; none in the last one."""
    dice, ids = random.Random(seed), Ids()
    keys = [
        Key("key_0a", alias="checkout", team="shop"),
        Key("key_0b", alias="search-api", team="search"),
        Key("key_0c", alias="nightly-eval", team="research"),
        Key("key_0d", alias=HOSTILE, team="support"),
    ]
    while count:
        at = now - dice.uniform(3700.0, 22 * 3600.0)
        if dice.random() > 0.55 + 0.45 * sin(at / DAY_S * 2 * pi - 1.7):
            continue
        count -= 1
        (key,) = dice.choices(keys, (5, 4, 2, 1))
        (name,) = dice.choices(("auto", "cautious", "panel", LARGE), (6, 3, 1, 1))
        yield _entry(ids.fresh(), at, key, name, dice)


def _entry(id: str, at: float, key: Key, name: str, dice: random.Random) -> Entry:
    large = dice.random() < 0.3
    decision: dict[str, Any] = {}
    calls = [_call(LARGE if large or name == LARGE else SMALL, dice, 0.02)]
    if name == "auto":
        quality = {SMALL: dice.uniform(0.35, 0.7), LARGE: dice.uniform(0.6, 0.9)}
        decision = {
            "router": "knn-router@scene",
            "chosen": calls[0].model,
            "reason": "best utility at quality 0.5",
            "estimates": {
                SMALL: {"quality": quality[SMALL], "cost_usd": 2.6e-4},
                LARGE: {"quality": quality[LARGE], "cost_usd": 4.1e-3},
            },
        }
    elif name == "cautious":
        calls = [_call(SMALL, dice, 0.0)]
        steps = [{"model": SMALL, "score": -0.4, "threshold": -0.85, "verdict": "accepted"}]
        if large:
            steps[0] |= {"score": -1.3, "verdict": "deferred"}
            calls.append(_call(LARGE, dice, calls[0].latency_s))
            steps.append({"model": LARGE, "verdict": "accepted"})
        decision = {"method": "token-uncertainty", "stages": steps, "accepted": calls[-1].model}
    elif name == "panel":
        calls = [_call(SMALL, dice, 0.01), _call(LARGE, dice, 0.01)]
        samples = [{"model": SMALL, "score": 0.4}, {"model": LARGE, "score": 0.6}]
        decision = {"method": "agent-forest", "samples": samples, "chosen": 1}
    failed = dice.random() < 0.02
    took = max(call.began_s + call.latency_s for call in calls) + 0.004
    trace = Trace(calls=[] if failed else calls, decision={} if failed else decision)
    label = "direct" if name == LARGE else name
    outcome = "upstream_server_error" if failed else "ok"
    return Entry(id, id, at, key, None, None, "/chat/completions", name, label, outcome, took, trace)


def _call(model: str, dice: random.Random, began_s: float) -> Call:
    usage = Usage(dice.randint(200, 1500), dice.randint(60, 500))
    read, written = (1.5e-7, 6e-7) if model == SMALL else (2.5e-6, 1e-5)
    cost = usage.prompt_tokens * read + usage.completion_tokens * written
    return Call(model, usage, cost, dice.lognormvariate(-0.6, 0.5), began_s=began_s)


@dataclass(slots=True)
class Scene:
    """A running gateway, what stands behind it, and its ledger."""

    served: Served
    upstream: ScriptedUpstream
    ledger: Path
    keys: dict[str, str]
    """Alias → secret."""

    @property
    def admin(self) -> str:
        return str(self.served.admin.base_url).rstrip("/")

    async def ask(self, name: str, alias: str = "alice", text: str = "What is the capital of Peru?") -> Any:
        """One chat request over the public port."""
        headers = {"authorization": f"Bearer {self.keys[alias]}"}
        body = {"model": name, "messages": [{"role": "user", "content": text}], "max_tokens": 64}
        async with httpx.AsyncClient(verify=False, timeout=30) as client:
            url = f"http://127.0.0.1:{self.served.port}/v1/chat/completions"
            return await client.post(url, json=body, headers=headers)

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """What the ledger holds, read past everything of ours."""
        with closing(sqlite3.connect(f"{self.ledger.as_uri()}?mode=ro", uri=True)) as connection:
            return connection.execute(statement, parameters).fetchall()

    async def written(self, count: int) -> None:
        """Wait until the ledger holds `count` requests."""
        async with asyncio.timeout(20):
            while self.rows("SELECT count(*) FROM requests")[0][0] < count:  # noqa: ASYNC110 - a thread's affair
                await asyncio.sleep(0.05)


EARLIER = 1200
TRAFFIC = ("auto", "auto", "cautious", "panel", LARGE, SMALL, "broken", "auto", "cautious", "panel")


@asynccontextmanager
async def a_scene(start: Start, folder: Path) -> AsyncIterator[Scene]:
    """The scene after its traffic."""
    ledger = folder / "ledger.db"
    writer = LedgerWriter(SqliteLedger(ledger))
    for entry in earlier(time.time(), EARLIER):
        writer.add(entry)
    writer.start()
    await asyncio.to_thread(writer.close)
    async with AsyncExitStack() as stack:
        scripts = {
            SMALL: Script(text=ANSWER, usage=Usage(210, 61), chunk_delay_s=0.004),
            LARGE: Script(text=ANSWER, usage=Usage(207, 140), delay_s=0.12, chunk_delay_s=0.008),
            "broken": Script(status=500),
        }
        upstream = ScriptedUpstream(scripts)
        url = await stack.enter_async_context(upstream.serving())
        served = await start(config(url, folder))
        await served.ready()
        scene = Scene(served, upstream, ledger, {})
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        for alias, team in (("alice", "search"), ("bob", "support")):
            order = {"alias": alias, "team": team, "limits": {"rpm": 600, "budgets_usd": {"day": 0.05}}}
            if alias == "alice":
                order["text_days"] = 7
            made = await served.admin.post("/admin/keys", json=order, headers=headers)
            scene.keys[alias] = made.json()["secret"]
        await asyncio.sleep(0.7)  # a running gateway notices new keys within that
        for number, name in enumerate(TRAFFIC):
            await scene.ask(
                name, ("alice", "bob")[number % 2], f"{HOSTILE} What is the capital of Peru, {number}?"
            )
        await scene.written(EARLIER + len(TRAFFIC))
        yield scene
