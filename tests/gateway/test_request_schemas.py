"""The published request schemas against the SDKs' types and against the hot routes' own checks."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import anthropic.types.message_count_tokens_params as counting
import anthropic.types.message_create_params as messages
import httpx
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


async def test_recorded_sdk_requests_are_accepted() -> None:
    """What the SDK really sends fits the schema of its route, and passes its check."""
    recorded: list[tuple[str, bytes]] = []

    def record(request: httpx.Request) -> httpx.Response:
        recorded.append((request.url.path.removeprefix("/v1"), request.content))
        return httpx.Response(400, json={"error": {"message": "recorded"}})

    http = httpx.AsyncClient(transport=httpx.MockTransport(record))
    ask: Any = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    async with openai.AsyncOpenAI(
        api_key="x", base_url="http://x/v1", max_retries=0, http_client=http
    ) as sdk:
        for call in (
            sdk.chat.completions.create(model="m", messages=ask, temperature=1, stop=["x"], seed=3),
            sdk.chat.completions.create(
                model="m", messages=ask, stream=True, n=2, logprobs=True, top_logprobs=2
            ),
            sdk.completions.create(model="m", prompt=[1, 2], max_tokens=3),
            sdk.embeddings.create(model="m", input=["a", "b"], dimensions=3),
            sdk.responses.create(model="m", input="x", text={"format": {"type": "text"}}),
        ):
            with pytest.raises(openai.BadRequestError):
                await call
    assert len(recorded) == 5
    for path, raw in recorded:
        jsonschema.validate(orjson.loads(raw), SURFACE_SCHEMAS[path])
        PARSE[path](raw)


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
