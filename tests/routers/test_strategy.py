"""`Routed`: one model picked beforehand, an answer even when picking fails, and a trace that says why."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import annotate
from outcomes.assignment import Knob
from outcomes.table import OutcomeTable
from protocol.chat import ChatRequest, Options
from protocol.errors import ArtefactMismatch, MethodError, UpstreamUnavailable
from protocol.routing import Estimate, Queries
from protocol.run import Answer, Event, Reply, Trace
from protocol.settings import Routing
from protocol.usage import Usage
from protocol.wire import completion
from routers.knn_router import KnnRouter
from routers.strategy import Routed, load_routed

CHEAP, DEAR = "cheap", "dear"
EASY, HARD = np.array([1, 0], dtype=np.float32), np.array([0, 1], dtype=np.float32)


class ListRun:
    """A run whose models repeat their name and whose embedder says what it was given."""

    def __init__(self, embedding: np.ndarray | Exception | None, *, budget: float = math.inf) -> None:
        self.embedding, self.remaining_usd = embedding, budget
        self.remaining_s = 60.0
        self.trace = Trace()
        self.embedded: list[str] = []
        self.relayed: list[tuple[str, ChatRequest]] = []

    async def embed(self, name: str, texts: Sequence[str]) -> np.ndarray:
        self.embedded += texts
        if isinstance(self.embedding, Exception):
            raise self.embedding
        if self.embedding is None:
            await asyncio.Event().wait()
        return np.stack([self.embedding] * len(texts))

    async def relay(self, name: str, request: ChatRequest) -> AsyncIterator[Event]:
        self.relayed.append((name, request))
        body = completion(id="x", created=0, model=name, text=name, finish_reason="stop", usage=Usage(1, 1))
        yield Answer(Reply(body, (name,)))


def _router() -> KnnRouter:
    """Both can answer what is easy, only the dear model what is hard."""
    vectors = np.stack([EASY] * 4 + [HARD] * 4)
    score = np.array([[1.0, 1.0]] * 4 + [[0.0, 1.0]] * 4)
    texts = [f"ask {i}" for i in range(8)]
    cost = np.full((8, 2), [1e-6, 9e-6])
    return KnnRouter(4).fit(OutcomeTable.of_matrices((CHEAP, DEAR), texts, score, cost, embeddings=vectors))


def _routed(**changes: object) -> Routed:
    knob = Knob((0.5,), (1e4,))
    return replace(Routed(_router(), knob, CHEAP, "embedder", label="knn-router@abc"), **changes)


def _request(text: str = "Why?", quality: float | None = None) -> ChatRequest:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "temperature": 0.3}
    return ChatRequest(body, Options(quality=quality))


async def _answer(routed: Routed, request: ChatRequest, run: ListRun) -> str:
    (event,) = [event async for event in routed.answer(request, run)]
    return event.reply.text


async def test_each_query_goes_where_it_is_worth_it() -> None:
    """What both can answer goes to the cheap model, what only the dear one can to the dear one."""
    assert await _answer(_routed(), _request(), ListRun(EASY)) == CHEAP
    assert await _answer(_routed(), _request(), ListRun(HARD)) == DEAR


async def test_the_request_is_relayed_unchanged() -> None:
    """The chosen model gets the very request; the router embeds the last user message."""
    run, request = ListRun(HARD), _request("What is hard?")
    await _answer(_routed(), request, run)
    assert run.relayed == [(DEAR, request)]
    assert run.embedded == ["What is hard?"]


async def test_the_trace_explains_the_decision() -> None:
    """Estimates per model, who was chosen and why, the knob and the artefact's version are noted."""
    run = ListRun(HARD)
    await _answer(_routed(), _request(), run)
    noted = run.trace.decision
    assert noted["chosen"] == DEAR
    assert noted["router"] == "knn-router@abc"
    assert noted["quality"] == 0.5
    assert noted["estimates"][CHEAP] == {"quality": 0.0, "cost_usd": pytest.approx(1e-6)}
    assert "quality" in noted["reason"]


async def test_a_requests_quality_overrides_the_default() -> None:
    """`chorus.quality` 0 takes the cheapest even for hard asks; 1 the best."""
    assert await _answer(_routed(), _request(quality=0.0), ListRun(HARD)) == CHEAP
    assert await _answer(_routed(quality=0.0), _request(quality=1.0), ListRun(HARD)) == DEAR


