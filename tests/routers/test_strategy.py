"""`Routed`: one model picked beforehand, an answer even when picking fails, and a trace that says why."""

from __future__ import annotations

import asyncio
import math
import random
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from outcomes.artefact import annotate
from outcomes.assignment import Knob
from outcomes.table import OutcomeTable
from protocol.chat import ChatRequest, Options
from protocol.errors import ArtefactMismatch, BadRequest, MethodError, UpstreamUnavailable
from protocol.routing import Estimate, Queries, Router
from protocol.run import Answer, Call, Event, Reply, Trace
from protocol.settings import Routing, RuleSettings
from protocol.usage import Usage
from protocol.wire import completion
from routers.estimating import Estimator, Remembered
from routers.knn_router import KnnRouter
from routers.llmrank import LlmRank
from routers.multiple_minds import MultipleMinds
from routers.policy import Pacing
from routers.strategy import Routed, load_routed
from routers.zooter import Zooter
from tests.contracts import router_checks
from tests.language_models import tiny_lm

CHEAP, DEAR = "cheap", "dear"
EASY, HARD = np.array([1, 0], dtype=np.float32), np.array([0, 1], dtype=np.float32)


class ListRun:
    """A run whose models repeat their name and whose embedder says what it was given."""

    def __init__(
        self,
        embedding: np.ndarray | Exception | None,
        *,
        budget: float = math.inf,
        by_text: Mapping[str, np.ndarray] | None = None,
        lacking: Mapping[str, str] | None = None,
    ) -> None:
        self.embedding, self.remaining_usd = embedding, budget
        self.by_text, self.lacking = by_text or {}, lacking or {}
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
        return np.stack([self.by_text.get(text, self.embedding) for text in texts])

    def lacks(self, names: Sequence[str], request: ChatRequest) -> list[str | None]:
        return [self.lacking.get(name) for name in names]

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


def _routed(
    router: Router | None = None, *, estimating: Mapping[str, Any] | None = None, **changes: Any
) -> Routed:
    estimator = Estimator(router or _router(), **{"embedder": "embedder", **(estimating or {})})
    knob = Knob((0.5,), (1e4,))
    return replace(Routed(estimator, knob, CHEAP, (CHEAP, DEAR), label="knn-router@abc"), **changes)


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
    assert await _answer(_routed(estimating={"deadline_s": 0.01}), _request(), run) == CHEAP
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
    assert await _answer(_routed(estimating={"embedder": None}), _request(), run) == CHEAP
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


async def test_a_router_that_reads_texts_needs_no_embedder(tmp_path: Path) -> None:
    """Its route section names none; one that routes by embeddings is refused without."""
    reading = LlmRank(epochs=1).fit(router_checks.TRAIN.only(("small", "large")))
    reading.save(tmp_path / "reads")
    annotate(tmp_path / "reads", knob=Knob((0.5,), (1e4,)).wire())
    settings = Routing(method="llmrank", artefact=tmp_path / "reads", default="small")
    run = ListRun(UpstreamUnavailable("down"))
    routed = load_routed(settings, answering={"small", "large"}, embedder_id=None)
    assert await _answer(routed, _request(), run) in ("small", "large")
    assert not run.embedded
    settings = Routing(artefact=_saved(tmp_path / "embeds"), default=CHEAP)
    with pytest.raises(MethodError, match="name the embedder"):
        load_routed(settings, answering={CHEAP, DEAR}, embedder_id=None)


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


