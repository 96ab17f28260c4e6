"""What reaches vLLM's sampler."""

from __future__ import annotations

from typing import Any

import pytest

from engines.sampler_options import sampler_options
from protocol.errors import BadRequest


def test_what_changes_nothing_is_left_out() -> None:
    """Neutral values, which SDKs like to send, are not options."""
    body = {"top_k": -1, "min_p": 0, "presence_penalty": 0.0, "logit_bias": {}, "repetition_penalty": None}
    assert sampler_options(body, 10) == {}


def test_good_values_pass() -> None:
    """Values in range arrive in the sampler's own types."""
    body = {"top_k": 5, "min_p": 0.1, "frequency_penalty": 1, "logit_bias": {"9": -100}}
    assert sampler_options(body, 10) == {
        "top_k": 5,
        "min_p": 0.1,
        "frequency_penalty": 1.0,
        "logit_bias": {9: -100.0},
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("top_k", -5),
        ("top_k", 1.5),
        ("min_p", True),
        ("min_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("logit_bias", {"10": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": float("nan")}),
        ("logit_bias", [1]),
        ("logit_bias", {str(i): 1 for i in range(2000)}),
    ],
)
def test_what_would_break_the_sampler_is_refused(key: str, value: Any) -> None:
    """Wrong types, ranges and ids outside the vocabulary are the caller's error, by name."""
    with pytest.raises(BadRequest) as caught:
        sampler_options({key: value}, 10)
    assert caught.value.param == key
