"""Whatever comes in, parsers answer or refuse: no other exception, nothing lost, nothing slow.

`make fuzz` runs many more rounds; CHORUS_FUZZ_ROUNDS says how many.
"""

from __future__ import annotations

import json
import os
import random
from typing import Any

import orjson
import pytest

import backends.passing_tap
import backends.stream_tap
import gateway.surfaces
import protocol.anthropic
import protocol.chat
import protocol.litellm_config
import protocol.multipart
import protocol.responses
import protocol.sse
import protocol.telling
from backends.passing_tap import MESSAGES, RESPONSES, PassingTap
from backends.stream_tap import StreamTap
from gateway.surfaces import SURFACES
from protocol.chat import ChatRequest
from protocol.errors import BadRequest, SettingsError, UpstreamBroken, UpstreamRefused
from protocol.multipart import boundary_of, field, with_field
from protocol.settings import faults, models, names, parse_settings, prices, reading, strategies, whole
from protocol.sse import EventSplitter, event_data
from tests.fuzz.bodies import body, value
from tests.fuzz.guided import fuzz, mutated_json

ROUNDS = int(os.environ.get("CHORUS_FUZZ_ROUNDS", "1500"))

STREAM = (
    b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"a"}}],"usage":null}\n\n'
    b': keep-alive\n\ndata: {"choices":[],"usage":{"prompt_tokens":1}}\r\n\r\ndata: [DONE]\r\r'
)
EVENT_WORDS = (
    b"\n\n",
    b"\r\n\r\n",
    b"\r\r",
    b"data: ",
    b"data:",
    b"event: x\n",
    b"[DONE]",
    b'"usage":null',
    b'"error"',
    b"{",
    b"}",
    b'{"error":{"message":"x"}}',
    b'{"error":{"message":"x","code":400}}',
    b'"code":"429"',
    b'"message_stop"',
    b'{"type":"message_stop"}',
    b'{"type":"error"}',
    b"\xff",
    b'"usage":{"input_tokens":3}',
    b'{"type":"response.completed","response":3}',
    b'"type":"message_delta"',
)


def test_sse_parser() -> None:
    """Any bytes, cut anywhere: the same events, and no byte lost."""

    def target(raw: bytes) -> None:
        whole = EventSplitter()
        events = list(whole.feed(raw))
        assert b"".join(events) + whole.rest == raw
        for event in events:
            event_data(event)
        rng = random.Random(len(raw))
        pieces, again, at = EventSplitter(), [], 0
        while at < len(raw):
            step = rng.randrange(1, 9)
            again += pieces.feed(raw[at : at + step])
            at += step
        assert b"".join(again) + pieces.rest == raw

    begun, reached = fuzz(target, [STREAM], [protocol.sse], words=EVENT_WORDS, rounds=ROUNDS)
    assert reached >= begun


@pytest.mark.parametrize(
    ("tap", "module"),
    [
        (lambda: StreamTap("m", usage_asked=False), backends.stream_tap),
        (lambda: PassingTap(MESSAGES, "m"), backends.passing_tap),
        (lambda: PassingTap(RESPONSES, "m"), backends.passing_tap),
    ],
    ids=["chat", "messages", "responses"],
)
def test_stream_taps(tap: Any, module: Any) -> None:
    """A backend's stream is passed on, or is broken, or refuses the request."""

    def target(raw: bytes) -> None:
        made = tap()
        try:
            list(made.feed(raw))
            made.end()
        except (UpstreamBroken, UpstreamRefused):
            return

    seeds = [STREAM, b'data: {"type":"message_delta","usage":{"output_tokens":3}}\n\n']
    fuzz(target, seeds, [module], words=EVENT_WORDS, rounds=ROUNDS)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA"}}
RICH: tuple[dict[str, Any], ...] = (
    {
        "model": "m",
        "max_tokens": 9,
        "stop_sequences": ["x"],
        "system": [{"type": "text", "text": "s"}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}, "description": "d", "strict": True}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "metadata": {"user_id": "u"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}},
        "messages": [
            {
                "role": "user",
                "content": [
                    IMAGE,
                    {"type": "document", "title": "t", "source": {"type": "text", "data": "d"}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "t", "signature": "s"},
                    {"type": "text", "text": "x"},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "tool_use", "id": "i", "name": "f", "input": {"a": [1]}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "i", "content": [IMAGE], "is_error": True}
                ],
            },
        ],
    },
    {
        "model": "m",
        "instructions": "i",
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
        "stream": True,
        "tools": [{"type": "function", "name": "f", "parameters": {}, "strict": None}],
        "top_logprobs": 2,
        "tool_choice": {"type": "function", "name": "f"},
        "include": ["message.output_text.logprobs"],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}}, "verbosity": "low"},
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "u"}],
            },
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "t"}]},
            {
                "role": "assistant",
                "content": [{"type": "output_text", "text": "x"}, {"type": "refusal", "refusal": "r"}],
            },
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_file", "file_data": "d"}],
            },
        ],
    },
)


