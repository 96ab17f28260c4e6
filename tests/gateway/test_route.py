"""Routers as callers meet them: `/v1/route`, RouteLLM's names, and models that lack what a request needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from backends.scripted import ScriptedUpstream
from gateway.abilities import make_lacks
from outcomes.artefact import annotate
from outcomes.assignment import Knob
from outcomes.table import OutcomeTable, query_id
from protocol.settings import parse_settings
from routers.knn_router import KnnRouter
from routers.stacking import Stacking

ASK = {"messages": [{"role": "user", "content": "ab"}]}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """A router that sends short asks to `weak` and long ones to `strong`: the scripted embedding is (length, 3, 4)."""
    vectors = np.array([[1, 3, 4], [40, 3, 4]], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    score = np.array([[0.8, 0.8], [0.0, 0.9]])
    cost = np.full((2, 2), [1e-6, 9e-6])
    table = OutcomeTable.of_matrices(("weak", "strong"), ["short", "long"], score, cost, embeddings=vectors)
    KnnRouter(1).fit(table).save(tmp_path / "router")
    annotate(tmp_path / "router", embedder="upstream-e", knob=Knob((0.5,), (1e4,)).wire())
    return tmp_path / "router"


@pytest.fixture
async def client(serve: Any, artefact: Path) -> httpx.AsyncClient:
    """A gateway with that router by two rules, and a router that asks the first."""
    route = {"artefact": str(artefact), "embedder": "e", "default": "weak"}
    threshold = {"threshold": {"strong": "strong", "weak": "weak", "alpha": 0.9}}
    return await serve(  # type: ignore[no-any-return]
        {"weak": {"lacks": ["tools"], "context_length": 50}, "strong": {}, "e": {}},
        configured={"auto": {"route": route}, "choosy": {"route": {**route, "policy": threshold}}},
    )


async def _routed(client: httpx.AsyncClient, model: str, **fields: Any) -> Mapping[str, Any]:
    answer = await client.post("/v1/route", json={"model": model, **ASK, **fields})
    assert answer.status_code == 200, answer.text
    told: Mapping[str, Any] = answer.json()
    assert answer.headers["x-chorus-model"] == told["model"]
    return told


async def test_route_asks_no_model(client: httpx.AsyncClient, upstream: ScriptedUpstream) -> None:
    """The decision is told, with what it cost and, on request, what it rests on; only the embedder was asked."""
    told = await _routed(client, "auto", chorus={"explain": True})
    assert (told["object"], told["model"], told["strategy"]) == ("chorus.route", "weak", "auto")
    assert told["cost_usd"] > 0
    assert set(told["decision"]["estimates"]) == {"weak", "strong"}
    (neighbour,) = told["decision"]["reasons"]["neighbours"]
    assert neighbour["scores"] == {"weak": 0.8, "strong": 0.8}
    assert neighbour["id"] == query_id("short")
    assert "short" not in str(told), "no stored text is told"
    assert len(upstream.seen) == 1, "what the reasons need is embedded once"
    long = await _routed(client, "auto", messages=[{"role": "user", "content": "long " * 8}])
    assert long["model"] == "strong"
    assert "decision" not in long
    assert {seen.body["model"] for seen in upstream.seen} == {"upstream-e"}


async def test_reasons_of_a_router_that_stores_no_queries(serve: Any, tmp_path: Path) -> None:
    """Stacking tells what each of its estimators adds to a model's quality, and which category it takes the ask for."""
    length = np.random.default_rng(0).integers(1, 60, 80)
    vectors = np.stack([length, np.full(80, 3), np.full(80, 4)], axis=1).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    score = np.stack([length < 20, length > 10], axis=1).astype(float)
    texts = [f"{'secret ' * n}{i}" for i, n in enumerate(length)]
    table = OutcomeTable.of_matrices(
        ("weak", "strong"), texts, score, np.full((80, 2), [1e-6, 9e-6]),
        embeddings=vectors, categories=["long" if n >= 20 else "short" for n in length],
    )  # fmt: skip
    Stacking(trees=10, rank=4).fit(table).save(tmp_path / "stack")
    annotate(tmp_path / "stack", embedder="upstream-e", knob=Knob((0.5,), (1e4,)).wire())
    route = {"method": "stacking", "artefact": str(tmp_path / "stack"), "embedder": "e", "default": "weak"}
    client = await serve({"weak": {}, "strong": {}, "e": {}}, configured={"auto": {"route": route}})
    told = await _routed(client, "auto", chorus={"explain": True})
    reasons = told["decision"]["reasons"]
    adds = [member["adds"]["weak"] for member in reasons["members"].values()]
    caution = 0 if reasons["incumbent"] == "weak" else reasons["caution"]
    assert told["decision"]["estimates"]["weak"]["quality"] == pytest.approx(sum(adds) - caution, abs=1e-3)
    assert max(reasons["categories"], key=reasons["categories"].get) == "short"
    assert "secret" not in str(told)
    assert "reasons" not in (await _routed(client, "auto")).get("decision", {})


