"""The live run: one deadline, one budget, one trace for a tree of calls."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from backends.model import Model
from backends.registry import make_models
from backends.scripted import Script, ScriptedUpstream
from gateway.catalogue import Catalogue
from gateway.deadline import Deadline
from gateway.run import Limits, LiveRun, open_run
from protocol.chat import ChatRequest
from protocol.errors import (
    BudgetExceeded,
    ChorusError,
    DeadlineExceeded,
    MethodError,
    ModelNotFound,
    UpstreamBroken,
    UpstreamRefused,
    UpstreamUnavailable,
)
from protocol.run import Answer, Chunk, Event, Reply, Run, Strategy
from protocol.settings import parse_settings
from protocol.usage import Usage

REQUEST = ChatRequest({"model": "x", "messages": [{"role": "user", "content": "abcd"}]})
STREAMED = REQUEST.changed(stream=True, stream_options={"include_usage": True})


class Ask:
    """Call `name`, answer with what it said."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        yield Answer(await run.call(self.name, request))


class Noting:
    """Note who decided, then answer with what `asks` said."""

    def __init__(self, name: str, *, asks: str = "one") -> None:
        self.name, self.asks = name, asks

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        run.trace.note(by=self.name)
        yield Answer(await run.call(self.asks, request))


class Twice:
    """Call `one` twice, answer with the second."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        await run.call("one", request)
        yield Answer(await run.call("one", request))


class Fallback:
    """Call `one`; if it does not come in time, answer with what is at hand."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        try:
            yield Answer(await run.call("one", request))
        except DeadlineExceeded:
            yield Answer(Reply({"choices": []}, ("hand",)))


class Passing:
    """Relay `one`."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        async for event in run.relay("one", request):
            yield event


@pytest.fixture
async def catalogue(upstream: ScriptedUpstream) -> AsyncIterator[Callable[..., Catalogue]]:
    """Makes catalogues of two models, at 1 US dollar a token read or written, and the strategies given."""
    async with upstream.serving() as url:
        price = "{input_usd_per_token: 1, output_usd_per_token: 1}"
        section = f"openai: {{base_url: '{url}', model: x}}, price: {price}"
        settings = parse_settings(f"models: {{one: {{{section}}}, two: {{{section}}}}}")
        models: dict[str, Model] = make_models(settings, {})
        yield lambda **strategies: Catalogue(models, strategies)
        for model in models.values():
            await model.close()


Make = Callable[..., Catalogue]


def limits(**changes: Any) -> Limits:
    return Limits(**{"deadline_s": 30.0, **changes})


async def test_call_is_recorded(catalogue: Make) -> None:
    """A call's reply tells its cost and time; the trace has it as made and paid."""
    async with open_run(catalogue(), limits()) as run:
        reply = await run.call("one", STREAMED)
    assert (reply.members, reply.cost_usd) == (("one",), 15.0)
    assert reply.latency_s > 0
    (call,) = run.trace.calls
    assert (call.model, call.usage, call.cost_usd, call.outcome) == ("one", Usage(7, 8), 15.0, "ok")


async def test_a_run_leaves_no_cycle(catalogue: Make) -> None:
    """What a request made goes at once, and is not left to the garbage collector."""
    whole = catalogue()
    gc.collect()
    gc.disable()
    try:
        async with open_run(whole, limits()) as run:
            await run.call("one", STREAMED)
        del run
        # By type: to ask some of torch's objects for their class is a deprecated use of them.
        assert not [each for each in gc.get_objects() if type(each) in (LiveRun, Deadline)]
    finally:
        gc.enable()


async def test_call_never_streams(catalogue: Make, upstream: ScriptedUpstream) -> None:
    """A call is for a complete answer, also on behalf of a caller who streams."""
    async with open_run(catalogue(), limits()) as run:
        await run.call("one", STREAMED)
    assert not {"stream", "stream_options"} & set(upstream.seen[0].body)


async def test_relay_streams(catalogue: Make) -> None:
    """A relay gives chunks to a caller who streams, and its usage report once it has ended."""
    async with open_run(catalogue(), limits()) as run:
        told = [event async for event in run.relay("one", STREAMED)]
        assert all(isinstance(event, Chunk) and event.members == ("one",) for event in told)
        assert run.tail is not None
        assert run.trace.cost_usd == 15.0