@pytest.mark.parametrize(
    ("embedding", "reason"),
    [
        (UpstreamUnavailable("the embedder is restarting"), "upstream_unavailable"),
        (None, "no embedding or estimate within 0.01 s"),
        (np.ones(3, dtype=np.float32), "method_error"),
    ],
)
async def test_a_failing_embedder_falls_to_the_default(embedding: object, reason: str) -> None:
    """Down, late, or of the wrong size: the default answers, and the trace says why."""
    run = ListRun(embedding)
    assert await _answer(_routed(embed_deadline_s=0.01), _request(), run) == CHEAP
    assert run.trace.decision["chosen"] == CHEAP
    assert reason in run.trace.decision["reason"]
    assert "estimates" not in run.trace.decision


async def test_a_request_without_text_goes_to_the_default() -> None:
    """There is nothing to embed."""
    run = ListRun(HARD)
    assert await _answer(_routed(), _request("  "), run) == CHEAP
    assert not run.embedded
    assert run.trace.decision["reason"] == "default: the request has no text"


async def test_a_model_beyond_the_budget_is_left_out() -> None:
    """With too little money for the dear model the cheap one answers; with too little for any, routing
    decides and the budget, elsewhere, refuses."""
    run = ListRun(HARD, budget=5e-6)
    assert await _answer(_routed(), _request(), run) == CHEAP
    assert "within budget" in run.trace.decision["reason"]
    assert await _answer(_routed(), _request(), ListRun(HARD, budget=1e-9)) == DEAR


async def test_a_router_that_needs_no_embedding_asks_for_none() -> None:
    """With no embedder configured for the method, the text alone is handed over."""
    run = ListRun(UpstreamUnavailable("down"))
    assert await _answer(_routed(embedder=None), _request(), run) == CHEAP
    assert not run.embedded


def _settings(artefact: Path, **changes: object) -> Routing:
    return Routing(artefact=artefact, embedder="embedder", default=CHEAP, **changes)


def _saved(folder: Path) -> Path:
    _router().save(folder)
    annotate(folder, embedder="e@1", knob=Knob((0.5,), (1e4,)).wire())
    return folder


async def test_loading_from_settings(tmp_path: Path) -> None:
    """A route section and its artefact make a working strategy, labelled with method and version."""
    settings = _settings(_saved(tmp_path), method="knn", quality=0.5)
    routed = load_routed(settings, answering={CHEAP, DEAR, "other"}, embedder_id="e@1")
    assert routed.label.startswith("knn-router@")
    assert await _answer(routed, _request(), ListRun(HARD)) == DEAR


def test_an_artefact_for_others_stops_the_start(tmp_path: Path) -> None:
    """Other models, another embedder, another method, or an uncalibrated artefact is refused before any
    request."""
    settings = _settings(_saved(tmp_path))
    with pytest.raises(ArtefactMismatch, match=DEAR):
        load_routed(settings, answering={CHEAP}, embedder_id="e@1")
    with pytest.raises(ArtefactMismatch, match="e@2"):
        load_routed(settings, answering={CHEAP, DEAR}, embedder_id="e@2")
    annotate(tmp_path, knob=None)
    with pytest.raises(MethodError, match="chorus train"):
        load_routed(settings, answering={CHEAP, DEAR}, embedder_id="e@1")


async def test_a_slow_router_does_not_hold_the_loop() -> None:
    """An encoder's estimate runs beside the event loop, and one that is late gives the default."""
    turned = threading.Event()

    class Slow:
        def estimate(self, queries: Queries) -> Estimate:
            assert turned.wait(10), "the event loop stood still"
            return Estimate((CHEAP, DEAR), np.array([[0.0, 1.0]]), np.array([[1e-6, 9e-6]]))

    routed = _routed(router=Slow(), embedder=None, threaded=True, embed_deadline_s=10.0)
    asyncio.get_running_loop().call_soon(turned.set)
    assert await _answer(routed, _request(quality=1.0), ListRun(None)) == DEAR
    turned.clear()
    late = replace(routed, embed_deadline_s=0.01)
    asyncio.get_running_loop().call_later(0.2, turned.set)
    run = ListRun(None)
    assert await _answer(late, _request(quality=1.0), run) == CHEAP
    assert "within" in run.trace.decision["reason"]
