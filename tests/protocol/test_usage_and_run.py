"""Tokens, prices and the trace."""

from __future__ import annotations

import pytest

from protocol.run import Call, Reply, Trace
from protocol.usage import Price, Usage

WIRE = {
    "prompt_tokens": 100,
    "completion_tokens": 20,
    "total_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 60},
    "completion_tokens_details": {"reasoning_tokens": 5},
}


def test_usage_round_trip() -> None:
    """OpenAI's usage object comes out as it went in; what is absent counts as zero."""
    usage = Usage.parse(WIRE)
    assert usage == Usage(100, 20, 60, 5)
    assert usage.wire() == WIRE
    assert Usage.parse(None) == Usage() == Usage.parse({"prompt_tokens": None, "prompt_tokens_details": None})
    assert "prompt_tokens_details" not in Usage(1, 1).wire()


def test_cached_tokens_have_their_own_price() -> None:
    """Cached input is charged at its own price, or at the input price when it has none."""
    usage = Usage(100, 20, 60)
    assert Price(1e-6, 2e-6, 1e-7).cost_usd(usage) == pytest.approx(40e-6 + 6e-6 + 40e-6)
    assert Price(1e-6, 2e-6).cost_usd(usage) == pytest.approx(140e-6)


def test_trace_sums_its_calls() -> None:
    """Usage and cost are of all calls; embeddings cost but are not part of the usage."""
    trace = Trace()
    trace.calls += [Call("a", Usage(1, 2), 0.5, 1.0), Call("b", Usage(3, 4), 0.25, 1.0, "upstream_broken")]
    trace.embeddings.append(Call("e", Usage(9, 0), 0.125, 1.0))
    trace.note(x=1)
    trace.note(y=2)
    assert trace.usage == Usage(4, 6)
    assert trace.cost_usd == 0.875
    assert trace.decision == {"x": 1, "y": 2}
    assert trace.calls[1].wire() == {
        "model": "b", "prompt_tokens": 3, "completion_tokens": 4, "cost_usd": 0.25, "latency_ms": 1000.0,
        "outcome": "upstream_broken",
    }  # fmt: skip


def test_reply_reads_its_body() -> None:
    """A reply's text, usage and log-probabilities are its body's."""
    content = [{"token": "hi", "logprob": -0.5}]
    choice = {"message": {"content": "hi"}, "logprobs": {"content": content}}
    reply = Reply({"choices": [choice], "usage": {"prompt_tokens": 3}}, ("m",))
    assert (reply.text, reply.usage, reply.token_logprobs) == ("hi", Usage(3), [-0.5])
