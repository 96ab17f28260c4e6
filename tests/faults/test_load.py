"""Many at once, and large: what a crowd must not break."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from backends.registry import make_models
from backends.scripted import Script, ScriptedUpstream
from gateway.catalogue import Catalogue
from gateway.run import Limits, open_run
from protocol.chat import ChatRequest
from protocol.run import Answer, Chunk
from protocol.settings import parse_settings

STREAMS = 2000


async def serve_and_ask(
    upstream: ScriptedUpstream, request: ChatRequest, times: int, **section: Any
) -> list[Any]:
    """The events of `times` relays at once, through a pool of a hundred connections; nothing may stay open."""
    async with upstream.serving() as url:
        deployment = {"base_url": url, "model": "x", "max_connections": 100, **section}
        models = make_models(parse_settings(f"models: {{one: {{openai: {deployment}}}}}"), {})
        model = models["one"]
        catalogue = Catalogue(models, {})

        async def one() -> list[Any]:
            async with open_run(catalogue, Limits(120.0)) as run:
                return [event async for event in run.relay("one", request)]

        told = await asyncio.gather(*[one() for _ in range(times)])
        client = model.deployments[0].client
        assert (client.open - client.idle, client.waiting, model.seats[0].under_way) == (0, 0, 0)
        await model.close()
        return told


async def test_two_thousand_streams() -> None:
    """Far more streams than connections: each waits its turn and gets its whole answer."""
    upstream = ScriptedUpstream(default=Script(text="one two three"))
    request = ChatRequest({"model": "one", "messages": [{"role": "user", "content": "x"}], "stream": True})
    told = await serve_and_ask(upstream, request, STREAMS)
    assert len(told) == len(upstream.seen) == STREAMS
    assert all(len(events) == 5 and isinstance(events[0], Chunk) for events in told)


async def test_places_are_handed_on() -> None:
    """With few places at a deployment a crowd queues, and nobody is forgotten or let in twice."""
    upstream = ScriptedUpstream(default=Script(text="one"))
    request = ChatRequest({"model": "one", "messages": [{"role": "user", "content": "x"}]})
    told = await serve_and_ask(upstream, request, 200, max_concurrent=3)
    assert all(isinstance(events[0], Answer) for events in told)
    assert len(upstream.seen) == 200


async def test_image_bodies_of_a_megabyte() -> None:
    """Large bodies reach the backend as they are."""
    image = base64.b64encode(bytes(range(256)) * 4096).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{image}"}}
    body = {"model": "one", "messages": [{"role": "user", "content": [part]}]}
    upstream = ScriptedUpstream()
    await serve_and_ask(upstream, ChatRequest(body), 20)
    assert all(seen.body["messages"] == body["messages"] for seen in upstream.seen)
