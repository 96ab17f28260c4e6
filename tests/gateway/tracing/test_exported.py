"""What a collector is told of requests of every kind, over the wire."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import httpx
import pytest

import gateway.tracing
from backends.scripted import Script, ScriptedUpstream
from gateway.app import make_app
from gateway.tracing import exporter
from protocol.chat import ChatRequest
from protocol.errors import SettingsError
from protocol.run import Answer, Event, Run
from protocol.usage import Usage
from tests.gateway.conftest import listening, settings_for
from tests.gateway.tracing.collector import Collector, Node

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "a prompt that nobody else may read"


class Vote:
    """Ask two at once, and take the first."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        first, _ = await run.gather([("one", request), ("two", request)])
        assert not isinstance(first, Exception)
        run.trace.note(reason="both", words=first.text)
        yield Answer(first)


class Cascade:
    """Ask one, then a vote."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        await run.call("one", request)
        run.trace.note(reason="not sure", accepted="vote")
        yield Answer(await run.call("vote", request))


Observe = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """Where the gateway of `observed` tells its traces; it outlives the gateway."""
    collector = Collector()
    async with collector.serving():
        yield collector


@pytest.fixture
async def observed(collector: Collector, serve: Any, monkeypatch: pytest.MonkeyPatch) -> Observe:
    """Starts gateways whose `telemetry` is told to the collector at once."""
    monkeypatch.setattr(exporter, "EVERY_S", 0.02)

    async def start(models: Mapping[str, Any] | None = None, **sections: Any) -> httpx.AsyncClient:
        told = {"endpoint": collector.url, "metrics": False, **sections.pop("telemetry", {})}
        strategies = sections.pop("strategies", None)
        client: httpx.AsyncClient = await serve(models, strategies=strategies, telemetry=told, **sections)
        return client

    return start


@pytest.fixture
def tree(collector: Collector, until: Any) -> Callable[[], Awaitable[Node]]:
    """Called and awaited, it gives the one request that the collector was told of."""

    async def told() -> Node:
        await until(lambda: collector.spans)
        (root,) = collector.roots()
        return root

    return told


async def test_plain(
    observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream, collector: Collector
) -> None:
    """A request is a SERVER span with one CLIENT child, named and described as the conventions say."""
    response = await chat(
        await observed(), "one", temperature=0.5, max_tokens=9, seed=3, stop=["secret stop"]
    )
    root = await tree()
    assert root.shape() == ("POST /v1/chat/completions", "ok", [("chat one", "ok", [])])
    (call,) = root.children
    assert (root.kind, call.kind) == ("server", "client")
    assert not root.failed
    assert not call.failed
    for name, value in {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "one",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 8,
        "chorus.request_id": response.headers["x-request-id"],
        "chorus.strategy": "direct",
        "chorus.cost_usd": pytest.approx(23e-6),
    }.items():
        assert root.told[name] == value, name
    for name, value in {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "one",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.request.seed": 3,
        "gen_ai.response.id": "scripted-1",
        "gen_ai.response.model": "upstream-one",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 8,
        "server.address": "127.0.0.1",
        "chorus.attempt": 1,
        "chorus.deployment": 0,
        "chorus.cost_usd": pytest.approx(23e-6),
    }.items():
        assert call.told[name] == value, name
    assert isinstance(call.told["server.port"], int)
    assert "error.type" not in {**root.told, **call.told}
    assert root.span.start_time_unix_nano <= call.span.start_time_unix_nano
    assert call.span.start_time_unix_nano < call.span.end_time_unix_nano <= root.span.end_time_unix_nano
    assert collector.resource["service.name"] == "chorus"
    # The upstream was told the id of the span that stands for asking it.
    told = upstream.seen[0].headers["traceparent"]
    assert told == f"00-{root.span.trace_id.hex()}-{call.span.span_id.hex()}-01"


async def test_continued(observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream) -> None:
    """A caller's trace is continued, with its vendors' list, here and upstream; baggage goes nowhere."""
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "a=1", "baggage": "user=alice"}
    await chat(await observed(), "one", headers=headers)
    root = await tree()
    assert (root.span.trace_id.hex(), root.span.parent_span_id.hex()) == (TRACE, SPAN)
    assert root.span.trace_state == "a=1"
    (seen,) = upstream.seen
    assert seen.headers["traceparent"] == f"00-{TRACE}-{root.children[0].span.span_id.hex()}-01"
    assert seen.headers["tracestate"] == "a=1"
    assert "baggage" not in seen.headers


async def test_retry(
    observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream, messages: Any
) -> None:
    """Each attempt is a span, told to its upstream under its own id; only the one that answered cost anything."""
    scripts = iter([Script(status=503), Script()])
    upstream._script = lambda body: next(scripts)  # type: ignore[method-assign]
    await chat(await observed(resilience={"backoff_s": 0.01}), "one")
    root = await tree()
    assert root.shape()[2] == [("chat one", "upstream_unavailable", []), ("chat one", "ok", [])]
    failed, answered = root.children
    assert failed.failed
    assert failed.told["error.type"] == "upstream_unavailable"
    assert failed.told["chorus.cost_usd"] == 0
    assert (failed.told["chorus.attempt"], answered.told["chorus.attempt"]) == (1, 2)
    told = [seen.headers["traceparent"].split("-")[2] for seen in upstream.seen]
    assert told == [child.span.span_id.hex() for child in root.children]


async def test_fallback(observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream) -> None:
    """The model that was asked in another's stead stands beside it, marked."""
    upstream.scripts["upstream-one"] = Script(status=503)
    await chat(await observed({"one": {"fallbacks": ["two"]}, "two": {}}, resilience={"retries": 0}), "one")
    root = await tree()
    assert root.shape()[2] == [("chat one", "upstream_unavailable", []), ("chat two", "ok", [])]
    assert "chorus.fallback" not in root.children[0].told
    assert root.children[1].told["chorus.fallback"] is True


