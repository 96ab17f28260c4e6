"""The request bodies of every route as JSON Schema: what the hot routes' own checks accept, no more and no less.

Ranges and limits are read off the tables the checks use. A property without a type is passed on as it is: its backend
judges it. That these schemas and the checks agree is tested over generated bodies. What they cannot say: how deep
a body may nest, and that an integer above 2**53 must be written without a point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.surfaces import MAX_INPUTS
from protocol.chat import (
    INTEGERS,
    MAX_INTEGER,
    MAX_MEMBERS,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    MAX_WEIGHT,
    NUMBERS,
    ROLES,
)

__all__ = ["RELAY_SCHEMAS", "SURFACE_SCHEMAS"]

Schema = Mapping[str, Any]

NAME: Schema = {"type": "string", "minLength": 1, "description": "a name that /v1/models lists"}
OPTIONAL_NAME: Schema = {"anyOf": [NAME, {"type": "null"}]}
FLAG: Schema = {"type": ["boolean", "null"]}

OBJECTS: Schema = {"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": {"type": "object"}}

CHORUS: Schema = {
    "type": ["object", "null"],
    "description": "Chorus's own knobs",
    "additionalProperties": False,
    "properties": {
        "explain": {"type": "boolean"},
        "max_cost_usd": {"type": ["number", "null"], "minimum": 0},
        "deadline_ms": {"type": ["number", "null"], "minimum": 1},
        "quality": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "threshold": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "weights": {
            "type": ["object", "null"],
            "minProperties": 1,
            "maxProperties": MAX_MEMBERS,
            "additionalProperties": {"type": "number", "minimum": 0, "maximum": MAX_WEIGHT},
        },
    },
}

MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": list(ROLES)},
        "content": {
            "type": ["string", "array", "null"],
            "items": {"type": "object", "required": ["type"], "description": "a content part"},
        },
    },
    "anyOf": [
        {"properties": {"role": {"enum": ["assistant", "function"]}}},
        {"required": ["content"], "properties": {"content": {"type": ["string", "array"]}}},
    ],
}


def _number(low: float, high: float, exclusive_low: bool) -> Schema:
    return {
        "type": ["number", "null"],
        "exclusiveMinimum" if exclusive_low else "minimum": low,
        "maximum": high,
    }


def _integer(low: int, high: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


SAMPLING: Schema = {
    **{key: _number(*bounds) for key, bounds in NUMBERS.items()},
    **{key: _integer(*bounds) for key, bounds in INTEGERS.items()},
    "stream": FLAG,
    "stream_options": {"type": ["object", "null"]},
    "stop": {
        "anyOf": [
            {"type": ["string", "null"]},
            {"type": "array", "maxItems": MAX_STOPS, "items": {"type": "string"}},
        ]
    },
}


def _body(required: str, properties: Mapping[str, Schema], passed_on: str) -> Schema:
    """A body with `required` fields, checked `properties`, and others that are named but `passed_on` unread."""
    passed: dict[str, Schema] = {key: {} for key in passed_on.split() if key not in properties}
    every = {"chorus": CHORUS, **properties, **passed}
    return {"type": "object", "required": required.split(), "properties": every}


_MESSAGES_FIELDS = """cache_control container diagnostics inference_geo metadata output_config service_tier speed
stop_sequences system temperature thinking tool_choice tools top_k top_p user_profile_id workspace_id"""

_CHAT = _body(
    "model messages",
    {
        "model": NAME,
        "messages": {"type": "array", "minItems": 1, "maxItems": MAX_MESSAGES, "items": MESSAGE},
        "tools": {"type": ["array", "null"], "maxItems": MAX_TOOLS, "items": {"type": "object"}},
        **SAMPLING,
    },
    """audio function_call functions logit_bias logprobs metadata modalities moderation parallel_tool_calls
        prediction prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort response_format
        safety_identifier service_tier store tool_choice user verbosity web_search_options""",
)

SURFACE_SCHEMAS: Mapping[str, Schema] = {
    "/chat/completions": _CHAT,
    "/route": _CHAT,
    "/completions": _body(
        "model prompt",
        {"model": NAME, "prompt": {"type": ["string", "array"]}, **SAMPLING},
        "best_of echo logit_bias logprobs suffix user",
    ),
    "/embeddings": _body(
        "model input",
        {
            "model": NAME,
            "input": {
                "anyOf": [
                    {"type": "string", "minLength": 1},
                    {"type": "array", "minItems": 1, "maxItems": MAX_INPUTS},
                ]
            },
            "encoding_format": {"enum": ["float", "base64", None]},
            "stream": {"enum": [False, None]},
        },
        "dimensions user",
    ),
    "/messages": _body(
        "model messages max_tokens",
        {
            "model": NAME,
            "messages": OBJECTS,
            "max_tokens": {"type": "integer", "minimum": 1, "maximum": MAX_INTEGER},
            "stream": FLAG,
        },
        _MESSAGES_FIELDS,
    ),
    "/messages/count_tokens": _body(
        "model messages",
        {"model": NAME, "messages": OBJECTS, "stream": FLAG},
        _MESSAGES_FIELDS,
    ),
    "/responses": _body(
        "model",
        {"model": NAME, "stream": FLAG},
        """access_programs background background_options context_management conversation image include input
        instructions max_output_tokens max_tool_calls metadata moderation parallel_tool_calls previous_response_id
        prompt prompt_cache_key prompt_cache_options prompt_cache_retention reasoning safety_identifier
        service_tier store stream_options temperature text tool_choice tools top_logprobs top_p truncation user""",
    ),
}
"""Path below /v1 → its body."""


def _relayed(passed_on: str, model: Schema = NAME) -> Schema:
    required = ["model"] if model is NAME else []
    return {
        "type": "object",
        "required": required,
        "properties": {"model": model, **{key: {} for key in passed_on.split()}},
    }


_IMAGE_FIELDS = """background complexity frame_count frame_duration_ms moderation n output_compression output_format
partial_images prompt quality response_format safety_identifier size stream style svg user"""

RELAY_SCHEMAS: Mapping[str, Schema] = {
    "/images/generations": _relayed(_IMAGE_FIELDS),
    "/images/edits": _relayed(f"{_IMAGE_FIELDS} image input_fidelity markup mask"),
    "/images/variations": _relayed("image n response_format size user", OPTIONAL_NAME),
    "/audio/speech": _relayed("input instructions response_format speed stream_format voice"),
    "/audio/transcriptions": _relayed(
        """chunking_strategy file include keywords known_speaker_names known_speaker_references language languages
        prompt response_format stream temperature timestamp_granularities"""
    ),
    "/audio/translations": _relayed("file prompt response_format temperature"),
    "/moderations": _relayed("input", OPTIONAL_NAME),
    "/files": _relayed("expires_after file purpose", OPTIONAL_NAME),
    "/batches": _relayed(
        "completion_window endpoint input_file_id metadata output_expires_after", OPTIONAL_NAME
    ),
}
"""Path below /v1 → the body of its POST."""
