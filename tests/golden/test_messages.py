"""`/v1/messages` with the official Anthropic SDK and on the wire."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import pytest

from tests.raw_upstream import SSE, RawUpstream, chat_answer, chat_stream, recorded

CHAT = "/v1/chat/completions"
ASK: list[Any] = [{"role": "user", "content": "Say hello."}]
TOOL: Any = {
    "name": "weather",
    "description": "Of a city.",
    "input_schema": {"type": "object", "properties": {}},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream: name and data."""
    told = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        told.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return told


async def test_translated(anthropic_sdk: Any, upstream: RawUpstream) -> None:
    """A model that has only chat answers the SDK: text, stop reason and usage, cached input told apart."""
    upstream.answer(CHAT, chat_answer({"content": "Hello."}))
    told = await anthropic_sdk.messages.create(
        model="plain", max_tokens=16, system="Be kind.", messages=ASK, stop_sequences=["X"],
        extra_body={"top_k": 3, "temperature": 0.5},
    )  # fmt: skip
    assert [block.text for block in told.content] == ["Hello."]
    assert (told.stop_reason, told.role, told.type, told.model) == (
        "end_turn",
        "assistant",
        "message",
        "theirs",
    )
    assert (told.usage.input_tokens, told.usage.cache_read_input_tokens, told.usage.output_tokens) == (
        7,
        4,
        5,
    )
    assert upstream.seen[0].body == {
        "model": "theirs",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say hello."}],
        "max_tokens": 16,
        "stop": ["X"],
        "temperature": 0.5,
        "top_k": 3,
    }
    assert told._request_id


async def test_conversation_goes_out(anthropic_sdk: Any, upstream: RawUpstream) -> None:
    """Tools, images, tool results and thinking of a conversation become chat's messages, in order."""
    upstream.answer(CHAT, chat_answer({"content": "ok"}))
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    await anthropic_sdk.messages.create(
        model="plain",
        max_tokens=16,
        system=[
            {"type": "text", "text": "A", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "B"},
        ],
        tools=[TOOL],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        metadata={"user_id": "u1"},
        messages=[
            {"role": "user", "content": [image, {"type": "text", "text": "Weather?"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "s"},
                    {"type": "text", "text": "Looking."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "t1",
                        "content": [{"type": "text", "text": "fog"}, image],
                    },
                    {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
    )
    body = upstream.seen[0].body
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    arguments = '{"city":"Ulm"}'
    assert body["messages"] == [
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": [picture, {"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "fog"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
        {"role": "user", "content": [picture, {"type": "text", "text": "And?"}]},
    ]
    function = {"name": "weather", "parameters": TOOL["input_schema"], "description": "Of a city."}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert (body["tool_choice"], body["parallel_tool_calls"], body["user"]) == ("required", False, "u1")


async def test_tool_use_comes_back(anthropic_sdk: Any, upstream: RawUpstream) -> None:
    """Reasoning, text and tool calls become blocks in that order."""
    message = {"content": "Let me see.", "reasoning_content": "Fog?", "tool_calls": [CALL]}
    upstream.answer(CHAT, chat_answer(message, finish="tool_calls"))
    told = await anthropic_sdk.messages.create(model="plain", max_tokens=9, messages=ASK, tools=[TOOL])
    thinking, text, use = told.content
    assert (thinking.thinking, text.text) == ("Fog?", "Let me see.")
    assert (use.id, use.name, use.input) == ("call_1", "weather", {"city": "Ulm"})
    assert told.stop_reason == "tool_use"


@pytest.mark.parametrize(
    ("finish", "choice", "reason", "sequence"),
    [
        ("length", {}, "max_tokens", None),
        ("content_filter", {}, "refusal", None),
        ("stop", {"stop_reason": "END"}, "stop_sequence", "END"),
        ("stop", {"stop_reason": 2}, "end_turn", None),
    ],
)
async def test_stop_reasons(
    anthropic_sdk: Any, upstream: RawUpstream, finish: str, choice: Any, reason: str, sequence: str | None
) -> None:
    """Chat's finish reasons become Messages' stop reasons."""
    upstream.answer(CHAT, chat_answer({"content": "x"}, finish=finish, **choice))
    told = await anthropic_sdk.messages.create(model="plain", max_tokens=9, messages=ASK)
    assert (told.stop_reason, told.stop_sequence) == (reason, sequence)


async def test_stream(anthropic_sdk: Any, upstream: RawUpstream) -> None:
    """The SDK's stream helper puts the same message together from the events."""
    upstream.answer(
        CHAT,
        chat_stream(
            {"role": "assistant", "content": ""},
            {"reasoning_content": "Fo"},
            {"reasoning_content": "g?"},
            {"content": "Let me "},
            {"content": "see."},
            {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '"Ulm"}'}}]},
            {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "weather", "arguments": "{}"}}]},
            finish="tool_calls",
        ),
        content_type=SSE,
    )
    async with anthropic_sdk.messages.stream(
        model="plain", max_tokens=9, messages=ASK, tools=[TOOL]
    ) as stream:
        seen = [event.type async for event in stream]
        told = await stream.get_final_message()
    thinking, text, first, second = told.content
    assert (thinking.thinking, text.text) == ("Fog?", "Let me see.")
    assert [(use.id, use.input) for use in (first, second)] == [("c1", {"city": "Ulm"}), ("c2", {})]
    assert told.stop_reason == "tool_use"
    assert (told.usage.input_tokens, told.usage.output_tokens) == (11, 5)
    assert seen[0] == "message_start"
    assert seen[-1] == "message_stop"