async def test_hedge(
    observed: Observe, chat: Any, collector: Collector, until: Any, upstream: ScriptedUpstream
) -> None:
    """The call that was given up because another one was faster says so, and at which deployment it was."""
    async with ScriptedUpstream(default=Script(delay_s=30)).serving() as slow, upstream.serving() as quick:
        deployments = [{"base_url": slow, "model": "slow"}, {"base_url": quick, "model": "quick"}]
        hedge = {"after_s": 0.05, "max_cost_usd": 1}
        model = {"openai": deployments, "hedge": hedge, "balance": "least-busy", "max_output_tokens": 10}
        client = await observed({"one": model})
        for _ in range(2):  # the balancer takes turns: some are sent to the slow one first
            await chat(client, "one")
    await until(lambda: len(collector.roots()) == 2)
    hedged = next(root for root in collector.roots() if len(root.children) == 2)
    given_up, answered = hedged.children
    assert (given_up.told["chorus.outcome"], answered.told["chorus.outcome"]) == ("hedged", "ok")
    assert (given_up.told["chorus.deployment"], answered.told["chorus.deployment"]) == (0, 1)
    assert given_up.told["chorus.usage_estimated"] is True
    assert given_up.told["chorus.cost_usd"] > 0
    assert "chorus.usage_estimated" not in answered.told
    assert not given_up.failed
    assert answered.span.start_time_unix_nano < given_up.span.end_time_unix_nano


async def test_cascade_and_vote(observed: Observe, chat: Any, tree: Any, collector: Collector) -> None:
    """Strategies are spans with their decision; what they asked, other strategies included, stands below them."""
    client = await observed(strategies={"careful": Cascade(), "vote": Vote()})
    await chat(client, "careful")
    root = await tree()
    (careful,) = root.children
    assert careful.shape() == (
        "invoke_workflow careful",
        None,
        [
            ("chat one", "ok", []),
            ("invoke_workflow vote", None, [("chat one", "ok", []), ("chat two", "ok", [])]),
        ],
    ) or careful.shape()[2][1][2] == [("chat two", "ok", []), ("chat one", "ok", [])]
    vote = careful.children[1]
    assert (careful.kind, vote.kind) == ("internal", "internal")
    assert careful.told["gen_ai.operation.name"] == "invoke_workflow"
    assert careful.told["gen_ai.workflow.name"] == "careful"
    assert careful.told["chorus.decision.accepted"] == "vote"
    assert vote.told["chorus.decision.reason"] == "both"
    assert "chorus.decision.words" not in vote.told  # facts of known meaning only
    assert root.told["gen_ai.usage.output_tokens"] == 24
    for node in (careful, vote):
        assert node.span.end_time_unix_nano >= max(c.span.end_time_unix_nano for c in node.children)


async def test_fusion(observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream) -> None:
    """A fusion is one call with a child for each member, that has the member's own tokens."""
    members = [
        {"model": "small", "prompt_tokens": 3, "completion_tokens": 4},
        {"model": "large", "prompt_tokens": 5, "completion_tokens": 6},
    ]
    upstream.default = Script(usage=Usage(8, 10), extra={"chorus": {"members": members}})
    await chat(await observed(), "one")
    (call,) = (await tree()).children
    assert sorted(member.span.name for member in call.children) == ["chat large", "chat small"]
    tokens = {m.told["gen_ai.request.model"]: m.told["gen_ai.usage.output_tokens"] for m in call.children}
    assert tokens == {"small": 4, "large": 6}
    assert call.told["gen_ai.usage.output_tokens"] == 10


