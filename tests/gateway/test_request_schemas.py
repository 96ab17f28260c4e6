"""The published request schemas against the SDKs' types and against the hot routes' own checks."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Awaitable, Iterator
from typing import Any

import anthropic
import anthropic.types.message_count_tokens_params as counting
import anthropic.types.message_create_params as messages
import httpx
import httpx2
import jsonschema
import openai
import openai.types.audio.speech_create_params as speech
import openai.types.audio.transcription_create_params as transcription
import openai.types.audio.translation_create_params as translation
import openai.types.batch_create_params as batch
import openai.types.chat.completion_create_params as chat
import openai.types.completion_create_params as completion
import openai.types.embedding_create_params as embedding
import openai.types.file_create_params as file
import openai.types.image_create_variation_params as variation
import openai.types.image_edit_params as edit
import openai.types.image_generate_params as generate
import openai.types.moderation_create_params as moderation
import openai.types.responses.response_create_params as response
import orjson
import pytest

from gateway.openapi import document
from gateway.request_schemas import RELAY_SCHEMAS, SURFACE_SCHEMAS
from gateway.surfaces import SURFACES
from protocol.errors import BadRequest
from tests.fuzz.bad_bodies import BAD, SOUND
from tests.fuzz.bodies import body

BODIES = int(os.environ.get("CHORUS_FUZZ_BODIES", "12000"))
PARSE = {surface.path: surface.parse for surface in SURFACES.values()}

SDK_TYPES: dict[str, Any] = {
    "/chat/completions": chat.CompletionCreateParamsStreaming,
    "/route": chat.CompletionCreateParamsStreaming,
    "/completions": completion.CompletionCreateParamsStreaming,
    "/embeddings": embedding.EmbeddingCreateParams,
    "/messages": messages.MessageCreateParamsStreaming,
    "/messages/count_tokens": counting.MessageCountTokensParams,
    "/responses": response.ResponseCreateParamsStreaming,
    "/images/generations": generate.ImageGenerateParamsStreaming,
    "/images/edits": edit.ImageEditParamsStreaming,
    "/images/variations": variation.ImageCreateVariationParams,
    "/audio/speech": speech.SpeechCreateParams,
    "/audio/transcriptions": transcription.TranscriptionCreateParamsStreaming,
    "/audio/translations": translation.TranslationCreateParams,
    "/moderations": moderation.ModerationCreateParams,
    "/files": file.FileCreateParams,
    "/batches": batch.BatchCreateParams,
}


@pytest.mark.parametrize("path", [*SURFACE_SCHEMAS, *RELAY_SCHEMAS])
def test_every_property_of_the_sdks_is_named(path: str) -> None:
    """Whatever the SDKs can send is named in the document."""
    kind = SDK_TYPES[path]
    named = {**SURFACE_SCHEMAS, **RELAY_SCHEMAS}[path]["properties"]
    assert (kind.__required_keys__ | kind.__optional_keys__) - set(named) == set()


@pytest.mark.parametrize("path", list(SURFACE_SCHEMAS))
def test_schemas_agree_with_the_checks(path: str) -> None:
    """Over thousands of generated bodies (12,000 a surface), schema and hot route accept and refuse the same ones."""
    validator = jsonschema.Draft202012Validator(SURFACE_SCHEMAS[path])
    rng = random.Random(path)
    accepted = 0
    for _ in range(BODIES):
        made = body(path, rng)
        by_schema = validator.is_valid(made)
        try:
            PARSE[path](json.dumps(made).encode())  # not orjson: it writes no integer of more than 64 bits
            by_route = True
        except BadRequest:
            by_route = False
        assert by_schema == by_route, made
        accepted += by_route
    assert 0.1 < accepted / BODIES < 0.9, "the bodies must be of both kinds"


@pytest.mark.parametrize("path", list(BAD))
def test_bad_bodies_are_refused(path: str) -> None:
    """What must be refused is refused by schema and hot route alike; the refusal names the field."""
    validator = jsonschema.Draft202012Validator(SURFACE_SCHEMAS[path])
    assert validator.is_valid(SOUND[path])
    for change, param in BAD[path]:
        bad = {**SOUND[path], **change}
        assert not validator.is_valid(bad), change
        with pytest.raises(BadRequest) as refused:
            PARSE[path](orjson.dumps(bad))
        assert refused.value.param == param, change


ASK: Any = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
TOOL: Any = {"name": "f", "input_schema": {"type": "object"}}
FUNCTION: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FILE = ("a.png", b"x", "image/png")


def _openai_calls(sdk: openai.AsyncOpenAI) -> Iterator[Awaitable[Any]]:
    """Requests of the OpenAI SDK, one of each endpoint at least."""
    chat = sdk.chat.completions
    yield chat.create(model="m", messages=ASK, temperature=1, stop=["x"], seed=3, tools=[FUNCTION])
    yield chat.create(model="m", messages=ASK, stream=True, n=2, logprobs=True, top_logprobs=2)
    yield chat.create(model="m", messages=ASK, stream=True, stream_options={"include_usage": True})
    yield chat.create(
        model="m", messages=ASK, response_format={"type": "json_object"}, reasoning_effort="low"
    )
    yield sdk.completions.create(model="m", prompt=[1, 2], max_tokens=3)
    yield sdk.completions.create(model="m", prompt="x", stream=True, logprobs=2, echo=True)
    yield sdk.embeddings.create(model="m", input=["a", "b"], dimensions=3)
    yield sdk.embeddings.create(model="m", input="a", encoding_format="float")
    yield sdk.responses.create(model="m", input="x", text={"format": {"type": "text"}})
    yield sdk.responses.create(model="m", input=[{"role": "user", "content": "x"}], stream=True, store=False)
    yield sdk.images.generate(model="m", prompt="x", n=1, size="256x256")
    yield sdk.images.edit(model="m", prompt="x", image=FILE)
    yield sdk.images.create_variation(image=FILE)
    yield sdk.audio.speech.create(model="m", input="x", voice="alloy", speed=1.5)
    yield sdk.audio.transcriptions.create(model="m", file=FILE, language="en")
    yield sdk.audio.translations.create(model="m", file=FILE)
    yield sdk.moderations.create(input=["x"])
    yield sdk.files.create(file=FILE, purpose="batch")
    yield sdk.batches.create(
        completion_window="24h", endpoint="/v1/chat/completions", input_file_id="f", metadata={"a": "b"}
    )


def _anthropic_calls(sdk: anthropic.AsyncAnthropic) -> Iterator[Awaitable[Any]]:
    """Requests of the Anthropic SDK."""
    yield sdk.messages.create(model="m", messages=ASK, max_tokens=5, system="s", stop_sequences=["x"])
    yield sdk.messages.create(model="m", messages=ASK, max_tokens=5, stream=True, tools=[TOOL])
    yield sdk.messages.create(
        model="m", messages=ASK, max_tokens=2000, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    yield sdk.messages.count_tokens(model="m", messages=ASK, system="s", tools=[TOOL])


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the SDK says so of parts of it
async def test_recorded_sdk_requests_are_accepted() -> None:
    """What the SDKs really send fits the schema of its route, and passes its check; of forms, every field is named."""
    recorded: list[tuple[str, Any]] = []

    def recording(library: Any) -> Any:
        def record(request: Any) -> Any:
            request.read()
            recorded.append((request.url.path.removeprefix("/v1"), request))
            return library.Response(400, json={"error": {"message": "recorded"}})

        return library.AsyncClient(transport=library.MockTransport(record))

    async with (
        openai.AsyncOpenAI(
            api_key="x", base_url="http://x/v1", max_retries=0, http_client=recording(httpx)
        ) as one,
        anthropic.AsyncAnthropic(
            api_key="x", base_url="http://x", max_retries=0, http_client=recording(httpx2)
        ) as other,
    ):
        for call in (*_openai_calls(one), *_anthropic_calls(other)):
            with pytest.raises((openai.BadRequestError, anthropic.BadRequestError)):
                await call
    schemas = {**SURFACE_SCHEMAS, **RELAY_SCHEMAS}
    assert {path for path, _ in recorded} == set(SDK_TYPES) - {"/route"}, "of every route but our own"
    for path, request in recorded:
        if request.headers["content-type"].startswith("multipart/"):
            names = set(re.findall(rb'form-data; name="([^"\[]+)', request.content))
            assert {name.decode() for name in names} <= set(schemas[path]["properties"]), path
            continue
        jsonschema.validate(orjson.loads(request.content), schemas[path])
        if path in PARSE:
            PARSE[path](request.content)


def test_schemas_are_schemas() -> None:
    """Every schema is valid JSON Schema, and every POST of the document has one."""
    for schema in (*SURFACE_SCHEMAS.values(), *RELAY_SCHEMAS.values()):
        jsonschema.Draft202012Validator.check_schema(schema)
    for path, operations in document()["paths"].items():
        for method, operation in operations.items():
            if method == "post" and "cancel" not in path:
                (content,) = operation["requestBody"]["content"].values()
                assert content["schema"]["properties"], path


async def test_document_is_served(serve: Any) -> None:
    """The document is at /openapi.json and names every route that answers."""
    told = (await (await serve()).get("/openapi.json")).json()
    assert told == document()
    assert {path for _, path in SURFACES} <= set(told["paths"])
