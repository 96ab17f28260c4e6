"""`/v1/responses` with the official OpenAI SDK and on the wire."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.types.responses import ResponseStreamEvent

from tests.raw_upstream import SSE, RawUpstream, chat_answer, chat_stream

CHAT = "/v1/chat/completions"
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "Of a city.",
    "parameters": {"type": "object"},
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)


def events(text: str) -> list[dict[str, Any]]:
    """The data of a stream's events, each named as its type."""
    told = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        told.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {told[-1]['type']}"
    return told


async def test_translated(openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream) -> None:
    """A model that has only chat answers the SDK: text, status and usage; the answer repeats its request."""
    upstream.answer(CHAT, chat_answer({"content": "Hello."}))
    told = await openai_sdk.responses.create(
        model="plain", input="Say hello.", instructions="Be kind.", max_output_tokens=9, metadata={"a": "b"},
        extra_body={"novel": 1}, store=False, temperature=0.5, user="u",
    )  # fmt: skip
    assert told.output_text == "Hello."
    assert (told.status, told.object, told.model, told.store) == ("completed", "response", "theirs", False)
    assert told.usage is not None
    assert (told.usage.input_tokens, told.usage.output_tokens, told.usage.total_tokens) == (11, 5, 16)
    assert told.usage.input_tokens_details.cached_tokens == 4
    assert (told.instructions, told.metadata, told.max_output_tokens) == ("Be kind.", {"a": "b"}, 9)
    assert upstream.seen[0].body == {
        "model": "theirs",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Say hello."}],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "user": "u",
        "novel": 1,
    }


async def test_conversation_goes_out(openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream) -> None:
    """Items of a conversation become chat's messages; the assistant's neighbours are one message."""
    upstream.answer(CHAT, chat_answer({"content": "ok"}))
    items: list[Any] = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Weather?"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"},
                {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"},
            ],
        },
        {
            "type": "reasoning",
            "id": "rs",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "Hm."}],
        },
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Looking."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "fog"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "sun"}]},
    ]
    await openai_sdk.responses.create(
        model="plain",
        input=items,
        tools=[TOOL],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        reasoning={"effort": "low", "summary": "auto"},
        text={
            "format": {"type": "json_schema", "name": "s", "schema": {}, "strict": True},
            "verbosity": "low",
        },
        include=["message.output_text.logprobs", "reasoning.encrypted_content"],
        top_logprobs=2,
    )
    body = upstream.seen[0].body
    call = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
    file = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Weather?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "low"}},
                {"type": "file", "file": file},
            ],
        },
        {
            "role": "assistant",
            "content": "Looking.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "c1", **call}, {"id": "c2", **call}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "fog"},
        {"role": "tool", "tool_call_id": "c2", "content": "sun"},
    ]
    function = {key: TOOL[key] for key in ("name", "description", "parameters")}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    assert body["response_format"]["json_schema"] == {"name": "s", "schema": {}, "strict": True}
    assert (body["reasoning_effort"], body["verbosity"], body["parallel_tool_calls"]) == ("low", "low", False)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert not {"input", "text", "include", "reasoning"} & set(body)


async def test_items_come_back(openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream) -> None:
    """Reasoning, text with log-probabilities and tool calls become items in that order."""
    logprobs = {"content": [{"token": "See", "bytes": None, "logprob": -0.5, "top_logprobs": []}]}
    message = {"content": "See.", "reasoning_content": "Fog?", "tool_calls": [CALL]}
    upstream.answer(CHAT, chat_answer(message, finish="tool_calls", logprobs=logprobs))
    told = await openai_sdk.responses.create(model="plain", input="x", tools=[TOOL])
    reasoning, text, call = told.output
    assert reasoning.content[0].text == "Fog?"  # type: ignore[union-attr,index]
    assert text.content[0].logprobs[0].logprob == -0.5  # type: ignore[union-attr,index]
    assert (call.call_id, call.name, call.arguments) == ("call_1", "weather", '{"city": "Ulm"}')  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
