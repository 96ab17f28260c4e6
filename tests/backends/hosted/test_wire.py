"""What reaches a provider on the wire, and what OpenAI-shaped answer comes back, for each protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import pytest

from backends.model import Model, ModelStream
from protocol.sse import EventSplitter, event_data
from protocol.usage import Usage
from tests.backends.hosted import provider as shapes
from tests.backends.hosted.conftest import SECRETS, Start
from tests.backends.hosted.provider import Answer, Provider

pytestmark = pytest.mark.requires("hosted")

BODY: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Lima?"}],
    "temperature": 0.5,
    "max_tokens": 50,
    "stop": ["END"],
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ASKED = {"city": "Lima"}
TEXT = "It is sunny, 21 °C."
AWS_STREAM = "application/vnd.amazon.eventstream"


@dataclass(frozen=True, slots=True)
class Dialect:
    """A provider's way to say `TEXT`, and to call `weather` twice after saying "Let me see."."""

    text: tuple[Any, list[bytes]]
    tools: tuple[Any, list[bytes]]
    path: tuple[str, str]
    stream_type: str = "text/event-stream"
    usage: Usage = field(default_factory=lambda: Usage(140, 25, 100, 0, 30))

    def answer(self, kind: str, stream: bool) -> Answer:
        whole, frames = getattr(self, kind)
        return Answer(frames=frames, stream_type=self.stream_type) if stream else Answer(body=whole)


def _anthropic() -> Dialect:
    said = [{"type": "text", "text": TEXT}]
    calls = [{"type": "tool_use", "id": f"call_{i}", "name": "weather", "input": ASKED} for i in (1, 2)]
    asks = [{"type": "text", "text": "Let me see."}, *calls]
    return Dialect(
        (shapes.anthropic(said), shapes.anthropic_stream(said)),
        (shapes.anthropic(asks, "tool_use"), shapes.anthropic_stream(asks, "tool_use")),
        ("/v1/messages", "/v1/messages"),
        usage=Usage(140, 25, 100, 0, 30, 10),
    )


def _gemini() -> Dialect:
    told = {"cachedContentTokenCount": 100, "thoughtsTokenCount": 5, "totalTokenCount": 135}
    first, last = TEXT[:8], TEXT[8:]
    calls = [{"functionCall": {"name": "weather", "args": ASKED}} for _ in (1, 2)]
    see = {"text": "Let me see."}
    base = "/v1beta/models/gemini-2.5-flash"
    return Dialect(
        (
            shapes.gemini([{"text": TEXT}], **told),
            shapes.sse(
                shapes.gemini([{"text": first}], None, **told), shapes.gemini([{"text": last}], **told)
            ),
        ),
        (
            shapes.gemini([see, *calls], **told),
            shapes.sse(shapes.gemini([see], None, **told), shapes.gemini(calls, **told)),
        ),
        (f"{base}:generateContent", f"{base}:streamGenerateContent"),
        usage=Usage(110, 25, 100, 5),
    )


def _bedrock() -> Dialect:
    said = [{"text": TEXT}]
    calls = [{"toolUse": {"toolUseId": f"call_{i}", "name": "weather", "input": ASKED}} for i in (1, 2)]
    asks = [{"text": "Let me see."}, *calls]
    base = "/model/anthropic.claude-sonnet-4-5-20250929-v1:0"
    return Dialect(
        (shapes.bedrock(said), shapes.bedrock_stream(said)),
        (shapes.bedrock(asks, "tool_use"), shapes.bedrock_stream(asks, "tool_use")),
        (f"{base}/converse", f"{base}/converse-stream"),
        stream_type=AWS_STREAM,
    )


