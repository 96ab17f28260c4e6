"""The engine host over HTTP, asked by the OpenAI SDK and by bare sockets, on the real models."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
import uvicorn

from engines.server import Service, application
from tests.engines.conftest import GEMMA, PROMPTS, SMOL

if TYPE_CHECKING:
    from tests.engines.conftest import Asker

pytestmark = pytest.mark.models

ASK: Any = [{"role": "user", "content": PROMPTS[0]}]


@pytest.fixture(scope="module")
def address(ask: Asker) -> Iterator[tuple[str, int]]:
    """The shared host behind a real server on a free loopback port."""
    config = uvicorn.Config(
        application(Service(ask.host, ask.prompts)), port=0, log_level="warning", lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[:2]
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def sdk(address: tuple[str, int]) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(
        base_url=f"http://{address[0]}:{address[1]}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


@pytest.fixture(scope="module")
def http(address: tuple[str, int]) -> Iterator[httpx.Client]:
    """A client that shows raw bodies."""
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=120) as client:
        yield client


def test_models_are_engines_and_fusions(sdk: openai.OpenAI, ask: Asker) -> None:
    """GET /v1/models lists both kinds by name."""
    assert [model.id for model in sdk.models.list()] == [*ask.host.engine_specs, *ask.host.fusion_specs]


@pytest.mark.parametrize("model", [SMOL, GEMMA, "duet", "citer-always", "etr-called"])
def test_a_stream_says_what_the_whole_answer_says(sdk: openai.OpenAI, model: str) -> None:
    """Streamed and complete greedy answers agree in text, finish reason and usage, and the chunks keep their
    order."""
    whole = sdk.chat.completions.create(model=model, messages=ASK, temperature=0, max_tokens=12)
    stream = sdk.chat.completions.create(
        model=model,
        messages=ASK,
        temperature=0,
        max_tokens=12,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    first, *middle, finish, last = chunks
    assert first.choices[0].delta.role == "assistant"
    assert (
        "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        == whole.choices[0].message.content
    )
    assert all(c.choices[0].finish_reason is None and c.usage is None for c in (first, *middle))
    assert finish.choices[0].finish_reason == whole.choices[0].finish_reason
    assert finish.choices[0].delta.content is None
    assert last.choices == []
    assert last.usage == whole.usage
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert len(middle) > 3


def test_a_fused_answer_says_what_each_member_spent(http: httpx.Client) -> None:
    """Beside `usage`, which sums, stands the table by member; in a stream it stands in the usage event."""
    body = {"model": "duet", "messages": ASK, "temperature": 0, "max_tokens": 6}
    whole = http.post("/v1/chat/completions", json=body).json()
    members = whole["chorus"]["members"]
    assert [m["model"] for m in members] == [SMOL, GEMMA]
    for key in ("prompt_tokens", "completion_tokens"):
        assert whole["usage"][key] == sum(m[key] for m in members)
    stream = http.post(
        "/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    events = [line.removeprefix("data: ") for line in stream.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["chorus"] == whole["chorus"]
    assert json.loads(events[-2])["usage"] == whole["usage"]


@pytest.mark.parametrize("model", ["cool", "etr-called"])
def test_an_answer_in_spans_says_who_wrote_them(http: httpx.Client, model: str) -> None:
    """Beside what members spent stand the spans of every choice, in order; in a stream, in the usage event."""
    body = {"model": model, "messages": ASK, "temperature": 0, "max_tokens": 8, "n": 2}
    whole = http.post("/v1/chat/completions", json=body).json()
    spans = whole["chorus"]["spans"]
    for choice in whole["choices"]:
        own = [span for span in spans if span["index"] == choice["index"]]
        assert sum(span["bytes"] for span in own) == len(choice["message"]["content"].encode())
        assert {span["model"] for span in own} <= {SMOL, GEMMA}
    assert [m["model"] for m in whole["chorus"]["members"]] == [SMOL, GEMMA]
    assert all(m["completion_tokens"] > 0 for m in whole["chorus"]["members"])
    stream = http.post(
        "/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    events = [line.removeprefix("data: ") for line in stream.text.split("\n\n") if line]
    assert json.loads(events[-2])["chorus"] == whole["chorus"]


@pytest.mark.parametrize("model", ["duet", "unite", "spec"])
def test_wishes_of_a_request_are_heard(http: httpx.Client, ask: Asker, model: str) -> None:
    """Weights of members, and biases of the main one's tokens, change a fused answer as they say."""

    def text(**fields: Any) -> str:
        body = {"model": model, "messages": ASK, "temperature": 0, "max_tokens": 12, **fields}
        return str(http.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"])

    alone = text(chorus={"weights": {SMOL: 3, GEMMA: 0}})
    assert alone == text(model=SMOL)
    (paris,) = ask.host.vocabs[SMOL].encode(b" Paris")
    assert " Paris" in text()
    assert text(logit_bias={str(paris): -100}) != text()
    assert text(presence_penalty=0) == text()


@pytest.mark.parametrize("model", [GEMMA, "duet"])
def test_an_answer_of_a_schema(http: httpx.Client, model: str) -> None:
    """A model alone and a fusion answer in the JSON that was asked for."""
    properties = {"city": {"enum": ["Paris", "Rome"]}, "country": {"type": "string", "maxLength": 12}}
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": schema}}
    body = {"model": model, "messages": ASK, "temperature": 0, "response_format": wanted, "max_tokens": 60}
    choice = http.post("/v1/chat/completions", json=body).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    value = json.loads(choice["message"]["content"])
    assert value.keys() == properties.keys()
    assert value["city"] in ("Paris", "Rome")


def test_a_search_tells_its_chain_in_time(http: httpx.Client) -> None:
    """Streamed or whole, a greedy search gives the same chain and counts every step it drafted; with no time left it
    gives an answer all the same, written on step by step."""
    body = {"model": "mcts", "messages": ASK, "temperature": 0, "max_tokens": 10}
    whole = http.post("/v1/chat/completions", json=body).json()
    text = whole["choices"][0]["message"]["content"]
    spent = [member["completion_tokens"] for member in whole["chorus"]["members"]]
    assert sum(span["bytes"] for span in whole["chorus"]["spans"]) >= len(text.encode()) > 0
    assert sum(spent) > 10
    stream = http.post("/v1/chat/completions", json={**body, "stream": True})
    events = [json.loads(line.removeprefix("data: ")) for line in stream.text.split("\n\n")[:-2]]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == text
    late = http.post("/v1/chat/completions", json=body, headers={"x-chorus-deadline-ms": "0"}).json()
    assert late["choices"][0]["message"]["content"]


@pytest.mark.parametrize("model", [SMOL, "duet"])
def test_several_choices(sdk: openai.OpenAI, model: str) -> None:
    """`n` answers come back in order, differ when sampled, repeat with their seed, and the prompt counts
    once."""

    def draw() -> tuple[list[str | None], int]:
        reply = sdk.chat.completions.create(
            model=model, messages=ASK, n=3, seed=5, temperature=1.3, max_tokens=8
        )
        assert reply.usage is not None
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        return [choice.message.content for choice in reply.choices], reply.usage.prompt_tokens

    one = sdk.chat.completions.create(model=model, messages=ASK, max_tokens=1)
    assert one.usage is not None
    (texts, prompt), again = draw(), draw()
    assert len(set(texts)) > 1
    assert again[0] == texts
    assert prompt == one.usage.prompt_tokens


@pytest.mark.parametrize("model", [SMOL, "duet"])
def test_logprobs(sdk: openai.OpenAI, model: str) -> None:
    """Chosen tokens spell the answer, each with the most likely ones; streamed they are the same."""
    asked: Any = {
        "model": model,
        "messages": ASK,
        "temperature": 0,
        "max_tokens": 6,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = sdk.chat.completions.create(**asked).choices[0]
    assert whole.logprobs is not None
    content = whole.logprobs.content or []
    assert "".join(token.token for token in content) == whole.message.content
    assert all(token.logprob == token.top_logprobs[0].logprob <= 0 for token in content)
    streamed = [
        token.token
        for chunk in sdk.chat.completions.create(**asked, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content or ()
    ]
    assert streamed == [token.token for token in content]


def test_text_completions(sdk: openai.OpenAI) -> None:
    """A raw prompt is continued, whole and streamed, by a model and by a fusion."""
    for model in (GEMMA, "duet"):
        asked: Any = {"model": model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 4}
        whole = sdk.completions.create(**asked).choices[0].text
        assert whole
        assert "".join(c.choices[0].text for c in sdk.completions.create(**asked, stream=True)) == whole


def test_a_stop_string(sdk: openai.OpenAI) -> None:
    """The answer ends before the stop string, with "stop"."""
    for model in (SMOL, "duet"):
        choice = sdk.chat.completions.create(
            model=model, messages=ASK, temperature=0, stop=[" France"]
        ).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("The capital of", "stop")


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "nope"}, 404, "model_not_found", "model"),
        ({"messages": []}, 400, None, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, 400, None, "messages[0].role"),
        ({"max_tokens": 0}, 400, None, "max_tokens"),
        ({"temperature": 3}, 400, None, "temperature"),
        ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
        ({"response_format": {"type": "xml"}}, 400, None, "response_format"),
        ({"model": "cool", "response_format": {"type": "json_object"}}, 400, None, "response_format"),
        ({"model": "duet", "logit_bias": {"1": 5}}, 400, None, "logit_bias"),
        ({"model": "cool", "logit_bias": {"40": 5}}, 400, None, "logit_bias"),
        ({"model": "duet", "chorus": {"weights": {SMOL: 1}}}, 400, None, "chorus.weights"),
        ({"chorus": {"weights": {SMOL: 1}}}, 400, None, "chorus.weights"),
        ({"model": "pack-opt", "chorus": {"weights": {SMOL: 1, GEMMA: 1}}}, 400, None, "chorus.weights"),
        ({"model": "cool", "logprobs": True}, 400, None, "logprobs"),
        (
            {"model": "duet", "messages": [{"role": "user", "content": "x " * 600}]},
            400,
            "context_length_exceeded",
            "messages",
        ),
    ],
)
def test_bad_requests(
    http: httpx.Client, body: dict[str, Any], status: int, code: str | None, param: str
) -> None:
    """What is wrong comes back in OpenAI's shape, naming the field."""
    reply = http.post("/v1/chat/completions", json={"model": SMOL, "messages": ASK, **body})
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (status, "invalid_request_error")
    assert (error["code"], error["param"]) == (code, param)
    assert reply.headers["x-request-id"]


