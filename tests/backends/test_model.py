"""A model with its deployments and price."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from backends.attempts import Calling
from backends.balancer import Seat
from backends.breaker import Breaker
from backends.bucket import Bucket
from backends.model import HELD_EVENTS, Model
from backends.openai_http import Deployment
from backends.retrying import Retrying
from backends.scripted import Script, ScriptedUpstream
from backends.upstream_errors import NotConnected
from protocol.errors import UpstreamBroken, UpstreamBusy, UpstreamUnavailable
from protocol.settings import Hedge
from protocol.usage import Price, Usage

CHAT = "/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}
MEMBERS = {
    "chorus": {
        "members": [
            {"model": "a", "prompt_tokens": 3, "completion_tokens": 4},
            {"model": "b", "prompt_tokens": 4, "completion_tokens": 4},
        ]
    }
}
Deploy = Callable[..., Deployment]


async def test_call(model: Model, upstream: ScriptedUpstream) -> None:
    """A complete answer is priced, and its bytes may be passed on."""
    upstream.default = Script(usage=Usage(2, 3))
    completed = await model.call(CHAT, BODY)
    assert completed.shares[0].cost_usd == 32.0
    assert completed.raw is not None


async def test_stream(model: Model, upstream: ScriptedUpstream) -> None:
    """A stream is priced once it has ended."""
    upstream.default = Script(usage=Usage(2, 3))
    stream = await model.stream(CHAT, BODY)
    assert [event async for event in stream]
    assert stream.shares[0].cost_usd == 32.0


async def test_a_fusion_is_told_how_long_the_caller_waits(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """Of our own engine host a fusion hears the caller's deadline, streamed or not; other models do not, nor anybody
    where there is none."""
    fused = Model("duet", [deploy()], members=("a", "b"), prices={})
    plain = Model("a", [deploy()], prices={})
    now = asyncio.get_running_loop().time()
    await fused.call(CHAT, BODY, Calling(deadline=now + 5))
    async for _ in await fused.stream(CHAT, BODY, Calling(deadline=now + 5)):
        pass
    await plain.call(CHAT, BODY, Calling(deadline=now + 5))
    await fused.call(CHAT, BODY)
    told = [seen.headers.get("x-chorus-deadline-ms") for seen in upstream.seen]
    assert all(0 < int(ms or 0) <= 5000 for ms in told[:2])
    assert told[2:] == [None, None]


async def test_fusion(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A fusion's members are priced each for itself, and their table does not reach the caller."""
    upstream.default = Script(extra=MEMBERS)
    duet = Model("duet", [deploy()], members=("a", "b"), prices={"a": Price(1, 1), "b": Price(10, 10)})
    completed = await duet.call(CHAT, BODY)
    assert [(share.model, share.cost_usd) for share in completed.shares] == [("a", 7.0), ("b", 80.0)]
    assert "chorus" not in completed.body
    assert completed.raw is None
    stream = await duet.stream(CHAT, BODY)
    assert [event async for event in stream]
    assert [share.cost_usd for share in stream.shares] == [7.0, 80.0]
    assert stream.usage_event is not None
    assert "chorus" not in stream.usage_event