def _openai(path: str) -> Dialect:
    told = {
        "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 5, "audio_tokens": 0},
    }
    function = {"name": "weather", "arguments": orjson.dumps(ASKED).decode()}
    calls = [{"id": f"call_{i}", "type": "function", "function": function} for i in (1, 2)]
    pieces: list[dict[str, Any]] = []
    for i, call in enumerate(calls):
        begun = {**call, "index": i, "function": {"name": "weather", "arguments": ""}}
        pieces.append({"tool_calls": [begun]})
        pieces += [
            {"tool_calls": [{"index": i, "function": {"arguments": half}}]}
            for half in ('{"city":', '"Lima"}')
        ]
    role = {"role": "assistant", "content": ""}
    return Dialect(
        (
            shapes.openai({"content": TEXT}, **told),
            shapes.openai_stream([role, {"content": TEXT[:8]}, {"content": TEXT[8:]}], **told),
        ),
        (
            shapes.openai({"content": "Let me see.", "tool_calls": calls}, "tool_calls", **told),
            shapes.openai_stream([role, {"content": "Let me see."}, *pieces], "tool_calls", **told),
        ),
        (path, path),
        usage=Usage(110, 20, 100, 5),
    )


DIALECTS = {
    "anthropic": _anthropic(),
    "gemini": _gemini(),
    "bedrock": _bedrock(),
    "azure": _openai("/openai/deployments/gpt-4o/chat/completions"),
    "openai": _openai("/v1/chat/completions"),
}
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)
streamed_or_not = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@dataclass(frozen=True, slots=True)
class Heard:
    """An answer, whole or streamed, as a client puts it together."""

    message: Mapping[str, Any]
    finish_reason: str
    usage: Usage
    cost_usd: float
    estimated: bool
    chunks: tuple[Mapping[str, Any], ...] = ()


async def ask(model: Model, body: Mapping[str, Any], stream: bool) -> Heard:
    """One call, and what a client hears."""
    if not stream:
        done = await model.call("/chat/completions", body)
        (share,) = done.shares
        (choice,) = done.body["choices"]
        return Heard(choice["message"], choice["finish_reason"], share.usage, share.cost_usd, share.estimated)
    streamed = await model.stream("/chat/completions", {**body, "stream": True})
    chunks = await chunks_of(streamed)
    (share,) = streamed.shares
    message, reasons = _put_together(chunks)
    (reason,) = reasons
    return Heard(message, reason, share.usage, share.cost_usd, share.estimated, tuple(chunks))


async def chunks_of(streamed: ModelStream) -> list[dict[str, Any]]:
    """Every chunk of a streamed answer; several may come in one piece."""
    splitter = EventSplitter()
    return [orjson.loads(event_data(event)) async for piece in streamed for event in splitter.feed(piece)]


def _put_together(chunks: list[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, Any]] = {}
    reasons = []
    for chunk in chunks:
        (choice,) = chunk["choices"]
        for key, value in choice["delta"].items():
            if key == "tool_calls":
                for piece in value:
                    call = calls.setdefault(piece["index"], {"function": {"name": "", "arguments": ""}})
                    call.update({k: v for k, v in piece.items() if k in ("id", "type")})
                    for part, text in piece["function"].items():
                        call["function"][part] += text or ""
            elif isinstance(value, str) and key != "role":
                message[key] = message.get(key, "") + value
            else:
                message[key] = value
        if choice["finish_reason"]:
            reasons.append(choice["finish_reason"])
    if calls:
        message["tool_calls"] = [calls[i] for i in sorted(calls)]
    return message, reasons


@each_dialect
@streamed_or_not
async def test_text(dialect: str, stream: bool, start: Start, provider: Provider) -> None:
    """A plain answer comes back in OpenAI's shape with the provider's usage; the request went to the right place."""
    told = DIALECTS[dialect]
    model = await start(dialect)
    provider.answer = told.answer("text", stream)
    heard = await ask(model, BODY, stream)
    assert (heard.message["content"], heard.message["role"]) == (TEXT, "assistant")
    assert heard.finish_reason == "stop"
    assert (heard.usage, heard.estimated) == (told.usage, False)
    assert provider.wire.path == told.path[stream]
    # The caller's words and numbers are in the body somewhere, in the provider's own way.
    sent = orjson.dumps(provider.wire.body).decode()
    assert all(word in sent for word in ("Be brief.", "Weather in Lima?", "0.5", "50", "END"))


