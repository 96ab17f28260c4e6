"""The surfaces that models answer, and how each checks a body. Unknown fields survive."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from backends.passing_tap import MESSAGES, RESPONSES, Tongue
from protocol.anthropic import ANTHROPIC, Message, check_message
from protocol.chat import ChatRequest, Options, check_model, check_sampling, parse_object
from protocol.errors import BadRequest
from protocol.responses import ResponseTelling, check_response
from protocol.settings import Endpoint
from protocol.telling import OPENAI, Telling, Wording

__all__ = [
    "MAX_INPUTS",
    "SURFACES",
    "Surface",
    "parse_completion",
    "parse_count",
    "parse_embedding",
    "parse_message",
    "parse_response",
]


@dataclass(frozen=True, slots=True)
class Surface:
    """A route that models answer: its path below `/v1`, here and upstream, the endpoint a backend must have, and how
    its body is checked.

    A surface that `decides` says who would answer, and asks no model.
    One with a `tongue` has words of its own: a backend that has its endpoint is passed the request, any other
    is asked for chat, which `telling` translates; or, where `counts`, the prompt's tokens are estimated.
    """

    path: str
    endpoint: Endpoint
    parse: Callable[[bytes], ChatRequest]
    wording: Wording = OPENAI
    tongue: Tongue | None = None
    telling: Callable[[ChatRequest], Telling] | None = None
    counts: bool = False
    decides: bool = False


MAX_INPUTS = 2048
"""Texts in one embeddings request, as in OpenAI's API."""


def parse_completion(raw: bytes) -> ChatRequest:
    """A `/v1/completions` body. Raises `BadRequest`."""
    body, options = _common(raw)
    check_sampling(body)
    prompt = body.get("prompt")
    if prompt is None or not isinstance(prompt, (str, list)):
        raise BadRequest("'prompt' is required and must be a string or a list.", param="prompt")
    return ChatRequest(body, options)


def parse_embedding(raw: bytes) -> ChatRequest:
    """A `/v1/embeddings` body: `input` is a text, a list of texts, or token ids where the backend takes
    them."""
    body, options = _common(raw)
    texts = body.get("input")
    if not isinstance(texts, (str, list)) or not texts:
        raise BadRequest("'input' is required and must be a non-empty string or list.", param="input")
    if isinstance(texts, list) and len(texts) > MAX_INPUTS:
        raise BadRequest(f"'input' has {len(texts)} texts; at most {MAX_INPUTS} are accepted.", param="input")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise BadRequest("'encoding_format' must be 'float' or 'base64'.", param="encoding_format")
    if body.get("stream") is not None and body["stream"] is not False:
        raise BadRequest("Embeddings cannot be streamed.", param="stream")
    return ChatRequest(body, options)


def parse_message(raw: bytes) -> ChatRequest:
    """A `/v1/messages` body, in Anthropic's words. Raises `BadRequest`."""
    body, options = _common(raw)
    check_message(body)
    return ChatRequest(body, options)


def parse_count(raw: bytes) -> ChatRequest:
    """A `/v1/messages/count_tokens` body. Raises `BadRequest`."""
    body, options = _common(raw)
    check_message(body, counting=True)
    return ChatRequest(body, options)


def parse_response(raw: bytes) -> ChatRequest:
    """A `/v1/responses` body, in the words of Responses. Raises `BadRequest`."""
    body, options = _common(raw)
    check_response(body)
    return ChatRequest(body, options)


def _response_telling(request: ChatRequest) -> Telling:
    return ResponseTelling(request, int(time.time()))


def _common(raw: bytes) -> tuple[dict[str, Any], Options]:
    body = parse_object(raw)
    options = Options.parse(body.pop("chorus", None))
    check_model(body)
    return body, options


SURFACES: Mapping[tuple[str, str], Surface] = {
    ("POST", "/v1/chat/completions"): Surface("/chat/completions", "chat", ChatRequest.parse),
    ("POST", "/v1/route"): Surface("/route", "chat", ChatRequest.parse, decides=True),
    ("POST", "/v1/completions"): Surface("/completions", "completions", parse_completion),
    ("POST", "/v1/embeddings"): Surface("/embeddings", "embeddings", parse_embedding),
    ("POST", "/v1/messages"): Surface("/messages", "messages", parse_message, ANTHROPIC, MESSAGES, Message),
    ("POST", "/v1/messages/count_tokens"): Surface(
        "/messages/count_tokens", "messages", parse_count, ANTHROPIC, MESSAGES, Message, counts=True
    ),
    ("POST", "/v1/responses"): Surface(
        "/responses", "responses", parse_response, OPENAI, RESPONSES, _response_telling
    ),
}
