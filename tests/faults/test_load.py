"""Many at once, and large: what a crowd must not break."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from typing import Any

import httpx
import pytest

from backends.registry import make_models
from backends.scripted import Script, ScriptedUpstream
from gateway.app import make_app
from gateway.catalogue import Catalogue
from gateway.run import Limits, open_run
from protocol.chat import ChatRequest
from protocol.run import Answer, Chunk
from protocol.settings import parse_settings
from tests.listening import listening
from tests.raw_upstream import RawUpstream, chat_answer

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
    assert all(isinstance(event, Chunk) for events in told for event in events)
    assert all(b"".join(event.data for event in events).count(b"\n\n") == 5 for events in told)


async def test_places_are_handed_on() -> None:
    """With few places at a deployment a crowd queues, and nobody is forgotten or let in twice."""
    upstream = ScriptedUpstream(default=Script(text="one"))
    request = ChatRequest({"model": "one", "messages": [{"role": "user", "content": "x"}]})
    told = await serve_and_ask(upstream, request, 200, max_concurrent=3)
    assert all(isinstance(events[0], Answer) for events in told)
    assert len(upstream.seen) == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_image_bodies_of_a_megabyte(path: str) -> None:
    """Twenty images of a megabyte at once, over sockets: each reaches the backend byte for byte, on every surface."""
    draw = random.Random(7)
    images = [base64.b64encode(draw.randbytes(1 << 20)).decode() for _ in range(20)]
    upstream = RawUpstream()
    upstream.answer("/v1/chat/completions", chat_answer({"content": "x"}))
    for native in ("/v1/messages", "/v1/responses"):
        upstream.answer(native, {"usage": {"input_tokens": 1, "output_tokens": 1}})
    async with upstream.serving() as url:
        deployment = {"base_url": url, "model": "x", "endpoints": ["chat", "messages", "responses"]}
        app = make_app(parse_settings(json.dumps({"models": {"one": {"openai": deployment}}})), {})
        async with (
            listening(app) as base,
            httpx.AsyncClient(base_url=base, timeout=60, verify=False) as client,
        ):
            bodies = [_with_image(path, image) for image in images]
            told = await asyncio.gather(*(client.post(path, json=body) for body in bodies))
    assert [answer.status_code for answer in told] == [200] * 20
    field = "input" if "responses" in path else "messages"
    assert sorted(str(seen.body[field]) for seen in upstream.seen) == sorted(
        str(body[field]) for body in bodies
    )


def _with_image(path: str, image: str) -> dict[str, Any]:
    """A request that shows an image, in the words of its surface."""
    url = f"data:image/png;base64,{image}"
    match path:
        case "/v1/messages":
            source = {"type": "base64", "media_type": "image/png", "data": image}
            content: Any = [{"type": "image", "source": source}]
        case "/v1/responses":
            content = [{"type": "input_image", "image_url": url}]
        case _:
            content = [{"type": "image_url", "image_url": {"url": url}}]
    said = [{"role": "user", "content": content}]
    return {"model": "one", "max_tokens": 5, "input" if "responses" in path else "messages": said}