async def test_stream_on_the_wire(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """Every event has its name, blocks open and close in order, and there is no `[DONE]`."""
    upstream.answer(
        CHAT, chat_stream({"role": "assistant", "content": ""}, {"content": "Hi"}), content_type=SSE
    )
    response = await client.post(
        "/v1/messages", json={"model": "plain", "max_tokens": 5, "stream": True, "messages": ASK}
    )
    told = events(response.text)
    assert [name for name, _ in told] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert all(name == data["type"] for name, data in told)
    assert "[DONE]" not in response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert upstream.seen[0].body["stream_options"] == {"include_usage": True}


async def test_broken_stream(anthropic_sdk: Any, client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """A stream that is cut ends with `event: error`, so that the SDK raises."""
    whole = chat_stream({"content": "Hi"}, {"content": " you"})
    upstream.answer(CHAT, whole[: whole.index(b" you")], content_type=SSE)
    body = {"model": "plain", "max_tokens": 5, "messages": ASK, "stream": True}
    told = events((await client.post("/v1/messages", json=body)).text)
    assert told[-1][0] == "error"
    assert told[-1][1]["error"]["type"] == "api_error"
    assert "message_stop" not in dict(told)
    with pytest.raises(anthropic.APIStatusError):
        async with anthropic_sdk.messages.stream(model="plain", max_tokens=5, messages=ASK) as stream:
            await stream.get_final_message()


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.APIStatusError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (503, anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_errors(anthropic_sdk: Any, upstream: RawUpstream, status: int, error: Any, kind: str) -> None:
    """Each status is the SDK's own class, in Anthropic's shape."""
    upstream.answer(CHAT, {"error": {"message": "no"}}, status=status)
    with pytest.raises(error) as caught:
        await anthropic_sdk.messages.create(model="plain", max_tokens=5, messages=ASK)
    assert caught.value.body["type"] == "error"
    assert caught.value.body["error"]["type"] == kind
    assert caught.value.request_id == caught.value.body["request_id"]


@pytest.mark.parametrize(
    ("fields", "status", "named"),
    [
        ({"max_tokens": None}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "king", "content": ""}]}, 400, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "search_result"}]}]},
            400,
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, 400, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "tools[0].type"),
        ({"tool_choice": {"type": "maybe"}}, 400, "tool_choice.type"),
        ({"container": {"id": "c"}}, 400, "container"),
        ({"mcp_servers": [{}]}, 400, "mcp_servers"),
        ({"inference_geo": "eu"}, 400, "inference_geo"),
        ({"stop_sequences": 3}, 400, "stop_sequences"),
        ({"temperature": 7}, 400, "temperature"),
        ({"thinking": {"type": "enabled"}}, 400, "thinking.budget_tokens"),
        ({"stream": "yes"}, 400, "stream"),
        ({"model": "nope"}, 404, "nope"),
    ],
)
async def test_refusals_name_the_field(
    client: httpx.AsyncClient, upstream: RawUpstream, fields: Any, status: int, named: str
) -> None:
    """What cannot be asked of a chat model is refused by the name the caller knows, before anyone is asked."""
    body = {"model": "plain", "max_tokens": 5, "messages": ASK, **fields}
    response = await client.post("/v1/messages", json=body)
    assert response.status_code == status
    assert named in response.json()["error"]["message"]
    assert not upstream.seen


