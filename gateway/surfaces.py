"""Request bodies of the surfaces beside chat: text completions and embeddings. Unknown fields survive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.chat import ChatRequest, Options, check_model, check_sampling, parse_object
from protocol.errors import BadRequest

__all__ = ["MAX_INPUTS", "parse_completion", "parse_embedding"]

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
    if body.get("stream"):
        raise BadRequest("Embeddings cannot be streamed.", param="stream")
    return ChatRequest(body, options)


def _common(raw: bytes) -> tuple[Mapping[str, Any], Options]:
    body = parse_object(raw)
    options = Options.parse(body.pop("chorus", None))
    check_model(body)
    return body, options