async def test_stream(observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream) -> None:
    """A stream's span ends with the stream, and knows when its first words came."""
    upstream.default = Script(chunk_delay_s=0.02)
    await chat(await observed(), "one", stream=True)
    root = await tree()
    (call,) = root.children
    lasted_s = (call.span.end_time_unix_nano - call.span.start_time_unix_nano) / 1e9
    assert 0 < call.told["gen_ai.response.time_to_first_chunk"] < lasted_s
    assert call.told["gen_ai.request.stream"] is True
    assert root.told["gen_ai.request.stream"] is True
    assert call.told["gen_ai.usage.output_tokens"] == 8


async def test_broken_stream(observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream) -> None:
    """A stream that breaks after it had begun failed, though its status was 200."""
    upstream.default = Script(reset_after=3)
    await chat(await observed(), "one", stream=True)
    root = await tree()
    (call,) = root.children
    assert root.failed
    assert root.told["http.response.status_code"] == 200
    assert call.failed
    assert call.told["error.type"] == root.told["error.type"] == root.told["chorus.outcome"]


async def test_cancelled(
    observed: Observe, tree: Any, upstream: ScriptedUpstream, until: Any, messages: Any
) -> None:
    """A request whose caller left is told of too; nobody failed."""
    upstream.default = Script(delay_s=30)
    client = await observed()
    body = {"model": "one", "messages": messages}
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
    await until(lambda: upstream.seen)
    asking.cancel()
    root = await tree()
    assert root.shape() == ("POST /v1/chat/completions", "cancelled", [("chat one", "cancelled", [])])
    assert root.told["error.type"] == "cancelled"
    assert not root.failed
    assert not root.children[0].failed


@pytest.mark.parametrize(
    ("model", "status", "outcome"), [("nobody", 404, "model_not_found"), ("one", 502, "upstream_broken")]
)
async def test_error(
    observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream, model: str, status: int, outcome: str
) -> None:
    """An error is told by its code; only what is not the caller's fault counts as a failure of the server. A name that
    means nothing here is not repeated."""
    upstream.default = Script(status=500)
    assert (await chat(await observed(resilience={"retries": 0}), model)).status_code == status
    root = await tree()
    assert root.told["http.response.status_code"] == status
    assert root.told["error.type"] == outcome
    assert root.failed == (status >= 500)
    assert root.told["gen_ai.request.model"] == ("one" if model == "one" else "unknown")


async def test_no_words(
    observed: Observe, chat: Any, tree: Any, collector: Collector, upstream: ScriptedUpstream
) -> None:
    """Neither prompt, nor answer, nor key, nor header stands in anything the collector is sent."""
    upstream.default = Script(
        text="an answer that nobody else may read", message={"reasoning_content": "nor this"}
    )
    client = await observed(
        telemetry={"metrics": True, "headers": {"x-collector-key": "only-for-the-collector"}}
    )
    headers = {
        "authorization": "Bearer sk-callers-own-key",
        "x-request-id": "sk-callers-own-key",
        "x-mine": "my header",
    }
    await chat(client, "one", messages=[{"role": "user", "content": PROMPT}], user="alice", headers=headers)
    await tree()
    sent = b"".join(collector.raw)
    for secret in (
        PROMPT,
        "nobody else",
        "nor this",
        "sk-callers-own-key",
        "my header",
        "alice",
        "only-for-the",
    ):
        assert secret.encode() not in sent, secret
    assert collector.headers[0]["x-collector-key"] == "only-for-the-collector"