def test_both_numbers_of_a_prompt_too_long(http: httpx.Client) -> None:
    """context_length_exceeded says the limit and the prompt's length."""
    body = {"model": SMOL, "messages": [{"role": "user", "content": "x " * 600}]}
    message = http.post("/v1/chat/completions", json=body).json()["error"]["message"]
    assert "512" in message
    assert any(int(word) > 600 for word in message.split() if word.isdigit())


def test_no_such_route(http: httpx.Client) -> None:
    """404 and 405 have OpenAI's shape, and a request id is echoed."""
    assert http.get("/v2").json()["error"]["code"] == "not_found"
    reply = http.get("/v1/chat/completions", headers={"x-request-id": "mine-1"})
    assert reply.json()["error"]["code"] == "method_not_allowed"
    assert reply.headers["x-request-id"] == "mine-1"
    reply = http.post("/v1/chat/completions", content=b"{")
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_json")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", [SMOL, "duet"])
def test_a_client_that_leaves_stops_its_generation(
    http: httpx.Client, address: tuple[str, int], model: str, stream: bool
) -> None:
    """Closing the connection empties the running count, whether the answer was streamed or awaited."""
    body = json.dumps(
        {"model": model, "messages": ASK, "temperature": 1.0, "max_tokens": 450, "stream": stream}
    )
    with socket.create_connection(address) as connection:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall((head + body).encode())
        _until(lambda: http.get("/stats").json()["running"] > 0)
    _until(lambda: http.get("/stats").json()["running"] == 0)


def test_a_method_that_fails_at_once_is_an_error_not_a_stream(http: httpx.Client) -> None:
    """A request that breaks before its first token gets status 500, streamed or not, and says nothing
    internal."""
    for stream in (False, True):
        reply = http.post("/v1/chat/completions", json={"model": "broken", "messages": ASK, "stream": stream})
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        assert "bug" not in reply.text


def test_health(http: httpx.Client) -> None:
    """Cheap, and true while the loop runs."""
    assert http.get("/health").json() == {"status": "ok"}


def _until(true: Any) -> None:
    for _ in range(1000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came true")