async def test_deployments_take_turns(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """Several deployments that are equally busy are asked in turn."""
    model = Model("m", [deploy(model="x"), deploy(model="y")], prices={}, rule="least-busy")
    for _ in range(4):
        await model.call(CHAT, BODY)
    assert [seen.body["model"] for seen in upstream.seen] == ["x", "y", "x", "y"]


@pytest.mark.parametrize("stream", [False, True])
async def test_unreachable_deployment_is_passed_over(
    deploy: Deploy, upstream: ScriptedUpstream, stream: bool
) -> None:
    """A deployment that cannot be reached costs one more attempt, at the next."""
    model = Model("m", [deploy(base_url="http://127.0.0.1:9/v1"), deploy()], prices={})
    for _ in range(4):
        if stream:
            (await model.stream(CHAT, BODY)).abort()
        else:
            await model.call(CHAT, BODY)
    assert len(upstream.seen) == 4


async def test_attempts_are_bounded(deploy: Deploy) -> None:
    """With nobody reachable each deployment is asked once, and the error tells the caller to leave it."""
    dead = "http://127.0.0.1:9/v1"
    calling = Calling()
    with pytest.raises(NotConnected) as caught:
        await Model("m", [deploy(base_url=dead)] * 3, prices={}).call(CHAT, BODY, calling)
    assert sorted(attempt.deployment for attempt in calling.attempts) == [0, 1, 2]
    assert caught.value.headers()["x-should-retry"] == "false"


async def test_nothing_is_done_twice(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A backend that may have done the work is not asked again; another deployment is, once."""
    upstream.default = Script(reset_after=0)
    with pytest.raises(UpstreamUnavailable) as alone:
        await Model("m", [deploy()], prices={}).call(CHAT, BODY)
    assert len(upstream.seen) == 1
    assert "x-should-retry" not in alone.value.headers()
    with pytest.raises(UpstreamUnavailable):
        await Model("m", [deploy(model="x"), deploy(model="y")], prices={}).call(CHAT, BODY)
    assert sorted(seen.body["model"] for seen in upstream.seen[1:]) == ["x", "y"]


async def test_a_stream_that_fails_before_its_words_is_asked_elsewhere(
    deploy: Deploy, upstream: ScriptedUpstream
) -> None:
    """What was held back of the first stream is never seen; the other one's events come whole."""
    upstream.scripts = {"bad": Script(error_after=0)}
    alone = [event async for event in await Model("m", [deploy()], prices={}).stream(CHAT, BODY)]
    model = Model("m", [deploy(model="bad"), deploy()], prices={}, rule="least-busy")
    calling = Calling()
    assert [event async for event in await model.stream(CHAT, BODY, calling)] == alone
    assert [attempt.outcome for attempt in calling.attempts] == ["upstream_broken", "ok"]


async def test_held_back_is_bounded(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A stream that says much before its first words is passed on after 64 events."""
    role = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
    upstream.default = Script(body=role * (HELD_EVENTS + 1), content_type="text/event-stream")
    events = aiter(await Model("m", [deploy()], prices={}).stream(CHAT, BODY))
    assert await anext(events) == role * (HELD_EVENTS + 1)
    with pytest.raises(UpstreamBroken):
        await anext(events)


async def test_breaker_opens_and_probes(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """After failures in a row nobody is asked for a while; then one probe decides."""
    upstream.default = Script(status=500)
    seat = Seat(breaker=Breaker(failures=2, cooldown_s=0.5))
    model = Model("m", [deploy()], prices={}, seats=[seat], retrying=Retrying(retries=0))
    for _ in range(2):
        with pytest.raises(UpstreamBroken):
            await model.call(CHAT, BODY)
    with pytest.raises(UpstreamUnavailable, match="left alone") as caught:
        await model.call(CHAT, BODY)
    assert len(upstream.seen) == 2
    assert caught.value.headers()["retry-after-ms"]
    upstream.default = Script()
    await asyncio.sleep(0.55)
    assert await model.call(CHAT, BODY)
    assert not seat.breaker.open


async def test_room_is_waited_for(deploy: Deploy, upstream: ScriptedUpstream, until: Any) -> None:
    """Within `max_concurrent`, calls wait for one another in the order they came."""
    upstream.default = Script(chunk_delay_s=0.01)
    seat = Seat(max_concurrent=1)
    model = Model("m", [deploy()], prices={}, seats=[seat])
    stream = await model.stream(CHAT, BODY)
    waiting = [asyncio.create_task(model.call(CHAT, BODY)) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert len(upstream.seen) == 1
    waiting[1].cancel()
    assert [event async for event in stream]
    await waiting[0]
    await waiting[2]
    assert (len(upstream.seen), seat.under_way) == (3, 0)


async def test_requests_per_minute(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A limit that leaves no room for long is a 429 that says for how long; nobody is asked."""
    model = Model("m", [deploy()], prices={}, seats=[Seat(requests=Bucket(2, 2 / 60))])
    for _ in range(2):
        await model.call(CHAT, BODY)
    with pytest.raises(UpstreamBusy) as caught:
        await model.call(CHAT, BODY)
    assert 25 < float(caught.value.headers()["retry-after"]) <= 30
    assert len(upstream.seen) == 2


async def test_tokens_per_minute(deploy: Deploy) -> None:
    """Tokens that were read and written count, also those written without a bound."""
    seat = Seat(tokens=Bucket(10, 10 / 60))
    model = Model("m", [deploy()], prices={}, seats=[seat])
    await model.call(CHAT, {"messages": [{"role": "user", "content": "x" * 20}]})
    with pytest.raises(UpstreamBusy):
        await model.call(CHAT, {"messages": [{"role": "user", "content": "x" * 20}]})


@pytest.mark.parametrize("stream", [False, True])
async def test_hedging(deploy: Deploy, upstream: ScriptedUpstream, until: Any, stream: bool) -> None:
    """A slow call is asked of a second deployment; the first answer counts and the other call is ended."""
    upstream.scripts = {"slow": Script(delay_s=60)}
    model = Model(
        "m",
        [deploy(model="slow"), deploy(model="fast")],
        prices={"m": Price(1.0, 1.0)},
        rule="least-busy",
        hedge=Hedge(after_s=0.02, max_cost_usd=1.0),
    )
    calling = Calling()
    if stream:
        assert [event async for event in await model.stream(CHAT, BODY, calling)]
    else:
        await model.call(CHAT, BODY, calling)
    await until(lambda: upstream.left == ["slow"])
    assert (calling.hedges, [seat.under_way for seat in model.seats]) == (1, [0, 0])
    assert model.hedge_shares({"prompt": "x" * 8})[0].cost_usd == 2.0
    assert model.reserve_usd({"prompt": "x" * 4, "max_tokens": 1}) == 2.0  # dearer than the cap: no hedge


async def test_no_hedge_beyond_its_price(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A call dearer than `max_cost_usd` waits for its first deployment."""
    upstream.default = Script(delay_s=0.1)
    model = Model(
        "m", [deploy(), deploy()], prices={"m": Price(1.0, 1.0)}, hedge=Hedge(after_s=0.01, max_cost_usd=1.0)
    )
    await model.call(CHAT, {**BODY, "max_tokens": 5})
    assert len(upstream.seen) == 1


async def test_a_session_keeps_its_deployment(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """Calls of one session go to one deployment, sessions to all."""
    model = Model("m", [deploy(model="x"), deploy(model="y")], prices={})
    for i in range(24):
        await model.call(CHAT, BODY, Calling(session=f"s{i % 8}"))
    asked = [seen.body["model"] for seen in upstream.seen]
    assert asked[:8] == asked[8:16] == asked[16:]
    assert set(asked) == {"x", "y"}


async def test_malformed_members_do_not_pass_for_a_plain_model(
    model: Model, upstream: ScriptedUpstream
) -> None:
    """A plain model's answer keeps a `chorus` object that its backend wrote."""
    upstream.default = Script(extra={"chorus": {"other": 1}})
    completed = await model.call(CHAT, BODY)
    assert completed.raw is not None
    assert json.loads(completed.raw)["chorus"] == {"other": 1}