async def test_sampling(
    observed: Observe, chat: Any, tree: Any, upstream: ScriptedUpstream, collector: Collector
) -> None:
    """A trace begun here is sampled by the ratio, a caller's by the caller; upstreams are told either way."""
    client = await observed(telemetry={"sample_ratio": 0})
    await chat(client, "one")
    await chat(client, "one", headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    await chat(client, "one", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    root = await tree()
    assert root.span.trace_id.hex() == TRACE
    assert [seen.headers["traceparent"][-2:] for seen in upstream.seen] == ["00", "00", "01"]


async def test_messages(observed: Observe, tree: Any) -> None:
    """Other surfaces are told of under their own routes."""
    client = await observed()
    body = {"model": "one", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    await client.post("/v1/messages", json=body)
    root = await tree()
    assert root.shape() == ("POST /v1/messages", "ok", [("chat one", "ok", [])])


async def test_away(
    serve: Any, chat: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a collector requests are answered as ever; what it misses is counted, and said once."""
    monkeypatch.setattr(exporter, "EVERY_S", 0.02)
    client = await serve(telemetry={"endpoint": "http://127.0.0.1:9", "metrics": False, "timeout_s": 0.2})
    for _ in range(3):
        assert (await chat(client, "one")).status_code == 200

    async def dropped() -> float:
        text = (await client.get("/metrics")).text
        return float(text.partition("\nchorus_traces_dropped_total ")[2].partition("\n")[0])

    async with asyncio.timeout(20):
        while await dropped() < 3:
            pass
    assert (await client.get("/readyz")).json()["degraded"] == ["telemetry"]
    assert [record.name for record in caplog.records if "collector" in record.message] == ["chorus.telemetry"]


async def test_slow(
    observed: Observe, chat: Any, collector: Collector, until: Any, upstream: ScriptedUpstream
) -> None:
    """A collector that hangs holds up no request: the queue fills, and what does not fit is dropped."""
    collector.delay_s = 30
    client = await observed(telemetry={"queue": 2, "timeout_s": 1})
    await chat(client, "one")
    await until(lambda: collector.raw)
    for _ in range(6):
        assert (await chat(client, "one")).status_code == 200
    assert "chorus_traces_dropped_total 4.0" in (await client.get("/metrics")).text


async def test_metrics(observed: Observe, chat: Any, collector: Collector, until: Any) -> None:
    """The GenAI metrics say who was asked, how long it took and what it used, whether the trace was sampled or not."""
    client = await observed(
        telemetry={"metrics": True, "traces": False, "metrics_interval_s": 0.2},
        strategies={"vote": Vote()},
    )
    await chat(client, "vote")
    await chat(client, "one", stream=True)
    names = {
        "gen_ai.client.token.usage",
        "gen_ai.client.operation.duration",
        "gen_ai.client.operation.time_to_first_chunk",
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.workflow.duration",
        "chorus.cost",
    }
    await until(lambda: names <= set(collector.metrics))
    await until(
        lambda: sum(point.count for _, point in collector.metrics["gen_ai.server.request.duration"]) == 2
    )
    tokens = {
        (told["gen_ai.request.model"], told["gen_ai.token.type"]): point.sum
        for told, point in collector.metrics["gen_ai.client.token.usage"]
    }
    assert tokens == {("one", "input"): 14, ("one", "output"): 16, ("two", "input"): 7, ("two", "output"): 8}
    ((told, _),) = collector.metrics["gen_ai.workflow.duration"]
    assert told == {"gen_ai.workflow.name": "vote"}
    cost = sum(point.as_double for _, point in collector.metrics["chorus.cost"])
    assert cost == pytest.approx(3 * 23e-6)
    assert not collector.spans


async def test_off(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """Without an endpoint nothing of it is there: no header goes out."""
    await chat(await serve(), "one", headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert "traceparent" not in upstream.seen[0].headers


async def test_not_installed(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Switched on without its libraries, the start is refused with the line that brings them."""
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "gateway.tracing.sdk", raising=False)
    monkeypatch.delattr(gateway.tracing, "sdk", raising=False)
    with pytest.raises(SettingsError, match=r"pip install 'chorus-gateway\[otel\]'"):
        await serve(telemetry={"endpoint": "http://127.0.0.1:9"})


async def test_bug(
    observed: Observe, chat: Any, tree: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    """A request whose spans cannot be built is lost and counted; the next one is told."""
    build, broken = exporter.spans_of, [True]

    def spans_of(*given: Any) -> Any:
        if broken.pop() if broken else False:
            raise KeyError("a bug")
        return build(*given)

    monkeypatch.setattr(exporter, "spans_of", spans_of)
    client = await observed()
    await chat(client, "one")
    await until(lambda: not broken)
    await chat(client, "two")
    assert (await tree()).shape()[2] == [("chat two", "ok", [])]
    assert "chorus_traces_dropped_total 1.0" in (await client.get("/metrics")).text


async def test_a_model_that_came_with_a_reload(
    collector: Collector, tree: Any, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told where it was asked, like those of the start; and what became a secret with it is blotted out."""
    monkeypatch.setattr(exporter, "EVERY_S", 0.02)
    sections: dict[str, Any] = {"telemetry": {"endpoint": collector.url, "metrics": False}}
    async with upstream.serving() as url:
        app = make_app(settings_for(url, {"one": {}}, **sections), {})
        async with listening(app) as base, httpx.AsyncClient(base_url=base, timeout=30) as client:
            new = {"base_url": url, "model": "upstream-new", "api_key": "new-secret"}
            models = {"one": {}, "new": {"openai": new}}
            app.commit(await asyncio.to_thread(app.prepare, settings_for(url, models, **sections), {}))
            body = {"model": "new", "messages": [{"role": "user", "content": PROMPT}]}
            await client.post("/v1/chat/completions", json=body, headers={"x-request-id": "new-secret"})
            root = await tree()
    (call,) = root.children
    assert call.told["gen_ai.provider.name"] == "openai"
    assert call.told["server.address"] == "127.0.0.1"
    assert root.told["chorus.request_id"] == "[redacted]"