async def test_relay_answers_whole(catalogue: Make) -> None:
    """A relay gives one answer to a caller who does not stream."""
    async with open_run(catalogue(), limits()) as run:
        (event,) = [event async for event in run.relay("one", REQUEST)]
    assert isinstance(event, Answer)


async def test_nested_strategies_share_the_trace(catalogue: Make) -> None:
    """A strategy called by name costs what all its calls cost, and they stand in the one trace."""
    async with open_run(catalogue(twice=Twice(), outer=Ask("twice")), limits()) as run:
        first = await run.call("outer", REQUEST)
        second = await run.call("one", REQUEST)
    assert (first.cost_usd, second.cost_usd) == (30.0, 15.0)
    assert len(run.trace.calls) == 3
    assert run.trace.cost_usd == 45.0


async def test_nested_decisions_stand_apart(catalogue: Make) -> None:
    """Facts of a strategy that was asked by another do not overwrite those of the one that asked."""
    async with open_run(
        catalogue(inner=Noting("inner"), outer=Noting("outer", asks="inner")), limits()
    ) as run:
        await run.call("outer", REQUEST)
    (outer,) = run.trace.decision["nested"]
    (inner,) = outer["nested"]
    assert (outer["strategy"], outer["by"]) == ("outer", "outer")
    assert (inner["strategy"], inner["by"]) == ("inner", "inner")


async def test_depth_is_capped(catalogue: Make) -> None:
    """A strategy that calls itself ends with an error that names the setting."""
    async with open_run(catalogue(loop=Ask("loop")), limits()) as run:
        with pytest.raises(MethodError, match="max_depth"):
            await run.call("loop", REQUEST)


async def test_calls_are_capped(catalogue: Make, upstream: ScriptedUpstream) -> None:
    """No request makes more calls than the server allows."""
    async with open_run(catalogue(), limits(max_calls=3)) as run:
        results = await run.gather([("one", REQUEST)] * 5)
    assert sum(isinstance(result, MethodError) for result in results) == 2
    assert len(upstream.seen) == 3


async def test_gather_keeps_order_and_errors(catalogue: Make, upstream: ScriptedUpstream) -> None:
    """Results stand in the order asked, a failed call as its error."""
    async with open_run(catalogue(), limits()) as run:
        upstream.default = Script(reset_after=0)
        first, second = await run.gather([("one", REQUEST), ("nope", REQUEST)])
    assert isinstance(first, UpstreamUnavailable)
    assert isinstance(second, ModelNotFound)
    assert run.trace.calls[0].outcome == "upstream_unavailable"


async def test_gather_is_concurrent(catalogue: Make, upstream: ScriptedUpstream, until: Any) -> None:
    """Calls are made at once, and cancelled at once."""
    upstream.default = Script(delay_s=60)
    async with open_run(catalogue(), limits()) as run:
        asking = asyncio.create_task(run.gather([("one", REQUEST), ("two", REQUEST)]))
        await until(lambda: len(upstream.seen) == 2)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await until(lambda: len(upstream.left) == 2)
    assert [call.outcome for call in run.trace.calls] == ["cancelled", "cancelled"]


async def test_budget_spent(catalogue: Make, upstream: ScriptedUpstream) -> None:
    """Once the money is spent no further call is made."""
    async with open_run(catalogue(), limits(budget_usd=20.0)) as run:
        await run.call("one", REQUEST)
        assert run.remaining_usd == 5.0
        await run.call("one", REQUEST)
        with pytest.raises(BudgetExceeded):
            await run.call("one", REQUEST)
    assert len(upstream.seen) == 2


async def test_budget_is_reserved(catalogue: Make) -> None:
    """Concurrent calls cannot spend the same money twice: what each may cost is held until it is known."""
    bounded = REQUEST.changed(max_tokens=9)
    async with open_run(catalogue(), limits(budget_usd=25.0)) as run:
        results = await run.gather([("one", bounded)] * 4)
        assert run.remaining_usd == -5.0
    assert sum(isinstance(result, BudgetExceeded) for result in results) == 2


async def test_no_budget(catalogue: Make) -> None:
    """Without a budget the remaining money is unbounded."""
    async with open_run(catalogue(), limits()) as run:
        assert run.remaining_usd == float("inf")
        assert 29 < run.remaining_s <= 30


