"""What a request asks for beyond text survives every strategy, or is refused by name: one matrix."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import orjson
import pytest

from cascades.base import Rule, Shown
from cascades.strategy import CascadeStrategy
from ensembles.answers.strategy import AnswerEnsemble
from protocol.chat import ChatRequest
from protocol.errors import BadRequest
from protocol.features import FEATURES, TEXT_ONLY_CANNOT, refuse
from protocol.run import Event, Run
from protocol.settings import Aggregate
from tests.raw_upstream import SSE, RawUpstream, chat_answer, chat_stream, recorded

CHAT = "/v1/chat/completions"
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":  1}'}}
LOGPROBS = {"content": [{"token": "Hi", "bytes": [72, 105], "logprob": -0.25, "top_logprobs": []}]}

ASKED: Mapping[str, dict[str, Any]] = {
    "tools": {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
    "functions": {"functions": [{"name": "f"}], "function_call": "auto"},
    "structured output": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
    },
    "images": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]
    },
    "audio input": {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
    "files": {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
    "audio output": {"audio": {"voice": "v", "format": "wav"}},
    "other modalities": {"modalities": ["text", "audio"]},
    "predicted output": {"prediction": {"type": "content", "content": "x"}},
    "web search": {"web_search_options": {"search_context_size": "low"}},
    "several choices": {"n": 2},
    "log-probabilities": {"logprobs": True, "top_logprobs": 2},
    "token biases": {"logit_bias": {"50256": -100}},
}
"""Feature → fields that ask for it. Beside the table of features: what no table needs to know of."""
UNKNOWN: dict[str, Any] = {
    "reasoning_effort": "low",
    "chat_template_kwargs": {"x": 1},
    "vendor": [None, {"y": 0.1}],
}

REFUSED = {("vote", "several choices"): "n"}
"""(strategy, feature) → the field that is named; every other pair is honoured."""


class Second:
    """A router that has chosen `native`."""

    def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        return run.relay("native", request)


class Doubting:
    """A scorer that finds nothing good enough, so that a cascade asks all its stages."""

    def score(self, shown: Shown) -> float:
        return -1.0


class Accepting:
    """A scorer that accepts the first answer."""

    def score(self, shown: Shown) -> float:
        return 1.0


def strategies() -> dict[str, Any]:
    """One of each kind that runs in the gateway."""
    rule = Rule((0.0,))
    return {
        "routed": Second(),
        "deferred": CascadeStrategy(("plain", "native"), Doubting(), rule),
        "accepted": CascadeStrategy(("plain", "native"), Accepting(), rule),
        "vote": AnswerEnsemble.from_settings("vote", Aggregate(members=("plain", "native"), samples=1)),
    }


@pytest.fixture
async def client(gateway: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with one strategy of each kind."""
    url = await gateway(strategies())
    async with httpx.AsyncClient(base_url=url, timeout=30, verify=False) as made:
        yield made


def test_every_feature_is_asked_for() -> None:
    """The matrix has a row for each feature, and each row asks for its feature alone."""
    assert set(ASKED) == set(FEATURES)
    for feature, fields in ASKED.items():
        assert [name for name, find in FEATURES.items() if find(fields)] == [feature]
    assert not any(find({**UNKNOWN, "response_format": {"type": "text"}}) for find in FEATURES.values())


@pytest.mark.parametrize("feature", list(ASKED))
@pytest.mark.parametrize("model", ["plain", "routed", "deferred", "accepted", "vote"])
async def test_features_survive(
    client: httpx.AsyncClient, upstream: RawUpstream, model: str, feature: str
) -> None:
    """Every call of the tree asks for what the caller asked for, word for word, with all the fields we do not know;
    or the caller is told the field that cannot be honoured, and nobody is asked."""
    upstream.answer(CHAT, chat_answer({"content": "Hi"}, logprobs=LOGPROBS))
    asked = {"messages": [{"role": "user", "content": "x"}], **UNKNOWN, **ASKED[feature]}
    response = await client.post(CHAT, json={"model": model, **asked})
    if (model, feature) in REFUSED:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == REFUSED[model, feature]
        assert not upstream.seen
        return
    assert response.status_code == 200, response.text
    assert len(upstream.seen) == {"deferred": 2, "vote": 2}.get(model, 1)
    for seen in upstream.seen:
        assert {key: seen.body[key] for key in asked} == asked


@pytest.mark.parametrize("feature", TEXT_ONLY_CANNOT)
def test_text_models_refuse_by_name(feature: str) -> None:
    """What a model of the engine host, or a fusion, cannot do is a 400 naming the field; plain requests pass."""
    with pytest.raises(BadRequest) as caught:
        refuse(ASKED[feature], TEXT_ONLY_CANNOT, who="they")
    assert caught.value.param
    assert caught.value.param.split("[")[0] in ASKED[feature]
    refuse(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        TEXT_ONLY_CANNOT,
        who="they",
    )


MESSAGE = {
    "content": None,
    "tool_calls": [CALL],
    "reasoning_content": "Hm.",
    "refusal": None,
    "novel": [1.50],
}