def test_who_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A router computes beside the event loop when a network reads every query as it is set up, and else on it."""
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path))
    tiny_lm(tmp_path / "weights" / "tiny", dimensions=16, layers=1, heads=2, kv_heads=1)
    for slow, method, router in (
        (False, "llmrank", LlmRank(epochs=1)),
        (True, "llmrank", LlmRank(epochs=1, solver="tiny")),
        (False, "multiple-minds", MultipleMinds(clusters=2)),
    ):
        router.fit(router_checks.TRAIN.only(("small", "large"))).save(tmp_path / "router")
        annotate(tmp_path / "router", knob=Knob((0.5,), (1e4,)).wire())
        settings = Routing(method=method, artefact=tmp_path / "router", default="small")
        routed = load_routed(settings, answering=("small", "large"), embedder_id=None)
        assert routed.estimator.threaded is slow
    settings = _settings(_saved(tmp_path / "knn"))
    assert not load_routed(settings, answering=(CHEAP, DEAR), embedder_id="e@1").estimator.threaded
    assert MultipleMinds(router="classifier").slow
    assert Zooter().slow


async def test_a_slow_router_does_not_hold_the_loop() -> None:
    """An encoder's estimate runs beside the event loop, and one that is late gives the default."""
    turned = threading.Event()

    class Slow:
        def estimate(self, queries: Queries) -> Estimate:
            assert turned.wait(10), "the event loop stood still"
            return Estimate((CHEAP, DEAR), np.array([[0.0, 1.0]]), np.array([[1e-6, 9e-6]]))

    routed = _routed(Slow(), estimating={"embedder": None, "threaded": True, "deadline_s": 10.0})
    asyncio.get_running_loop().call_soon(turned.set)
    assert await _answer(routed, _request(quality=1.0), ListRun(None)) == DEAR
    turned.clear()
    late = _routed(Slow(), estimating={"embedder": None, "threaded": True, "deadline_s": 0.01})
    asyncio.get_running_loop().call_later(0.2, turned.set)
    run = ListRun(None)
    assert await _answer(late, _request(quality=1.0), run) == CHEAP
    assert "within" in run.trace.decision["reason"]


async def test_a_text_is_estimated_once() -> None:
    """The same ask again costs neither an embedding nor an estimate, and is decided alike; what is remembered is
    bounded, the least recently used going first."""
    routed = _routed(_choices=Remembered(1))
    routed.estimator._rows = Remembered(1)
    run = ListRun(HARD)
    for text in ("one", "one", "two", "one"):
        assert await _answer(routed, _request(text), run) == DEAR
    assert run.embedded == ["one", "two", "one"]
    memory: Remembered[str, int] = Remembered(2)
    for key in ("a", "b", "a", "c"):
        memory.put(key, memory.get(key) or ord(key))
    assert [memory.get(key) for key in "abc"] == [97, None, 99]


async def test_a_remembered_choice_is_the_one_that_would_be_made() -> None:
    """What was chosen is chosen again only by the same rule, among the same candidates, and where it can be paid."""
    routed = _routed()
    for _ in range(2):
        for quality, budget, lacking, expected in (
            (None, math.inf, {}, DEAR),
            (0.0, math.inf, {}, CHEAP),
            (None, 5e-6, {}, CHEAP),
            (None, math.inf, {DEAR: "tools"}, CHEAP),
            (None, 1e-5, {}, DEAR),
        ):
            run = ListRun(HARD, budget=budget, lacking=lacking)
            assert await _answer(routed, _request("same", quality), run) == expected
            assert set(run.trace.decision["estimates"]) <= {CHEAP, DEAR}


