"""One deployment against the scripted upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from backends.openai_http import Deployment
from backends.scripted import Script, ScriptedUpstream
from backends.upstream_errors import NotConnected
from protocol.errors import SettingsError, UpstreamBroken, UpstreamRefused, UpstreamTimeout
from protocol.settings import OpenAIModel

CHAT = "/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}], "novel": 1}
Deploy = Callable[..., Deployment]


async def test_call(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """The body goes out whole but for the model's name; its key goes in the header; bytes come back as they
    are."""
    parsed, raw = await deploy().call(CHAT, BODY)
    assert json.loads(raw) == parsed
    assert raw.startswith(b"{\n")
    (seen,) = upstream.seen
    assert seen.body == {**BODY, "model": "theirs"}
    assert seen.headers["authorization"] == "Bearer sk-canary"


async def test_stream(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """Usage is always asked for, beside what the caller asked; it is kept, and `[DONE]` with it."""
    stream = await deploy().stream(CHAT, {**BODY, "stream": True, "stream_options": {"other": 1}})
    told = [event async for event in stream]
    assert upstream.seen[0].body["stream_options"] == {"other": 1, "include_usage": True}
    assert stream.tap.usage_event is not None
    assert stream.tap.usage_event["usage"]["completion_tokens"] == 8
    assert b"[DONE]" not in b"".join(told)


async def test_connection_is_used_again(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A stream read to its end leaves its connection for the next call."""
    deployment = deploy(max_connections=1)
    for _ in range(3):
        assert [event async for event in await deployment.stream(CHAT, BODY)]
    await deployment.call(CHAT, BODY)
    assert len(upstream.seen) == 4


async def test_unix_socket(deploy: Deploy, tmp_path: Path) -> None:
    """A `unix://` base URL is the server behind that socket, under /v1."""
    upstream = ScriptedUpstream()
    async with upstream.serving(uds=tmp_path / "x.sock") as url:
        deployment = deploy(base_url=url)
        await deployment.call(CHAT, BODY)
        assert upstream.seen[0].path == "/v1/chat/completions"
        assert await deployment.healthy()
        await deployment.close()
    assert not await deploy(base_url=url).healthy()


async def test_refused_connection(deploy: Deploy) -> None:
    """Nobody there: the request was certainly not read."""
    with pytest.raises(NotConnected):
        await deploy(base_url="http://127.0.0.1:9/v1").call(CHAT, BODY)


async def test_total_clock(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A call that takes longer than `timeout_s` is given up, whole or streamed."""
    upstream.default = Script(delay_s=30)
    with pytest.raises(UpstreamTimeout):
        await deploy(timeout_s=0.05).call(CHAT, BODY)
    upstream.default = Script(text="word " * 500, chunk_delay_s=0.02)
    stream = await deploy(timeout_s=0.2).stream(CHAT, BODY)
    with pytest.raises(UpstreamTimeout):
        [event async for event in stream]


async def test_redirects_are_not_followed(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """An upstream cannot send the request, and the key with it, elsewhere."""
    upstream.default = Script(status=307, headers={"location": "http://127.0.0.1:9/"})
    with pytest.raises(UpstreamBroken, match="307"):
        await deploy().call(CHAT, BODY)
    assert len(upstream.seen) == 1


async def test_first_token_clock(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A stream without words in time is given up, whether the upstream is silent or only says who speaks."""
    deployment = deploy(first_token_timeout_s=0.05)
    upstream.default = Script(delay_s=30)
    with pytest.raises(UpstreamTimeout):
        await deployment.stream(CHAT, BODY)
    upstream.default = Script(text="", chunk_delay_s=30)
    stream = await deployment.stream(CHAT, BODY)
    with pytest.raises(UpstreamTimeout):
        [event async for event in stream]


async def test_idle_clock(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """A stream that falls silent between words is given up; one that is slower than its reader is not."""
    upstream.default = Script(chunk_delay_s=30)
    stream = await deploy(idle_timeout_s=0.05).stream(CHAT, BODY)
    with pytest.raises(UpstreamTimeout):
        [event async for event in stream]


async def test_a_slow_reader_is_not_the_upstreams_fault(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """The idle clock runs only while the upstream is waited for."""
    upstream.default = Script(text="word " * 5, chunk_delay_s=0.01)
    events = aiter(await deploy(idle_timeout_s=0.3).stream(CHAT, BODY))
    await anext(events)
    await asyncio.sleep(0.7)
    assert b"".join([data async for data in events]).endswith(b'"finish_reason":"stop"}]}\n\n')


@pytest.mark.parametrize("body", [b"", b"{}", b'{"choices": []}', b'{"choices": [{"message": "x"}]}'])
async def test_empty_answers(deploy: Deploy, upstream: ScriptedUpstream, body: bytes) -> None:
    """A 200 without an answer in it is none."""
    upstream.default = Script(body=body)
    with pytest.raises(UpstreamBroken):
        await deploy().call(CHAT, BODY)


async def test_bad_base_url() -> None:
    """A base URL that cannot be used stops the start, naming the model and not the URL's secrets."""
    with pytest.raises(SettingsError, match=r"models\.m\.openai: credentials"):
        Deployment("m", OpenAIModel(base_url="http://user:canary@host/v1", model="x"))


@pytest.mark.parametrize("stream", [False, True])
async def test_refusal(deploy: Deploy, upstream: ScriptedUpstream, stream: bool) -> None:
    """An upstream's 400 is passed on, with the key blotted out."""
    upstream.default = Script(status=400, body=b'{"error": {"message": "bad sk-canary"}}')
    with pytest.raises(UpstreamRefused, match=r"bad \[redacted\]"):
        await (deploy().stream if stream else deploy().call)(CHAT, BODY)


async def test_no_stream(deploy: Deploy, upstream: ScriptedUpstream) -> None:
    """An answer that is no stream is not taken for one."""
    upstream.default = Script(body=b"{}")
    with pytest.raises(UpstreamBroken, match="stream"):
        await deploy().stream(CHAT, BODY)


async def test_cancelling_aborts(deploy: Deploy, upstream: ScriptedUpstream, until: Any) -> None:
    """Cancelling a call closes its connection."""
    upstream.default = Script(delay_s=60)
    for ask in (deploy().call, deploy().stream):
        upstream.left.clear()
        upstream.seen.clear()
        asking = asyncio.ensure_future(ask(CHAT, BODY))
        await until(lambda: len(upstream.seen) == 1)
        asking.cancel()
        await until(lambda: upstream.left == ["theirs"])


@pytest.mark.parametrize("how", ["close the iterator", "abort"])
async def test_leaving_a_stream_aborts(
    deploy: Deploy, upstream: ScriptedUpstream, until: Any, how: str
) -> None:
    """A stream that is left closes its connection."""
    upstream.default = Script(text="word " * 1000, chunk_delay_s=0.02)
    stream = await deploy().stream(CHAT, BODY)
    async with aclosing(cast(Any, stream.__aiter__())) as events:
        await anext(events)
        if how == "abort":
            stream.abort()
            await until(lambda: upstream.left == ["theirs"])
    await until(lambda: upstream.left == ["theirs"])
