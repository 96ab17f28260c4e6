"""The hot routes, through real sockets, against a scripted upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest

from backends.scripted import Script, ScriptedUpstream
from protocol.chat import ChatRequest
from protocol.run import Answer, Event, Run
from protocol.usage import Usage

Sdk = Callable[[httpx.AsyncClient], openai.AsyncOpenAI]


def events(text: str) -> list[str]:
    """The payloads of a stream."""
    return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


class Both:
    """Ask two models at once, answer with the first one's text."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        first, second = await run.gather([("one", request), ("two", request)])
        if isinstance(first, Exception) or isinstance(second, Exception):
            raise first if isinstance(first, Exception) else second  # type: ignore[misc]
        run.trace.note(asked=2)
        yield Answer(first)


class Silent:
    """Breaks the law that a strategy answers."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        return
        yield


class Buggy:
    """Has a bug."""

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        raise ZeroDivisionError("secret detail")
        yield


async def test_relays_bytes(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """A plain answer reaches the caller byte for byte, with who answered and what it cost in the headers."""
    body = b'{ "id":"x",  "choices":[{"message":{"content":"hi","reasoning_content":"hm"}}],"novel":[1 ,2]}'
    upstream.default = Script(body=body)
    response = await chat(await serve(), "one")
    assert response.content == body
    assert response.headers["x-chorus-strategy"] == "direct"
    assert response.headers["x-chorus-model"] == "one"
    # No usage was reported: 4 tokens for the 14 bytes asked, none for the 2 that came.
    assert response.headers["x-chorus-cost-usd"] == "0.000004"
    assert int(response.headers["openai-processing-ms"]) >= 0


async def test_left_out_header(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """Members that a fused answer had to do without are named in a header."""
    members = [{"model": "one", "prompt_tokens": 1, "completion_tokens": 2}]
    out = [{"index": 0, "model": "two", "why": "load", "at": 0}]
    upstream.default = Script(extra={"chorus": {"members": members, "left_out": out}})
    response = await chat(await serve(), "one")
    assert response.headers["x-chorus-left-out"] == "two"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_left_out_of_a_stream(serve: Any, upstream: ScriptedUpstream, path: str) -> None:
    """Whom a stream begins without stands in the header, on every surface."""
    upstream.default = Script(headers={"x-chorus-left-out": "two,three"})
    body = {"model": "one", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}], "stream": True}
    response = await (await serve()).post(path, json=body)
    assert response.status_code == 200, response.text
    assert response.headers["x-chorus-left-out"] == "two,three"


async def test_left_out_in_mid_stream(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """A member that is lost in mid-text is no header's to tell: it stands beside the cost at the stream's end."""
    members = [{"model": "one", "prompt_tokens": 1, "completion_tokens": 2}]
    out = [{"index": 0, "model": "two", "why": "failed", "at": 7}]
    upstream.default = Script(extra={"chorus": {"members": members, "left_out": out}})
    response = await chat(await serve(), "one", stream=True, stream_options={"include_usage": True})
    *_, last, _ = events(response.text)
    assert json.loads(last)["chorus"]["left_out"] == ["two"]
    assert json.loads(last)["chorus"]["cost_usd"] > 0
    assert "x-chorus-left-out" not in response.headers


async def test_cost_header(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """The cost is a plain decimal number: tokens times the configured price."""
    upstream.default = Script(usage=Usage(3, 1))
    response = await chat(await serve(), "one")
    assert response.headers["x-chorus-cost-usd"] == "0.000005"


async def test_request_goes_out_whole(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """Unknown fields survive, the model's name is the upstream's, `chorus` and the caller's headers stay
    here."""
    headers = {"authorization": "Bearer sk-callers", "x-chorus-evil": "1", "traceparent": "garbage"}
    await chat(await serve(), "one", novel={"a": [1]}, chorus={"quality": 1}, headers=headers)
    (seen,) = upstream.seen
    assert seen.body["novel"] == {"a": [1]}
    assert seen.body["model"] == "upstream-one"
    assert "chorus" not in seen.body
    assert "authorization" not in seen.headers
    assert not any("chorus" in name for name in seen.headers)


async def test_stream_relays_events(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """A stream is passed on event by event, closed by `[DONE]`; usage that was not asked for is withheld."""
    response = await chat(await serve(), "one", stream=True)
    *told, done = events(response.text)
    assert done == "[DONE]"
    assert "".join(json.loads(e)["choices"][0]["delta"].get("content", "") for e in told) == Script().text
    assert upstream.seen[0].body["stream_options"] == {"include_usage": True}
    assert not any(json.loads(event).get("usage") for event in told)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-chorus-model"] == "one"
    assert "x-chorus-cost-usd" not in response.headers


async def test_stream_usage_asked(serve: Any, chat: Any) -> None:
    """Asked for, usage stands in the last event, with the stream's cost beside it."""
    response = await chat(await serve(), "one", stream=True, stream_options={"include_usage": True})
    told = [json.loads(event) for event in events(response.text)[:-1]]
    assert told[-1]["choices"] == []
    assert told[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 8, "total_tokens": 15}
    assert told[-1]["chorus"] == {"cost_usd": pytest.approx(23e-6)}
    assert all(event["usage"] is None for event in told[:-1])
    assert len({(event["id"], event["created"], event["model"]) for event in told}) == 1