async def test_incomplete(
    openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream, finish: str, reason: str
) -> None:
    """A cut answer says so, whole and streamed."""
    upstream.answer(CHAT, chat_answer({"content": "x"}, finish=finish))
    told = await openai_sdk.responses.create(model="plain", input="x")
    assert told.status == "incomplete"
    assert told.incomplete_details is not None
    assert told.incomplete_details.reason == reason
    upstream.answer(CHAT, chat_stream({"content": "x"}, finish=finish), content_type=SSE)
    stream = await openai_sdk.responses.create(model="plain", input="x", stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


async def test_stream(openai_sdk: openai.AsyncOpenAI, upstream: RawUpstream) -> None:
    """The SDK's stream helper puts the same response together from the events."""
    upstream.answer(
        CHAT,
        chat_stream(
            {"role": "assistant", "content": ""},
            {"reasoning_content": "Fog?"},
            {"content": "Let me "},
            {"content": "see."},
            {"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "Ulm"}'}}]},
            {"tool_calls": [{"index": 1, "id": "c2", "function": {"name": "weather", "arguments": "{}"}}]},
            finish="tool_calls",
        ),
        content_type=SSE,
    )
    async with openai_sdk.responses.stream(model="plain", input="x", tools=[TOOL]) as stream:
        seen = [event.type async for event in stream]
        told = await stream.get_final_response()
    assert seen[0] == "response.created"
    assert seen[-1] == "response.completed"
    assert told.output_text == "Let me see."
    assert [item.type for item in told.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.arguments for item in told.output[2:]] == ['{"city": "Ulm"}', "{}"]  # type: ignore[union-attr]
    assert told.usage is not None
    assert told.usage.total_tokens == 16


async def test_stream_on_the_wire(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """Every event fits the SDK's own types, is numbered, and there is no `[DONE]`; what a stream ends with is what its
    events said."""
    deltas = [
        {"content": "Hi"},
        {"refusal": "No."},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]},
    ]
    upstream.answer(CHAT, chat_stream({"reasoning": "Hm"}, *deltas), content_type=SSE)
    response = await client.post("/v1/responses", json={"model": "plain", "input": "x", "stream": True})
    told = events(response.text)
    for event in told:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    done = [event["item"] for event in told if event["type"] == "response.output_item.done"]
    assert told[-1]["response"]["output"] == done
    assert [item["type"] for item in done] == ["reasoning", "message", "message", "function_call"]
    assert "[DONE]" not in response.text
    assert len({event["response"]["id"] for event in told if "response" in event}) == 1


async def test_failed_stream(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """A stream that is cut ends with `response.failed`, which holds what had been said."""
    whole = chat_stream({"content": "Hi"}, {"content": " you"})
    upstream.answer(CHAT, whole[: whole.index(b" you")], content_type=SSE)
    response = await client.post("/v1/responses", json={"model": "plain", "input": "x", "stream": True})
    last = events(response.text)[-1]
    EVENT.validate_python(last)
    assert last["type"] == "response.failed"
    assert last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"include": ["web_search_call.results"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].type",
        ),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"stream": 1}, "stream"),
        ({"instructions": [1]}, "instructions"),
    ],
)
async def test_refusals_name_the_field(
    client: httpx.AsyncClient, upstream: RawUpstream, fields: Any, named: str
) -> None:
    """What needs state, or cannot be asked of a chat model, is a 400 naming the field, before anyone is asked."""
    response = await client.post("/v1/responses", json={"model": "plain", "input": "x", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == named
    assert not upstream.seen


async def test_passed_through(client: httpx.AsyncClient, openai_sdk: Any, upstream: RawUpstream) -> None:
    """A backend that has Responses gets state and all, and its bytes come back; so do requests for what it stored."""
    answer = b'{ "id": "resp_9", "object":"response", "output": [], "usage": {"input_tokens": 3, "output_tokens": 2} }'
    upstream.answer("/v1/responses", answer)
    body = {
        "model": "native",
        "input": "x",
        "store": True,
        "previous_response_id": "resp_8",
        "tools": [{"type": "x"}],
    }
    response = await client.post("/v1/responses", json=body)
    assert response.content == answer
    assert response.headers["x-chorus-cost-usd"] == "0.000007"
    assert upstream.seen[0].body == {**body, "model": "theirs"}
    upstream.answer("/v1/responses/resp_9", answer)
    assert (await openai_sdk.responses.retrieve("resp_9")).id == "resp_9"
    upstream.answer("/v1/responses/resp_9/input_items", {"object": "list", "data": []})
    await openai_sdk.responses.input_items.list("resp_9", limit=3)
    assert upstream.seen[-1].path == "/v1/responses/resp_9/input_items?limit=3"
    upstream.answer("/v1/responses/resp_9/cancel", answer)
    await openai_sdk.responses.cancel("resp_9")


@pytest.mark.parametrize("whole", [True, False])
async def test_stream_passed_through(client: httpx.AsyncClient, upstream: RawUpstream, whole: bool) -> None:
    """A native stream comes back byte for byte and is paid for; one without an end gets `error`."""
    head = (
        b'event: response.created\ndata: {"type":"response.created","response":{"id":"r","error":null}}\n\n'
    )
    last = (
        b'event: response.completed\ndata: {"type":"response.completed","response":'
        b'{"id":"r","usage":{"input_tokens":3,"output_tokens":2}}}\n\n'
    )
    upstream.answer("/v1/responses", head, *([last] if whole else []), content_type=SSE)
    body = {"model": "native", "input": "x", "stream": True}
    response = await client.post("/v1/responses", json=body)
    assert response.content.startswith(head)
    metrics = (await client.get("/metrics")).text
    assert (response.content == head + last) is whole
    assert ('chorus_tokens_total{kind="output",model="native"} 2.0' in metrics) is whole
    if not whole:
        assert "error" in json.loads(response.text.strip().split("\n\n")[-1].split("data: ")[1])
