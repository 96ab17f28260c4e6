"""The sampling fields beyond the most common ones, checked before a sampler sees them: vLLM's for a plain model,
ours for a fusion.

The sampler trusts its input: an id outside the vocabulary breaks the step of every request in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from protocol.errors import BadRequest

__all__ = ["RANGES", "sampler_options"]

RANGES: Mapping[str, tuple[type[int] | type[float], float, float, tuple[float, ...]]] = {
    "top_k": (int, -1, 2**31, (-1, 0)),
    "min_p": (float, 0, 1, (0,)),
    "repetition_penalty": (float, 0.01, 10, (1,)),
    "presence_penalty": (float, -2, 2, (0,)),
    "frequency_penalty": (float, -2, 2, (0,)),
}
"""Field → its type, least and greatest value, and the values that change nothing."""

MAX_BIASES = 1024


def sampler_options(body: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """The fields of a request body that change anything, as `SamplingParams` takes them.

    `vocabulary` is the number of ids. Raises `BadRequest` naming the field.
    """
    options: dict[str, Any] = {}
    for key, (kind, low, high, neutral) in RANGES.items():
        value = body.get(key)
        if value is None:
            continue
        number = not isinstance(value, bool) and isinstance(value, (int, float)) and low <= value <= high
        if not number or (kind is int and not isinstance(value, int)):
            raise BadRequest(f"'{key}' must be {kind.__name__} between {low:g} and {high:g}.", param=key)
        if value not in neutral:
            options[key] = kind(value)
    if bias := body.get("logit_bias"):
        options["logit_bias"] = _bias(bias, vocabulary)
    return options


def _bias(value: Any, vocabulary: int) -> dict[int, float]:
    fault = BadRequest(
        f"'logit_bias' must map at most {MAX_BIASES} token ids below {vocabulary} to numbers from -100 to 100.",
        param="logit_bias",
    )
    if not isinstance(value, Mapping) or len(value) > MAX_BIASES:
        raise fault
    out = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and int(key) < vocabulary):
            raise fault
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not math.fabs(bias) <= 100:
            raise fault
        out[int(key)] = float(bias)
    return out