@each_dialect
async def test_chunks_are_openais(dialect: str, start: Start, provider: Provider) -> None:
    """All chunks of a stream have one id, model and time; the role comes first, and only one says why it ends, last."""
    model = await start(dialect)
    provider.answer = DIALECTS[dialect].answer("text", True)
    chunks = (await ask(model, BODY, True)).chunks
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert ["role" in delta for delta in deltas] == [True] + [False] * (len(deltas) - 1)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


@each_dialect
@streamed_or_not
async def test_tools(dialect: str, stream: bool, start: Start, provider: Provider) -> None:
    """Two calls of a tool come back as two, indexed from 0, with whole arguments and `tool_calls` as the reason."""
    model = await start(dialect)
    provider.answer = DIALECTS[dialect].answer("tools", stream)
    heard = await ask(model, {**BODY, "tools": [WEATHER], "tool_choice": "auto"}, stream)
    assert heard.finish_reason == "tool_calls"
    assert heard.message["content"] == "Let me see."
    calls = heard.message["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather", "weather"]
    assert [orjson.loads(call["function"]["arguments"]) for call in calls] == [ASKED, ASKED]
    assert len({call["id"] for call in calls}) == 2
    assert all(call["type"] == "function" for call in calls)
    assert '"weather"' in orjson.dumps(provider.wire.body).decode()


@each_dialect
async def test_a_tools_result_goes_back(dialect: str, start: Start, provider: Provider) -> None:
    """The second turn of a tool's use: the call and its result reach the provider."""
    model = await start(dialect)
    provider.answer = DIALECTS[dialect].answer("text", False)
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Lima"}'},
    }
    turns = [
        *BODY["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny and 21 degrees"},
    ]
    await ask(model, {**BODY, "messages": turns, "tools": [WEATHER]}, False)
    sent = orjson.dumps(provider.wire.body).decode()
    assert "sunny and 21 degrees" in sent
    assert sent.count("Lima") >= 2


async def test_the_key_goes_where_the_provider_looks(start: Start, provider: Provider) -> None:
    """Each provider finds its key in its own header, and nothing of the caller's or of another provider."""
    expected = {
        "anthropic": ("x-api-key", SECRETS[0]),
        "gemini": ("x-goog-api-key", SECRETS[0]),
        "azure": ("api-key", SECRETS[0]),
        "openai": ("authorization", f"Bearer {SECRETS[0]}"),
    }
    for dialect, (header, value) in expected.items():
        provider.seen.clear()
        model = await start(dialect)
        provider.answer = DIALECTS[dialect].answer("text", False)
        await ask(model, BODY, False)
        assert provider.wire.headers[header] == value
        others = {other for name, (other, _) in expected.items() if name != dialect} - {header}
        assert not others & set(provider.wire.headers)


@streamed_or_not
async def test_bedrock_is_signed(stream: bool, start: Start, provider: Provider) -> None:
    """A call to Bedrock carries AWS's signature, version 4, over date and host, and never the secret itself."""
    model = await start("bedrock")
    provider.answer = DIALECTS["bedrock"].answer("text", stream)
    await ask(model, BODY, stream)
    headers = provider.wire.headers
    signed = headers["authorization"]
    assert signed.startswith(f"AWS4-HMAC-SHA256 Credential={SECRETS[1]}/")
    assert "/us-east-1/bedrock/aws4_request" in signed
    assert "SignedHeaders=" in signed
    assert "x-amz-date" in headers
    assert SECRETS[2] not in orjson.dumps([dict(headers), dict(provider.wire.body)]).decode()