async def test_deadline_leaves_room_for_a_fallback(catalogue: Make, upstream: ScriptedUpstream) -> None:
    """A call ended by the deadline raises inside the strategy, which may still hand over what it has."""
    upstream.default = Script(delay_s=60)
    async with open_run(catalogue(fallback=Fallback()), limits(deadline_s=0.05)) as run:
        reply = await run.call("fallback", REQUEST)
    assert reply.members == ("hand",)
    assert run.trace.calls[0].outcome == "deadline_exceeded"


async def test_deadline_ends_everything(catalogue: Make) -> None:
    """A strategy that dawdles by itself is ended too."""
    with pytest.raises(DeadlineExceeded):
        async with open_run(catalogue(), limits(deadline_s=0.01)):
            await asyncio.sleep(30)


@pytest.fixture
async def fallback(upstream: ScriptedUpstream) -> AsyncIterator[Catalogue]:
    """`one` falls back on `two`, at 1 and 2 US dollars a token; upstream they have their own names."""
    async with upstream.serving() as url:
        price, dear = (
            f"price: {{input_usd_per_token: {usd}, output_usd_per_token: {usd}}}" for usd in (1, 2)
        )
        text = f"""
          models:
            one: {{openai: {{base_url: '{url}', model: up-one}}, fallbacks: [two], max_output_tokens: 20, {price}}}
            two: {{openai: {{base_url: '{url}', model: up-two}}, {dear}}}
          resilience: {{backoff_s: 0.001}}
        """
        models = make_models(parse_settings(text), {})
        yield Catalogue(models, {})
        for model in models.values():
            await model.close()


@pytest.mark.parametrize("request_", [REQUEST, STREAMED], ids=["whole", "stream"])
async def test_a_fallback_answers(
    fallback: Catalogue, upstream: ScriptedUpstream, request_: ChatRequest
) -> None:
    """When a model fails its fallback answers, under its own name; both stand in the trace."""
    upstream.scripts = {"up-one": Script(status=500)}
    async with open_run(fallback, limits()) as run:
        events = [event async for event in run.relay("one", request_)]
    members = {event.reply.members if isinstance(event, Answer) else event.members for event in events}
    assert members == {("two",)}
    assert [(c.model, c.outcome, c.attempts, c.cost_usd) for c in run.trace.calls] == [
        ("one", "upstream_broken", 3, 0.0),
        ("two", "ok", 1, 30.0),
    ]
    assert not run.trace.composed


async def test_the_first_failure_is_told(fallback: Catalogue, upstream: ScriptedUpstream) -> None:
    """When the fallback fails too, the caller hears of the model asked for, and not to try again."""
    upstream.scripts = {
        "up-one": Script(status=503, headers={"retry-after": "9"}),
        "up-two": Script(status=500),
    }
    async with open_run(fallback, limits()) as run:
        with pytest.raises(UpstreamUnavailable) as caught:
            await run.call("one", REQUEST)
    assert caught.value.headers() == {
        "x-should-retry": "false", "retry-after": "9", "retry-after-ms": "9000",
    }  # fmt: skip


async def test_what_is_at_fault_with_the_request_does_not_fall_back(
    fallback: Catalogue, upstream: ScriptedUpstream
) -> None:
    """A refusal of the request itself is the answer."""
    upstream.scripts = {"up-one": Script(status=422)}
    async with open_run(fallback, limits()) as run:
        with pytest.raises(UpstreamRefused):
            await run.call("one", REQUEST)
    assert len(upstream.seen) == 1


async def test_a_fallback_must_be_affordable(fallback: Catalogue, upstream: ScriptedUpstream) -> None:
    """Without money for the fallback the caller is told what failed, not that the money was short."""
    upstream.scripts = {"up-one": Script(reset_after=0)}
    async with open_run(fallback, limits(budget_usd=25.0)) as run:
        with pytest.raises(UpstreamUnavailable):
            await run.call("one", REQUEST.changed(max_tokens=20))
        assert run.remaining_usd == 25.0
    assert len(upstream.seen) == 1


async def test_the_models_cap_is_reserved(fallback: Catalogue) -> None:
    """A caller who sets no bound is taken to want the model's longest answer."""
    async with open_run(fallback, limits(budget_usd=20.0)) as run:
        with pytest.raises(BudgetExceeded, match="up to 21"):
            await run.call("one", REQUEST)
        assert await run.call("one", REQUEST.changed(max_tokens=8))