async def test_stream_usage_missing(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """Where a backend reports no usage, none is invented."""
    upstream.default = Script(usage=None)
    response = await chat(await serve(), "one", stream=True, stream_options={"include_usage": True})
    last = json.loads(events(response.text)[-2])
    assert last["usage"] is None
    assert last["id"] == "scripted-1"


async def test_stream_explained(serve: Any, chat: Any) -> None:
    """`explain` in a stream puts the explanation, and only it, into the last event."""
    response = await chat(await serve(), "one", stream=True, chorus={"explain": True})
    last = json.loads(events(response.text)[-2])
    assert "usage" not in last
    assert last["chorus"]["calls"][0]["completion_tokens"] == 8


async def test_composed_answer(serve: Any, chat: Any) -> None:
    """Several calls: usage is their sum, and the explanation has every call and a row for each model."""
    client = await serve(strategies={"both": Both()})
    response = await chat(client, "both", chorus={"explain": True})
    body = response.json()
    assert body["usage"]["completion_tokens"] == 16
    told = body["chorus"]
    assert told["strategy"] == "both"
    assert told["decision"] == {"asked": 2}
    assert sorted(call["model"] for call in told["calls"]) == ["one", "two"]
    assert {row["model"]: row["completion_tokens"] for row in told["members"]} == {"one": 8, "two": 8}
    assert told["cost_usd"] == pytest.approx(46e-6)
    assert response.headers["x-chorus-strategy"] == "both"
    assert response.headers["x-chorus-cost-usd"] == "0.000046"


async def test_complete_answer_streamed(serve: Any, sdk: Sdk, messages: Any) -> None:
    """A strategy that answers at once is replayed to a streaming caller as the chunks of a stream."""
    client = sdk(await serve(strategies={"both": Both()}))
    stream = await client.chat.completions.create(
        model="both", messages=messages, stream=True, stream_options={"include_usage": True}
    )
    told = [chunk async for chunk in stream]
    assert told[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in told if c.choices) == Script().text
    assert told[-2].choices[0].finish_reason == "stop"
    assert told[-1].usage is not None
    assert told[-1].usage.completion_tokens == 16


async def test_tool_calls_survive(serve: Any, sdk: Sdk, messages: Any, upstream: ScriptedUpstream) -> None:
    """Tool calls come through as the backend sent them."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    upstream.default = Script(message={"tool_calls": [call]})
    answer = await sdk(await serve()).chat.completions.create(model="one", messages=messages)
    assert answer.choices[0].message.tool_calls is not None
    assert answer.choices[0].message.tool_calls[0].id == "c1"


async def test_completions(serve: Any, sdk: Sdk) -> None:
    """Text completions are relayed, whole and streamed."""
    client = sdk(await serve())
    whole = await client.completions.create(model="one", prompt="Once")
    assert whole.choices[0].text == Script().text
    stream = await client.completions.create(model="one", prompt="Once", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == Script().text


async def test_embeddings(serve: Any, sdk: Sdk) -> None:
    """Embeddings are relayed in either encoding."""
    client = sdk(await serve())
    for encoding in ("float", "base64"):
        answer = await client.embeddings.create(model="one", input=["a", "bb"], encoding_format=encoding)
        assert len(answer.data) == 2
    assert answer.usage.prompt_tokens == 2


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "nope"}, 404, "model", "model_not_found"),
        ({"model": None}, 400, "model", None),
        ({"messages": None}, 400, "messages", None),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, "messages[0].role", None),
        ({"max_tokens": 0}, 400, "max_tokens", None),
        ({"temperature": 9}, 400, "temperature", None),
        ({"chorus": {"quallity": 1}}, 400, "chorus.quallity", None),
    ],
)
async def test_caller_errors(
    serve: Any, messages: Any, fields: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    """What a caller got wrong is told in OpenAI's shape, naming the field, before any backend is asked."""
    client = await serve()
    body = {"model": "one", "messages": messages, **fields}
    response = await client.post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == status
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert response.headers["x-request-id"]


async def test_unknown_model_names_the_known(serve: Any, chat: Any) -> None:
    """An unknown model's error lists what there is."""
    response = await chat(await serve(), "nope")
    assert "one, two" in response.json()["error"]["message"]


async def test_invalid_json(serve: Any) -> None:
    """A body that is no JSON is a 400."""
    response = await (await serve()).post("/v1/chat/completions", content=b"{nope")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (401, openai.InternalServerError),
        (500, openai.InternalServerError),
        (503, openai.InternalServerError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_upstream_refusals(
    serve: Any, sdk: Sdk, messages: Any, upstream: ScriptedUpstream, status: int, error: Any, stream: bool
) -> None:
    """Each status of an upstream becomes the SDK's own class of error, streamed or not."""
    upstream.default = Script(status=status)
    with pytest.raises(error) as caught:
        await sdk(await serve()).chat.completions.create(model="one", messages=messages, stream=stream)
    assert caught.value.request_id


async def test_rate_limit_tells_when_to_return(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """An upstream's wait is passed on in both headers that SDKs read."""
    upstream.default = Script(status=429, headers={"retry-after": "7"})
    response = await chat(await serve(), "one")
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("7", "7000")
    assert response.json()["error"]["code"] == "rate_limit_exceeded"


@pytest.mark.parametrize(
    "script",
    [
        Script(body=b'{"id": "x", "choi'),
        Script(body=b"[]"),
        Script(body=b"<html>", content_type="text/html"),
    ],
)
async def test_broken_answers(serve: Any, chat: Any, upstream: ScriptedUpstream, script: Script) -> None:
    """What is no answer is a 502, not a 200."""
    upstream.default = script
    response = await chat(await serve(), "one")
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_broken"


@pytest.mark.parametrize(
    "script",
    [
        Script(reset_after=2),
        Script(malformed_after=2),
        Script(error_after=2),
        Script(done=False),
    ],
)
async def test_broken_streams(
    serve: Any, sdk: Sdk, chat: Any, messages: Any, upstream: ScriptedUpstream, script: Script
) -> None:
    """A stream that breaks ends with an error event and without `[DONE]`, so that the SDK raises."""
    upstream.default = script
    client = await serve()
    response = await chat(client, "one", stream=True)
    last = json.loads(events(response.text)[-1])
    assert last["error"]["code"] == "upstream_broken"
    assert "[DONE]" not in response.text
    with pytest.raises(openai.APIError):
        async for _ in await sdk(client).chat.completions.create(model="one", messages=messages, stream=True):
            pass


@pytest.mark.parametrize("stream", [False, True])
async def test_lost_before_the_answer(
    serve: Any, chat: Any, upstream: ScriptedUpstream, stream: bool
) -> None:
    """A connection lost before the first event is a status that says when to come back, not an event."""
    upstream.default = Script(reset_after=0)
    response = await chat(await serve(), "one", stream=stream)
    assert response.status_code == 503
    assert response.headers["retry-after"]


@pytest.mark.parametrize("stream", [False, True])
async def test_unreachable(serve: Any, chat: Any, stream: bool) -> None:
    """No connection is a 503 that says when to come back, and neither whereto nor with which key it was
    tried."""
    dead = {"base_url": "http://127.0.0.1:9/v1", "model": "x", "api_key": "sk-canary"}
    response = await chat(await serve({"gone": {"openai": dead}}), "gone", stream=stream)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "upstream_unavailable"
    assert response.headers["retry-after"]
    assert "canary" not in response.text
    assert "127.0.0.1" not in response.text


@pytest.mark.parametrize("stream", [False, True])
async def test_client_leaves_before_the_answer(
    until: Any, serve: Any, messages: Any, upstream: ScriptedUpstream, stream: bool
) -> None:
    """A caller who leaves while waiting ends the upstream's work, streamed or not."""
    upstream.default = Script(delay_s=60)
    client = await serve()
    body = {"model": "one", "messages": messages, "stream": stream}
    asking = asyncio.create_task(client.post("/v1/chat/completions", json=body))
    await until(lambda: len(upstream.seen) == 1)
    asking.cancel()
    await until(lambda: upstream.left == ["upstream-one"])


async def test_client_leaves_mid_stream(
    until: Any, serve: Any, messages: Any, upstream: ScriptedUpstream
) -> None:
    """A caller who leaves a running stream ends the upstream's work."""
    upstream.default = Script(text="word " * 1000, chunk_delay_s=0.02)
    client = await serve()
    body = {"model": "one", "messages": messages, "stream": True}
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        async for _ in response.aiter_bytes():
            break
    await until(lambda: upstream.left == ["upstream-one"])


async def test_client_leaves_a_composed_answer(
    until: Any, serve: Any, messages: Any, upstream: ScriptedUpstream
) -> None:
    """Every branch of the tree ends with its caller."""
    upstream.default = Script(delay_s=60)
    client = await serve(strategies={"both": Both()})
    asking = asyncio.create_task(
        client.post("/v1/chat/completions", json={"model": "both", "messages": messages})
    )
    await until(lambda: len(upstream.seen) == 2)
    asking.cancel()
    await until(lambda: sorted(upstream.left) == ["upstream-one", "upstream-two"])
    metrics = (await client.get("/metrics")).text
    assert 'chorus_requests_total{outcome="cancelled",requested_model="both",strategy="both"} 1.0' in metrics


async def test_deadline(until: Any, serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """The caller's deadline ends the tree with a 504, and the upstream's work with it."""
    upstream.default = Script(delay_s=60)
    response = await chat(await serve(), "one", chorus={"deadline_ms": 50})
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    await until(lambda: upstream.left == ["upstream-one"])


async def test_deadline_mid_stream(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """A deadline that passes mid-stream is told in the stream."""
    upstream.default = Script(text="word " * 1000, chunk_delay_s=0.05)
    response = await chat(await serve(), "one", stream=True, chorus={"deadline_ms": 100})
    assert json.loads(events(response.text)[-1])["error"]["code"] == "deadline_exceeded"


async def test_budget(serve: Any, chat: Any, upstream: ScriptedUpstream) -> None:
    """A call that would break the caller's budget is not made."""
    response = await chat(await serve(), "one", max_tokens=1000, chorus={"max_cost_usd": 0.001})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "budget_exceeded"
    assert response.headers["x-should-retry"] == "false"
    assert not upstream.seen


@pytest.mark.parametrize(("strategy", "code"), [(Silent(), "method_error"), (Buggy(), "internal_error")])
async def test_strategy_faults(
    serve: Any, chat: Any, caplog: pytest.LogCaptureFixture, strategy: Any, code: str
) -> None:
    """A strategy that breaks its law, or has a bug, is a 500 that tells nothing of our insides."""
    response = await chat(await serve(strategies={"bad": strategy}), "bad")
    assert response.status_code == 500
    assert response.json()["error"]["code"] == code
    assert "secret detail" not in response.text


async def test_strategies_serve_chat_only(serve: Any) -> None:
    """Text completions and embeddings are for models: a strategy's name there is a 400."""
    client = await serve(strategies={"both": Both()})
    for path, field in (("completions", "prompt"), ("embeddings", "input")):
        response = await client.post(f"/v1/{path}", json={"model": "both", field: "x"})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "model"


async def test_metrics_count_requests(serve: Any, chat: Any) -> None:
    """Every request is counted once, by known names only."""
    client = await serve()
    await chat(client, "one")
    await chat(client, "one", stream=True)
    await chat(client, "x" * 50)
    metrics = (await client.get("/metrics")).text
    assert 'chorus_requests_total{outcome="ok",requested_model="one",strategy="direct"} 2.0' in metrics
    assert (
        'chorus_requests_total{outcome="model_not_found",requested_model="unknown",strategy="none"} 1.0'
        in metrics
    )
    assert 'chorus_tokens_total{kind="output",model="one"} 16.0' in metrics
    assert "xxx" not in metrics
    assert "chorus_requests_in_flight 0.0" in metrics