@streamed_or_not
async def test_reasoning_survives(stream: bool, start: Start, provider: Provider) -> None:
    """Thinking comes back as `reasoning_content`, and signed as Anthropic wants it back in the next turn."""
    model = await start("anthropic")
    thought = [
        {"type": "thinking", "thinking": "Lima lies by the sea.", "signature": "c2ln"},
        {"type": "text", "text": TEXT},
    ]
    whole, frames = shapes.anthropic(thought), shapes.anthropic_stream(thought)
    provider.answer = Answer(frames=frames) if stream else Answer(body=whole)
    heard = await ask(
        model, {**BODY, "temperature": 1, "max_tokens": 2000, "reasoning_effort": "low"}, stream
    )
    assert heard.message["reasoning_content"] == "Lima lies by the sea."
    assert heard.message["content"] == TEXT
    assert provider.wire.body["thinking"]["type"] == "enabled"
    blocks = [chunk["choices"][0]["delta"].get("thinking_blocks") or [{}] for chunk in heard.chunks]
    assert ("c2ln" in [block.get("signature") for (block,) in blocks]) is stream
    if not stream:
        (block,) = heard.message["thinking_blocks"]
        assert (block["thinking"], block["signature"]) == ("Lima lies by the sea.", "c2ln")
        turns = [*BODY["messages"], heard.message, {"role": "user", "content": "And tomorrow?"}]
        provider.seen.clear()
        await ask(
            model,
            {**BODY, "messages": turns, "temperature": 1, "max_tokens": 2000, "reasoning_effort": "low"},
            False,
        )
        sent = [block for turn in provider.wire.body["messages"] for block in turn["content"]]
        assert {"type": "thinking", "thinking": "Lima lies by the sea.", "signature": "c2ln"} in sent