async def test_a_router_that_breaks_falls_to_the_default(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a method is logged, and the default answers."""

    class Broken:
        def estimate(self, queries: Queries) -> Estimate:
            raise ZeroDivisionError("secret arithmetic")

    run = ListRun(HARD)
    assert await _answer(_routed(Broken(), estimating={"embedder": None}), _request(), run) == CHEAP
    assert run.trace.decision["reason"] == "default: internal_error"
    assert "secret arithmetic" in caplog.text


async def test_who_lacks_what_is_needed_is_no_candidate() -> None:
    """A model without tools gets no request with tools, whatever it was estimated at; where none has them the default
    may say so itself; and the default does not answer for want of an embedding when it is the one that lacks them."""
    run = ListRun(HARD, lacking={DEAR: "tools"})
    assert await _answer(_routed(), _request(), run) == CHEAP
    assert run.trace.decision["reason"] == "of those with tools, the only candidate"
    assert run.trace.decision["left_out"] == {DEAR: "tools"}
    run = ListRun(HARD, lacking={CHEAP: "tools", DEAR: "tools"})
    assert await _answer(_routed(), _request(), run) == CHEAP
    assert run.trace.decision["reason"] == "default: no candidate has tools"
    down = ListRun(UpstreamUnavailable("down"), lacking={CHEAP: "tools"})
    assert await _answer(_routed(), _request(), down) == DEAR


def _conversation(*asks: str) -> ChatRequest:
    messages = [
        message
        for ask in asks
        for message in ({"role": "user", "content": ask}, {"role": "assistant", "content": "Well."})
    ]
    return ChatRequest({"model": "auto", "messages": messages[:-1]}, Options(quality=1.0))


async def test_a_conversation_keeps_its_model() -> None:
    """Within the margin the model that the earlier asks chose goes on; beyond it, or without a margin, the best one
    answers. Nothing but the request itself is needed to know which model that was."""
    known = {"hard": HARD, "nearly": np.array([0.9, 0.1], dtype=np.float32), "easy": EASY}

    class Leaning:
        """What is easy the cheap model does a little better, and the nearly easy a little less so."""

        def estimate(self, queries: Queries) -> Estimate:
            assert queries.embeddings is not None
            hard = queries.embeddings[:, 1] * 0.5
            quality = np.stack([0.5 + 0.1 * queries.embeddings[:, 0], 0.5 + hard], axis=1)
            return Estimate((CHEAP, DEAR), quality, np.full(quality.shape, [1e-6, 9e-6]))

    def routed(margin: float) -> Routed:
        return _routed(Leaning(), switch_margin=margin)

    request = _conversation("hard", "easy")
    run = ListRun(EASY, by_text=known)
    assert await _answer(routed(0.2), request, run) == DEAR
    assert "keeping the conversation's model" in run.trace.decision["reason"]
    assert await _answer(routed(0.05), request, ListRun(EASY, by_text=known)) == CHEAP
    assert await _answer(routed(0.0), request, ListRun(EASY, by_text=known)) == CHEAP
    assert await _answer(routed(0.2), _conversation("nearly", "easy"), ListRun(EASY, by_text=known)) == CHEAP


async def test_exploration_is_noted_with_its_propensity() -> None:
    """A share of requests is drawn among all candidates; the noted propensity is how often each choice comes about."""
    routed = _routed(explore=0.4, rng=random.Random(7))
    counts, noted = {CHEAP: 0, DEAR: 0}, {}
    for _ in range(2000):
        run = ListRun(HARD)
        chosen = await _answer(routed, _request(), run)
        counts[chosen] += 1
        noted[chosen] = run.trace.decision["propensity"]
    assert noted == {CHEAP: pytest.approx(0.2), DEAR: pytest.approx(0.8)}
    assert counts[DEAR] / 2000 == pytest.approx(0.8, abs=0.04)
    sure = ListRun(HARD)
    await _answer(_routed(), _request(), sure)
    assert sure.trace.decision["propensity"] == 1.0


async def test_a_budget_moves_the_knob_by_what_requests_cost() -> None:
    """Hard asks, which only the dear model is good at: the level that is noted falls with each dear answer and rises
    with each cheap one, so that the mean cost is the budget's. Errors without cost and `/v1/route` move nothing; a
    request's own quality counts."""

    class PaidRun(ListRun):
        async def relay(self, name: str, request: ChatRequest) -> AsyncIterator[Event]:
            cost = {CHEAP: 1e-6, DEAR: 9e-6}[name]
            async for event in super().relay(name, request):
                yield event
            self.trace.calls.append(Call(name, Usage(1, 1), cost, 0.1))

    class BrokenRun(ListRun):
        async def relay(self, name: str, request: ChatRequest) -> AsyncIterator[Event]:
            raise UpstreamUnavailable("gone")
            yield

    pacing = Pacing(3e-6, 10, 0.5)
    routed = _routed(knob=Knob((0.25, 0.75), (1e6, 1e4)), pacing=pacing)
    spent = 0.0
    for turn in range(400):
        level = pacing.level
        run = PaidRun(HARD)
        cost = {CHEAP: 1e-6, DEAR: 9e-6}[await _answer(routed, _request(), run)]
        spent += cost
        assert run.trace.decision["quality"] == level, turn
        assert pacing.level == pytest.approx(min(1, max(0, level + (1 - cost / 3e-6) / 10)))
    assert spent / 400 == pytest.approx(3e-6, rel=10 / 400 + 1e-9)
    level = pacing.level
    with pytest.raises(UpstreamUnavailable):
        await _answer(routed, _request(), BrokenRun(HARD))
    await routed.decide(_request(), PaidRun(HARD))
    assert pacing.level == level
    assert await _answer(routed, _request(quality=1.0), PaidRun(HARD)) == DEAR
    assert pacing.level == pytest.approx(max(0, level - 0.2))


@pytest.mark.parametrize(
    ("rule", "easy", "hard"),
    [
        ({"threshold": {"strong": DEAR, "weak": CHEAP, "alpha": 0.4}}, DEAR, DEAR),
        ({"threshold": {"strong": DEAR, "weak": CHEAP, "alpha": 0.6}}, CHEAP, DEAR),
        ({"margin": 0.5}, CHEAP, DEAR),
        ({"margin": 1.0}, CHEAP, CHEAP),
        ({"cheapest_above": 0.5}, CHEAP, DEAR),
    ],
)
async def test_other_rules(rule: dict[str, Any], easy: str, hard: str) -> None:
    """RouteLLM's threshold on the chance of winning (equal estimates: one half), HomoRouter's margin, FORC's bar."""
    routed = _routed(policy=RuleSettings.model_validate(rule))
    assert await _answer(routed, _request("a"), ListRun(EASY)) == easy
    assert await _answer(routed, _request("b"), ListRun(HARD)) == hard


async def test_a_requests_threshold() -> None:
    """`chorus.threshold` moves a router that has one, and is refused by one that has none."""
    rule = RuleSettings.model_validate({"threshold": {"strong": DEAR, "weak": CHEAP, "alpha": 0.6}})
    request = replace(_request(), options=Options(threshold=0.5))
    assert await _answer(_routed(policy=rule), request, ListRun(EASY)) == DEAR
    with pytest.raises(BadRequest, match="has no threshold"):
        await _answer(_routed(), request, ListRun(EASY))


def test_a_section_names_models_of_its_artefact(tmp_path: Path) -> None:
    """A candidate, or a side of the threshold, that the router knows nothing of stops the start."""
    everyone = {CHEAP, DEAR, "other"}
    with pytest.raises(MethodError, match="'other' is not among them"):
        load_routed(_settings(_saved(tmp_path), models=("other",)), answering=everyone, embedder_id="e@1")
    rule = RuleSettings.model_validate({"threshold": {"strong": "other", "weak": CHEAP, "alpha": 0.6}})
    with pytest.raises(MethodError, match="'other' is not among them"):
        load_routed(_settings(tmp_path, policy=rule), answering=everyone, embedder_id="e@1")


async def test_a_burst_is_computed_together() -> None:
    """What comes while a router computes in its thread is estimated in one go; each gets its own, and an error is
    everybody's default."""
    sizes: list[int] = []
    turned = threading.Event()

    class Slow:
        def estimate(self, queries: Queries) -> Estimate:
            assert turned.wait(10)
            sizes.append(len(queries))
            if "bad" in queries.texts:
                raise ZeroDivisionError
            hard = np.array([[0.0, 1.0] if text.startswith("hard") else [1.0, 0.0] for text in queries.texts])
            return Estimate((CHEAP, DEAR), hard, np.full((len(queries), 2), 1e-6))

    routed = _routed(Slow(), estimating={"embedder": None, "threaded": True, "deadline_s": 10.0})
    asking = [
        asyncio.create_task(_answer(routed, _request(f"{kind} {i}", 1.0), ListRun(None)))
        for i, kind in enumerate(("easy", "hard") * 8)
    ]
    await asyncio.sleep(0)
    turned.set()
    assert await asyncio.gather(*asking) == [CHEAP, DEAR] * 8
    assert sum(sizes) == 16
    assert len(sizes) <= 2
    assert await _answer(routed, _request("bad", 1.0), ListRun(None)) == CHEAP