async def test_a_stream_that_has_begun_is_not_replaced(
    fallback: Catalogue, upstream: ScriptedUpstream
) -> None:
    """What the caller has seen stands; what was seen is charged, the prompt included, and marked as estimated."""
    upstream.scripts = {"up-one": Script(error_after=2)}
    told = []
    async with open_run(fallback, limits()) as run:
        relayed = aiter(run.relay("one", STREAMED))
        told += [await anext(relayed)]
        if told[0].data.count(b"\n\n") < 3:  # the network may deliver them in one piece, or not
            told += [await anext(relayed)]
        with pytest.raises(UpstreamBroken):
            await anext(relayed)
    assert sum(chunk.data.count(b"\n\n") for chunk in told) == 3
    (call,) = run.trace.calls
    assert (call.usage, call.cost_usd, call.estimated) == (Usage(1, 2), 3.0, True)
    assert run.trace.usage == Usage()


@pytest.mark.parametrize("request_", [REQUEST, STREAMED], ids=["whole", "stream"])
async def test_a_hedge_is_paid(upstream: ScriptedUpstream, request_: ChatRequest) -> None:
    """The call that answered first and the one given up for it both stand in the trace, the latter with its prompt."""
    upstream.scripts = {"slow": Script(delay_s=60)}
    async with upstream.serving() as url:
        text = f"""
          models:
            one:
              openai: [{{base_url: '{url}', model: slow}}, {{base_url: '{url}', model: fast}}]
              price: {{input_usd_per_token: 1, output_usd_per_token: 1}}
              balance: least-busy
              hedge: {{after_s: 0.02, max_cost_usd: 50}}
        """
        models = make_models(parse_settings(text), {})
        async with open_run(Catalogue(models, {}), limits(budget_usd=200.0)) as run:
            assert [event async for event in run.relay("one", request_)]
            assert run.remaining_usd == 184.0
        await models["one"].close()
    assert [(c.outcome, c.attempts, c.cost_usd, c.estimated) for c in run.trace.calls] == [
        ("ok", 1, 15.0, False),
        ("hedged", 1, 1.0, True),
    ]
    assert run.trace.usage == Usage(7, 8)


async def test_embeddings_have_no_fallback(fallback: Catalogue, upstream: ScriptedUpstream) -> None:
    """Vectors of another model would mean something else."""
    upstream.scripts = {"up-one": Script(status=500)}
    async with open_run(fallback, limits(), path="/embeddings") as run:
        with pytest.raises(UpstreamBroken):
            await run.call("one", ChatRequest({"model": "one", "input": "x"}))
    assert {seen.body["model"] for seen in upstream.seen} == {"up-one"}


async def test_foreign_timeouts_pass(catalogue: Make) -> None:
    """A timeout of the strategy's own making is not taken for the deadline."""
    with pytest.raises(TimeoutError):
        async with open_run(catalogue(), limits()):
            raise TimeoutError


async def test_abandoned_streams_are_closed(catalogue: Make, upstream: ScriptedUpstream, until: Any) -> None:
    """Leaving the run ends streams that nobody has read to their end, however deep."""
    upstream.default = Script(text="word " * 1000, chunk_delay_s=0.02)
    async with open_run(catalogue(passing=Passing()), limits()) as run:
        events = run.relay("passing", STREAMED)
        await anext(events)
    await until(lambda: upstream.left == ["x"])
    with pytest.raises(ChorusError):
        [event async for event in events]


async def test_embed(catalogue: Make) -> None:
    """Embeddings come as unit vectors; they are paid for, but their tokens are not the answer's usage."""
    async with open_run(catalogue(), limits()) as run:
        vectors = await run.embed("one", ["abc", "x"])
    assert vectors.shape == (2, 3)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1)
    assert (run.trace.cost_usd, run.trace.usage, len(run.trace.embeddings)) == (2.0, Usage(), 1)


async def test_failed_calls_raise(catalogue: Make, upstream: ScriptedUpstream) -> None:
    """A failed call raises and is recorded with its code."""
    upstream.default = Script(status=429)
    async with open_run(catalogue(), limits()) as run:
        with pytest.raises(ChorusError):
            await run.call("one", REQUEST)
    assert run.trace.calls[0].outcome == "refused_429"


async def test_strategies_that_stream_unasked(catalogue: Make) -> None:
    """A strategy that gives a caller no complete answer is at fault."""

    class Chunks:
        async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
            yield Chunk(b"data: {}\n\n", ())

    strategy: Strategy = Chunks()
    async with open_run(catalogue(chunks=strategy), limits()) as run:
        with pytest.raises(MethodError, match="complete answer"):
            await run.call("chunks", REQUEST)