async def test_structured_output(start: Start, provider: Provider) -> None:
    """A JSON schema reaches the provider in its own way, and the answer is the JSON."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    model = await start("gemini")
    provider.answer = Answer(body=shapes.gemini([{"text": '{"city": "Lima"}'}]))
    heard = await ask(model, {**BODY, "response_format": wanted}, False)
    assert orjson.loads(heard.message["content"]) == ASKED
    config = provider.wire.body["generationConfig"]
    told = {key.replace("_", "").lower(): value for key, value in config.items()}
    assert told["responsemimetype"] == "application/json"
    assert '"city"' in orjson.dumps(config).decode()


async def test_logprobs_survive(start: Start, provider: Provider) -> None:
    """Token log-probabilities come through as they were."""
    told = {
        "content": [{"token": "It", "logprob": -0.25, "bytes": [73, 116], "top_logprobs": []}],
        "refusal": None,
    }
    whole = shapes.openai({"content": "It"})
    whole["choices"][0]["logprobs"] = told
    model = await start("openai")
    provider.answer = Answer(body=whole)
    done = await model.call("/chat/completions", {**BODY, "logprobs": True, "top_logprobs": 0})
    assert done.body["choices"][0]["logprobs"]["content"] == told["content"]
    assert provider.wire.body["logprobs"] is True


@pytest.mark.parametrize(
    ("dialect", "reason", "expected"),
    [
        ("anthropic", "max_tokens", "length"),
        ("anthropic", "stop_sequence", "stop"),
        ("anthropic", "refusal", "content_filter"),
        ("gemini", "MAX_TOKENS", "length"),
        ("gemini", "SAFETY", "content_filter"),
        ("bedrock", "max_tokens", "length"),
        ("bedrock", "guardrail_intervened", "content_filter"),
        ("bedrock", "stop_sequence", "stop"),
    ],
)
@streamed_or_not
async def test_reasons_to_finish(
    dialect: str, reason: str, expected: str, stream: bool, start: Start, provider: Provider
) -> None:
    """Each provider's reason is told as the one of OpenAI's that means it."""
    said = [{"type": "text", "text": TEXT}]
    made: dict[str, tuple[Any, list[bytes]]] = {
        "anthropic": (shapes.anthropic(said, reason), shapes.anthropic_stream(said, reason)),
        "gemini": (
            shapes.gemini([{"text": TEXT}], reason),
            shapes.sse(shapes.gemini([{"text": TEXT}], reason)),
        ),
        "bedrock": (
            shapes.bedrock([{"text": TEXT}], reason),
            shapes.bedrock_stream([{"text": TEXT}], reason),
        ),
    }
    whole, frames = made[dialect]
    provider.answer = (
        Answer(frames=frames, stream_type=DIALECTS[dialect].stream_type) if stream else Answer(body=whole)
    )
    assert (await ask(await start(dialect), BODY, stream)).finish_reason == expected


@streamed_or_not
async def test_text_completions(stream: bool, start: Start, provider: Provider) -> None:
    """A text completion is asked as a chat of one message, and told as a text completion."""
    model = await start("anthropic")
    provider.answer = DIALECTS["anthropic"].answer("text", stream)
    body = {"model": "m", "prompt": "Once upon a time", "max_tokens": 9}
    if stream:
        chunks = await chunks_of(await model.stream("/completions", {**body, "stream": True}))
    else:
        chunks = [dict((await model.call("/completions", body)).body)]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert provider.wire.body["messages"][0]["content"][0]["text"] == "Once upon a time"


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_embeddings(encoding: str, start: Start, provider: Provider) -> None:
    """Embeddings come back as OpenAI tells them, in the encoding that was asked for."""
    model = await start("cohere")
    provider.answer = Answer(
        body={
            "id": "e-1", "embeddings": {"float": [[0.5, -1.0], [0.25, 2.0]]}, "texts": ["a", "b"],
            "meta": {"billed_units": {"input_tokens": 7}},
        }
    )  # fmt: skip
    done = await model.call("/embeddings", {"model": "m", "input": ["a", "b"], "encoding_format": encoding})
    rows = [row["embedding"] for row in done.body["data"]]
    if encoding == "base64":
        assert rows == ["AAAAPwAAgL8=", "AACAPgAAAEA="]
    else:
        assert rows == [[0.5, -1.0], [0.25, 2.0]]
    assert [row["index"] for row in done.body["data"]] == [0, 1]
    assert (provider.wire.path, provider.wire.body["texts"]) == ("/v2/embed", ["a", "b"])
    assert done.shares[0].usage.prompt_tokens == 7


async def test_silence_about_usage_is_estimated(start: Start, provider: Provider) -> None:
    """A stream whose provider tells no usage is charged by what was seen, and says that it is an estimate."""
    model = await start("openai")
    frames = DIALECTS["openai"].answer("text", True).frames
    provider.answer = Answer(frames=[frame for frame in frames if b'"prompt_tokens"' not in frame])
    heard = await ask(model, BODY, True)
    assert heard.estimated
    assert heard.usage.completion_tokens > 0


@pytest.mark.parametrize(
    ("dialect", "millionths"),
    [
        # 10 fresh at 3, 100 cached at 0.30, 20 and 10 written at 3.75 and 6, 25 out at 15
        ("anthropic", 10 * 3 + 100 * 0.30 + 20 * 3.75 + 10 * 6 + 25 * 15),
        # 10 fresh at 0.30, 100 cached at 0.03, 20 out and 5 thoughts at 2.50
        ("gemini", 10 * 0.30 + 100 * 0.03 + 25 * 2.50),
        # 10 fresh at 3, 100 cached at 0.30, 30 written at 3.75, 25 out at 15
        ("bedrock", 10 * 3 + 100 * 0.30 + 30 * 3.75 + 25 * 15),
        # 10 fresh at 2.50, 100 cached at 1.25, 20 out at 10
        ("azure", 10 * 2.50 + 100 * 1.25 + 20 * 10),
        ("openai", 10 * 2.50 + 100 * 1.25 + 20 * 10),
    ],
)
@streamed_or_not
async def test_the_bill(
    dialect: str, millionths: float, stream: bool, start: Start, provider: Provider
) -> None:
    """The usage on the wire comes to the bill that the provider's published prices give, by hand."""
    provider.answer = DIALECTS[dialect].answer("text", stream)
    heard = await ask(await start(dialect), BODY, stream)
    assert heard.cost_usd == pytest.approx(millionths / 1e6, rel=1e-12)


@streamed_or_not
async def test_sound_is_billed_as_sound(stream: bool, start: Start, provider: Provider) -> None:
    """Gemini tells tokens by modality: 600 at 0.30, 400 of sound at 1.00, and 100 out at 2.50."""
    kinds = [{"modality": "TEXT", "tokenCount": 600}, {"modality": "AUDIO", "tokenCount": 400}]
    told = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "promptTokensDetails": kinds}
    body = shapes.gemini([{"text": TEXT}], **told)
    provider.answer = Answer(frames=shapes.sse(body)) if stream else Answer(body=body)
    heard = await ask(await start("gemini"), BODY, stream)
    assert heard.usage == Usage(1000, 100, audio_in_tokens=400)
    assert heard.cost_usd == pytest.approx(830e-6, rel=1e-12)