@pytest.mark.parametrize("surface", SURFACES.values(), ids=lambda surface: surface.path)
def test_request_parsers(surface: Any) -> None:
    """Any body is taken or refused by name; so is its translation, and what is taken can be sent on."""
    taken = 0

    def target(raw: bytes) -> None:
        nonlocal taken
        try:
            request = surface.parse(raw)
            if surface.telling is not None:
                request = surface.telling(request).request
        except BadRequest as refused:
            error = refused
        else:
            taken += 1
            orjson.dumps(request.body)
            return
        assert len(error.message) < 600

    rng = random.Random(surface.path)
    seeds = [json.dumps(made).encode() for made in (*RICH, *(body(surface.path, rng) for _ in range(20)))]
    modules = [protocol.chat, protocol.anthropic, protocol.responses, protocol.telling, gateway.surfaces]
    fuzz(target, seeds, modules, rounds=ROUNDS)
    begun, reached = fuzz(target, seeds, modules, rounds=2 * ROUNDS, mutated=mutated_json)
    assert reached > begun
    assert taken > ROUNDS / 100, "not every input may be refused at the door"


SETTINGS = b"""models:
  a: {openai: {base_url: 'http://x/v1', model: y, endpoints: [chat, files]}, price: {input_usd_per_token: 1}}
  e: {embedder: {weights: z}}
strategies:
  c: {cascade: {stages: [a, a], artefact: x}}
  r: {route: {artefact: x, embedder: e, default: a}}
server: {port: 80, max_body_bytes: 2000}
"""
LITELLM = (
    b"model_list: [{model_name: a, litellm_params: {model: openai/x, api_base: 'http://x/v1', api_key: k}}]\n"
)
SETTINGS_WORDS = (
    b"models:",
    b"strategies:",
    b"fuse: {members: {a: 1}}",
    b"aggregate: {members: [a]}",
    b"engine: {weights: q}",
    b"null",
    b"os.environ/HOME",
    b"${NOPE}",
    b"*x",
    b"&x ",
    b"!!python/object:os.system ",
    b"model_list:",
    b"- ",
    b": ",
    b"\n  ",
    b"{}",
    b"0x7f",
    b".inf",
    b"2020-01-01",
    b"<<: *x",
    b"1e999",
    b"[",
    b"\x00",
    b"? ",
    b"%YAML 9\n---\n",
)


def test_settings_loader() -> None:
    """Any file is settings, or a `SettingsError`."""

    def target(raw: bytes) -> None:
        try:
            parse_settings(raw.decode("utf-8", "replace")).redacted()
        except SettingsError:
            return

    parts = [faults, models, names, prices, reading, strategies, whole]
    modules = [*parts, protocol.litellm_config]
    fuzz(target, [SETTINGS, LITELLM], modules, words=SETTINGS_WORDS, rounds=ROUNDS // 3)


FORM = (
    b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\nbytes\r\n--b--\r\n'
)
FORM_WORDS = (
    b"\r\n",
    b"--b",
    b"--b--",
    b"\r\n\r\n",
    b'name="model"',
    b'name="',
    b"content-disposition: form-data; ",
    b'filename="a"',
)


def test_forms() -> None:
    """A form is read or refused; a changed field reads back as it was set, and nothing else has changed."""

    def target(raw: bytes) -> None:
        try:
            before = field(raw, b"b", "model")
            changed = with_field(raw, b"b", "model", "other")
        except BadRequest:
            return
        if before is not None:
            assert field(changed, b"b", "model") == "other"
        assert with_field(changed, b"b", "model", before or "") == raw

    fuzz(target, [FORM], [protocol.multipart], words=FORM_WORDS, rounds=ROUNDS)


def test_content_types() -> None:
    """A boundary is proper or refused, in time that does not explode."""

    def target(raw: bytes) -> None:
        try:
            assert 1 <= len(boundary_of(raw.decode("latin-1"))) <= 70
        except BadRequest:
            return

    seeds = [b"multipart/form-data; boundary=abc", b'multipart/form-data; boundary="a b"']
    words = (b"; ", b"boundary=", b'"', b" " * 1000, b"multipart/form-data", b"\r\n")
    fuzz(target, seeds, [protocol.multipart], words=words, rounds=ROUNDS)


@pytest.mark.parametrize("path", ["/messages", "/responses"])
def test_answers_of_any_shape(path: str) -> None:
    """Whatever JSON a backend calls a chunk or a completion, translating it fails in known ways only."""
    from gateway.told import _blamed_on_the_backend

    surface = next(surface for surface in SURFACES.values() if surface.path == path)
    made = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "input": "x"}
    rng = random.Random(path)

    def odd() -> Any:
        delta = {
            key: value(rng)
            for key in rng.sample(("content", "tool_calls", "reasoning", "refusal", "role"), 2)
        }
        choice = {
            "index": 0,
            "delta": delta,
            "message": delta,
            "finish_reason": value(rng),
            "logprobs": value(rng),
        }
        return rng.choice((value(rng), {"choices": value(rng)}, {"choices": [choice], "usage": value(rng)}))

    for _ in range(ROUNDS):
        telling = surface.telling(ChatRequest(dict(made)))
        for tell in (telling.whole, telling.chunk):
            try:
                with _blamed_on_the_backend():
                    orjson.dumps(tell(odd())) if tell == telling.whole else tell(odd())
            except UpstreamBroken:
                continue