async def test_route_of_what_decides_nothing(client: httpx.AsyncClient) -> None:
    """A plain model is its own answer; an unknown one is a 404; a broken request a 400."""
    assert (await _routed(client, "strong"))["model"] == "strong"
    assert (await client.post("/v1/route", json={"model": "nobody", **ASK})).status_code == 404
    assert (await client.post("/v1/route", json={"model": "auto"})).status_code == 400
    assert (await client.get("/v1/route")).status_code == 405


async def test_routellm_names(client: httpx.AsyncClient) -> None:
    """`router-NAME-THRESHOLD` asks the router of that name or method, with that threshold: equal estimates are a
    chance of one half."""
    for name in ("choosy", "knn", "knn-router"):
        assert (await _routed(client, f"router-{name}-0.5"))["model"] == "strong"
        assert (await _routed(client, f"router-{name}-0.51"))["model"] == "weak"
    answer = await client.post("/v1/chat/completions", json={"model": "router-knn-0.5", **ASK})
    assert answer.headers["x-chorus-strategy"] == "choosy"
    assert answer.headers["x-chorus-model"] == "strong"
    assert (await _routed(client, "choosy", chorus={"threshold": 0.5}))["model"] == "strong"
    assert (await _routed(client, "choosy"))["model"] == "weak"
    for wrong in ("router-auto-0.5", "router-knn-", "router-knn-x"):
        assert (await client.post("/v1/route", json={"model": wrong, **ASK})).status_code == 404
    for high in ("router-knn-7", "router-knn-1.01"):
        refused = await client.post("/v1/route", json={"model": high, **ASK})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    refused = await client.post("/v1/route", json={"model": "auto", **ASK, "chorus": {"threshold": 0.5}})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "chorus.threshold"


async def test_models_that_cannot(client: httpx.AsyncClient) -> None:
    """What the chosen model would lack goes to one that has it: tools, or room for the prompt and the answer."""
    assert (await _routed(client, "auto"))["model"] == "weak"
    assert (await _routed(client, "auto", tools=TOOLS))["model"] == "strong"
    assert (await _routed(client, "auto", max_tokens=60))["model"] == "strong"
    explained = await _routed(client, "auto", tools=TOOLS, chorus={"explain": True})
    assert explained["decision"]["reason"] == "of those with tools, the only candidate"
    assert explained["decision"]["left_out"] == {"weak": "tools"}


def test_what_is_known_to_be_lacking() -> None:
    """Engine models read and write text only; a strategy lacks what any of those lacks whom it has to ask."""
    lacks = make_lacks(
        parse_settings(
            """
models:
  engine: {engine: {weights: x}}
  able: {openai: {base_url: "http://127.0.0.1:9/v1", model: x}}
  blind: {openai: {base_url: "http://127.0.0.1:9/v1", model: x}, lacks: [images]}
strategies:
  vote: {aggregate: {members: [able, blind]}}
  duet: {fuse: {members: {engine: 1}}}
"""
        )
    )
    image = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    found = lacks(["engine", "able", "blind", "vote", "duet", "nobody"], image)
    assert found == ["images", None, "images", "images", "images", None]
    long = {"messages": [{"role": "user", "content": "word " * 3000}]}
    assert lacks(["engine", "able", "duet"], long) == ["enough context", None, "enough context"]


async def test_a_budget_from_the_config(serve: Any, artefact: Path, upstream: ScriptedUpstream) -> None:
    """`policy.budget` starts at the route's quality and moves the knob by what answers cost, streamed ones too."""
    budget = {"budget": {"usd_per_request": 1e-5, "window": 10}}
    route = {"artefact": str(artefact), "embedder": "e", "default": "weak", "quality": 0.9, "policy": budget}
    client = await serve({"weak": {}, "strong": {}, "e": {}}, configured={"auto": {"route": route}})
    told = [(await _routed(client, "auto", chorus={"explain": True}))["decision"]["quality"]]
    for stream in (False, True):
        body = {"model": "auto", "stream": stream, **ASK}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200
        told.append((await _routed(client, "auto", chorus={"explain": True}))["decision"]["quality"])
    # 7 tokens read and 8 written, at 1e-6 and 2e-6 US dollars.
    assert told == pytest.approx([0.9, 0.77, 0.64])
