"""Bodies of text completions and embeddings."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.surfaces import MAX_INPUTS, parse_completion, parse_embedding
from protocol.errors import BadRequest


def test_unknown_fields_survive() -> None:
    """What we do not know is the backend's to judge; `chorus` is ours."""
    body = {"model": "m", "prompt": "x", "novel": [1], "chorus": {"explain": True}}
    request = parse_completion(json.dumps(body).encode())
    assert request.body["novel"] == [1]
    assert "chorus" not in request.body
    assert request.options.explain


def test_token_ids_pass() -> None:
    """Token ids are for the backend to take or refuse."""
    assert parse_embedding(b'{"model": "m", "input": [[1, 2]]}').body["input"] == [[1, 2]]


@pytest.mark.parametrize(
    ("parse", "fields", "param"),
    [
        (parse_completion, {}, "prompt"),
        (parse_completion, {"prompt": 1}, "prompt"),
        (parse_completion, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        (parse_embedding, {}, "input"),
        (parse_embedding, {"input": {}}, "input"),
        (parse_embedding, {"input": ["x"] * (MAX_INPUTS + 1)}, "input"),
        (parse_embedding, {"input": "x", "encoding_format": 1}, "encoding_format"),
        (parse_embedding, {"input": "x", "stream": True}, "stream"),
    ],
)
def test_refusals(parse: Any, fields: dict[str, Any], param: str) -> None:
    """A malformed field is named."""
    with pytest.raises(BadRequest) as caught:
        parse(json.dumps({"model": "m", **fields}).encode())
    assert caught.value.param == param