@pytest.mark.parametrize("model", ["plain", "routed"])
async def test_answers_are_the_backends_bytes(
    client: httpx.AsyncClient, upstream: RawUpstream, model: str
) -> None:
    """Where nothing must change, the answer is the backend's, byte for byte: tool calls, reasoning and unknown
    fields, its spaces and its 1.50."""
    raw = chat_answer(MESSAGE, finish="tool_calls", logprobs=LOGPROBS).replace(b"1.5", b"1.50")
    upstream.answer(CHAT, raw)
    response = await client.post(CHAT, json={"model": model, "messages": [{"role": "user", "content": "x"}]})
    assert response.content == raw


@pytest.mark.parametrize("model", ["accepted", "deferred", "vote"])
async def test_composed_answers_keep_the_message(
    client: httpx.AsyncClient, upstream: RawUpstream, model: str
) -> None:
    """A composed answer has the whole message it chose, and the log-probabilities only where they were asked for."""
    upstream.answer(CHAT, chat_answer(MESSAGE, finish="tool_calls", logprobs=LOGPROBS))
    body = {"model": model, "messages": [{"role": "user", "content": "x"}], "logprobs": True}
    told = (await client.post(CHAT, json=body)).json()["choices"][0]
    assert told["message"] == {"role": "assistant", **MESSAGE}
    assert told["logprobs"] == LOGPROBS
    assert told["finish_reason"] == "tool_calls"


def spaced(chunk: Mapping[str, Any]) -> bytes:
    """An event as no encoder of ours writes it."""
    return b"data:" + orjson.dumps(chunk, option=orjson.OPT_INDENT_2).replace(b"\n", b" ") + b"\r\n\r\n"


def stream_of(*, asked: bool, null: bool) -> bytes:
    """What a backend sends to one who `asked` for usage, or not; OpenAI's own puts `"usage":null` in every event."""
    head = {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "theirs",
        "system_fingerprint": "fp",
    }
    deltas = [
        {"role": "assistant"},
        {"reasoning_content": "hm"},
        {"content": 'a,"usage":null'},
        {"tool_calls": [CALL]},
    ]
    events = []
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "logprobs": LOGPROBS, "finish_reason": None}
        events.append({**head, "choices": [choice], **({"usage": None} if asked and null else {})})
    told = [spaced(event) for event in events]
    if asked:
        told.append(spaced({**head, "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}))
    return b": hello\n\n" + b"".join(told) + b"data: [DONE]\n\n"


@pytest.mark.parametrize("null", [True, False])
@pytest.mark.parametrize("model", ["plain", "routed", "deferred"])
@pytest.mark.parametrize("piece", [1, 50, 10_000])
async def test_streams_are_the_backends_bytes(
    client: httpx.AsyncClient, upstream: RawUpstream, model: str, null: bool, piece: int
) -> None:
    """A caller who did not ask for usage sees byte for byte what the backend sends to one who did not, although the
    gateway did ask, and however the network cuts it."""

    def answer(seen: Any) -> Any:
        if not seen.body.get("stream"):
            return recorded(chat_answer({"content": "Hi"}, logprobs=LOGPROBS))
        raw = stream_of(asked=seen.body["stream_options"]["include_usage"], null=null)
        return recorded(*(raw[i : i + piece] for i in range(0, len(raw), piece)), content_type=SSE)

    upstream.answers[CHAT] = answer
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}]}
    response = await client.post(CHAT, json=body)
    assert response.content == stream_of(asked=False, null=null)
    assert upstream.seen[-1].body["stream_options"] == {"include_usage": True}


async def test_usage_asked_is_relayed(client: httpx.AsyncClient, upstream: RawUpstream) -> None:
    """One who asked sees the backend's events too, and its usage with the cost beside it."""
    upstream.answer(CHAT, stream_of(asked=True, null=True), content_type=SSE)
    body = {"model": "plain", "stream": True, "stream_options": {"include_usage": True}}
    raw = (await client.post(CHAT, json={**body, "messages": [{"role": "user", "content": "x"}]})).content
    sent = stream_of(asked=True, null=True)
    usage_at = sent.rindex(b"data:", 0, sent.rindex(b"data: [DONE]"))
    assert raw.startswith(sent[:usage_at])
    last = orjson.loads(raw[usage_at:].split(b"\n\n")[0].removeprefix(b"data: "))
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}
    assert last["chorus"]["cost_usd"] == pytest.approx(5e-6)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("model", ["routed", "deferred", "accepted", "vote"])
@pytest.mark.parametrize("stream", [False, True])
async def test_every_strategy_answers_every_surface(
    client: httpx.AsyncClient, upstream: RawUpstream, path: str, model: str, stream: bool
) -> None:
    """Messages and Responses work for every strategy, streamed and not; usage is the whole tree's."""

    def answer(seen: Any) -> Any:
        if seen.body.get("stream"):
            return recorded(chat_stream({"role": "assistant"}, {"content": "Hi"}), content_type=SSE)
        return recorded(chat_answer({"content": "Hi"}, logprobs=LOGPROBS))

    upstream.answers[CHAT] = answer
    ask = [{"role": "user", "content": "x"}]
    fields: dict[str, Any] = {"max_tokens": 5, "messages": ask} if "messages" in path else {"input": ask}
    response = await client.post(path, json={"model": model, "stream": stream, **fields})
    assert response.status_code == 200
    assert "Hi" in response.text
    calls = {"deferred": 2, "vote": 2}.get(model, 1)
    assert f'"output_tokens":{5 * calls}' in response.text
    if stream:
        assert ("message_stop" if "messages" in path else "response.completed") in response.text
        assert "[DONE]" not in response.text
