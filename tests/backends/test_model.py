"""A model with its deployments and price."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from backends.model import Model
from backends.openai_http import Deployment
from backends.scripted import Script, ScriptedUpstream
from backends.upstream_errors import NotConnected
from protocol.errors import UpstreamUnavailable
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
    """Several deployments are asked in turn."""
    model = Model("m", [deploy(model="x"), deploy(model="y")], prices={})
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


async def test_at_most_two_attempts(deploy: Deploy) -> None:
    """With nobody reachable the second attempt is the last."""
    dead = "http://127.0.0.1:9/v1"
    with pytest.raises(NotConnected):
        await Model("m", [deploy(base_url=dead)] * 3, prices={}).call(CHAT, BODY)


async def test_nothing_is_done_twice(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A request that a backend may have read is not sent again."""
    upstream.default = Script(reset_after=0)
    with pytest.raises(UpstreamUnavailable):
        await Model("m", [deploy(), deploy()], prices={}).call(CHAT, BODY)
    assert len(upstream.seen) == 1


async def test_malformed_members_do_not_pass_for_a_plain_model(
    model: Model, upstream: ScriptedUpstream
) -> None:
    """A plain model's answer keeps a `chorus` object that its backend wrote."""
    upstream.default = Script(extra={"chorus": {"other": 1}})
    completed = await model.call(CHAT, BODY)
    assert completed.raw is not None
    assert json.loads(completed.raw)["chorus"] == {"other": 1}