async def test_options(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """Thinking and output format become chat's fields; `chorus` works here as everywhere."""
    upstream.answer(CHAT, chat_answer({"content": "{}"}))
    body = {
        "model": "plain",
        "max_tokens": 5,
        "messages": ASK,
        "thinking": {"type": "enabled", "budget_tokens": 5000},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "chorus": {"explain": True},
    }
    told = (await client.post("/v1/messages", json=body)).json()
    sent = upstream.seen[0].body
    assert sent["reasoning_effort"] == "medium"
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert "chorus" not in sent
    assert told["chorus"]["strategy"] == "direct"


async def test_count_tokens(anthropic_sdk: Any, client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """Where no backend can count, tokens are estimated, and the answer's headers say so."""
    short = await anthropic_sdk.messages.count_tokens(model="plain", messages=ASK)
    long = await anthropic_sdk.messages.count_tokens(
        model="plain", messages=ASK, tools=[TOOL], system="x" * 400
    )
    assert 3 <= short.input_tokens < 100 <= long.input_tokens
    raw = await client.post("/v1/messages/count_tokens", json={"model": "plain", "messages": ASK})
    assert raw.headers["x-chorus-token-count"] == "estimated"
    upstream.answer("/v1/messages/count_tokens", {"input_tokens": 42})
    counted = await anthropic_sdk.messages.count_tokens(model="native", messages=ASK)
    assert counted.input_tokens == 42


async def test_passed_through(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """A backend that speaks Messages gets the request as it is, but for the model's name, and its bytes come back."""
    answer = (
        b'{ "id": "m", "content": [ {"type":"novel"} ], "usage": {"input_tokens": 3, "output_tokens": 2} }'
    )
    upstream.answer("/v1/messages", answer)
    body = {"model": "native", "messages": ASK, "max_tokens": 1, "novel": [1], "container": {"id": "c"}}
    headers = {"x-api-key": "sk-callers", "anthropic-beta": "callers", "anthropic-version": "2023-06-01"}
    response = await client.post("/v1/messages", json=body, headers=headers)
    assert response.content == answer
    assert response.headers["x-chorus-cost-usd"] == "0.000007"
    (seen,) = upstream.seen
    assert seen.body == {**body, "model": "theirs"}
    assert seen.headers["authorization"] == "Bearer sk-canary-upstream"
    assert seen.headers["anthropic-version"] == "2023-06-01"
    assert "callers" not in str(seen.headers)


async def test_passed_through_with_anthropics_header(gateway: Any, upstream: RawUpstream) -> None:
    """A deployment may want its key in `x-api-key`; then it goes nowhere else."""
    upstream.answer("/v1/messages", {"content": []})
    url = await gateway(models={"claude": {"endpoints": ["messages"], "messages_auth": "x-api-key"}})
    async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-x") as sdk:
        await sdk.messages.create(model="claude", max_tokens=5, messages=ASK)
    assert upstream.seen[0].headers["x-api-key"] == "sk-canary-upstream"
    assert "authorization" not in upstream.seen[0].headers


NATIVE_STREAM = (
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"m","type":"message","role":"assistant",'
    b'"model":"theirs","content":[],"stop_reason":null,"stop_sequence":null,'
    b'"usage":{"input_tokens":3,"output_tokens":1}}}\n\n'
    b'event: ping\ndata: {"type": "ping"}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\n'
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
    b'"delta":{"type":"text_delta","text":"say \\"message_stop\\""}}\n\n'
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    b'"usage":{"output_tokens":9}}\n\n'
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
)


async def test_stream_passed_through(
    client: httpx.AsyncClient, anthropic_sdk: Any, upstream: RawUpstream
) -> None:
    """A native stream comes back byte for byte, whatever the chunking, and is paid for."""
    upstream.answer(
        "/v1/messages", *(NATIVE_STREAM[i : i + 7] for i in range(0, len(NATIVE_STREAM), 7)), content_type=SSE
    )
    body = {"model": "native", "messages": ASK, "max_tokens": 1, "stream": True}
    assert (await client.post("/v1/messages", json=body)).content == NATIVE_STREAM
    async with anthropic_sdk.messages.stream(model="native", max_tokens=5, messages=ASK) as stream:
        assert (await stream.get_final_message()).content[0].text == 'say "message_stop"'
    metrics = (await client.get("/metrics")).text
    assert 'chorus_tokens_total{kind="output",model="native"} 18.0' in metrics
    assert 'chorus_tokens_total{kind="input",model="native"} 6.0' in metrics


@pytest.mark.parametrize("cut", [b"event: message_delta", b"event: content_block_start"])
async def test_cut_stream_passed_through(
    client: httpx.AsyncClient, upstream: RawUpstream, cut: bytes
) -> None:
    """A native stream that is cut ends with an error event."""
    upstream.answer("/v1/messages", NATIVE_STREAM[: NATIVE_STREAM.index(cut)], content_type=SSE)
    body = {"model": "native", "messages": ASK, "max_tokens": 1, "stream": True}
    assert events((await client.post("/v1/messages", json=body)).text)[-1][0] == "error"


async def test_native_errors_are_told_in_ours(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """An error event of a native backend is told without the backend's secrets."""
    told = {"type": "error", "error": {"type": "api_error", "message": "key sk-canary-upstream is bad"}}
    upstream.answer(
        "/v1/messages", b"event: error\ndata: " + json.dumps(told).encode() + b"\n\n", content_type=SSE
    )
    body = {"model": "native", "messages": ASK, "max_tokens": 1, "stream": True}
    response = await client.post("/v1/messages", json=body)
    assert response.status_code == 502
    assert "canary" not in response.text
    assert "is bad" in response.text


async def test_other_methods_and_missing_keys(gateway: Any) -> None:
    """Errors before the body is read are Anthropic's too; its `x-api-key` opens the door."""
    url = await gateway(server={"master_key": "sk-canary-master"})
    async with httpx.AsyncClient(base_url=url, verify=False) as client:
        assert (await client.get("/v1/messages")).json()["type"] == "error"
        refused = await client.post("/v1/messages", json={})
        assert (refused.status_code, refused.json()["error"]["type"]) == (401, "authentication_error")
        wrong = await client.post("/v1/messages", json={}, headers={"x-api-key": "sk-canary-maste"})
        assert wrong.status_code == 401
        let_in = await client.post("/v1/messages", json={}, headers={"x-api-key": "sk-canary-master"})
        assert let_in.status_code == 400


async def test_unusual_streams(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """An empty answer is still a whole message; going back to an ended tool call is the backend's fault."""
    body = {"model": "plain", "messages": ASK, "max_tokens": 1, "stream": True}
    upstream.answer(CHAT, chat_stream(), content_type=SSE)
    assert [name for name, _ in events((await client.post("/v1/messages", json=body)).text)] == [
        "message_start",
        "message_delta",
        "message_stop",
    ]
    calls = [{"tool_calls": [{"index": i, "id": f"c{i}", "function": {"name": "f"}}]} for i in (0, 1, 0)]
    upstream.answers[CHAT] = recorded(chat_stream(*calls), content_type=SSE)
    refused = await client.post("/v1/messages", json=body)
    # All of it came at once, so that nothing had been told yet.
    assert (refused.status_code, refused.json()["error"]["type"]) == (502, "api_error")
