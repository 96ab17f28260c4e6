"""What an answer tells about itself."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gateway.explanation import decimal, explain, headers, last_event, stream_headers, whole_body
from protocol.chat import ChatRequest, Options
from protocol.run import Call, Reply, Trace
from protocol.usage import Usage

CALL = Call("m", Usage(1, 2), 0.5, 0.1)
RAW = b'{"usage":  {}}'
REPLY = Reply({"usage": {}}, ("m",), RAW)
PLAIN = ChatRequest({"model": "m"})
EXPLAINED = ChatRequest({"model": "m"}, Options(explain=True))
ASKED = ChatRequest({"model": "m", "stream_options": {"include_usage": True}})


@pytest.mark.parametrize(
    ("usd", "told"), [(0.0, "0"), (1.27e-5, "0.0000127"), (2.0, "2"), (1e-9, "0.000000001"), (12.5, "12.5")]
)
def test_decimal(usd: float, told: str) -> None:
    """Money is written as people read it."""
    assert decimal(usd) == told


def test_headers() -> None:
    """Members are comma-separated; the cost stands there once it is known."""
    assert headers("duet", ("a", "b")) == {"x-chorus-strategy": "duet", "x-chorus-model": "a,b"}
    assert headers("duet", ("a",), Trace([CALL]))["x-chorus-cost-usd"] == "0.5"


def test_who_was_left_out() -> None:
    """Members of a fusion that were shed or lost are named once each, wherever in the call tree; what an upstream says
    there that is no name is not told."""
    rows = [{"index": i, "model": name, "why": "load", "at": 0} for i in (0, 1) for name in ("b", "c/d")]
    rubbish = [{"model": "x\r\nset-cookie: a=b"}, {"model": 7}, {"model": "é"}, {}, "b", None]
    calls = [replace(CALL, told={"left_out": told}) for told in (rows, rubbish, None, 3, 3 * [rows[0]])]
    told = headers("vote", ("a", "b"), Trace([CALL, *calls]))
    assert told["x-chorus-left-out"] == "b,c/d"
    begun = stream_headers("vote", ("a",), Trace(calls[:2]), ["e", "x\r\ny: z", "b", ""])
    assert begun["x-chorus-left-out"] == "b,c/d,e"
    assert stream_headers("direct", ("m",), Trace([CALL])) == headers("direct", ("m",))
    assert "x-chorus-left-out" not in headers("direct", ("m",), Trace([CALL]))


def test_one_call_is_left_alone() -> None:
    """An answer from one call is the backend's own bytes."""
    assert whole_body(PLAIN, REPLY, "direct", Trace([CALL])) is RAW


def test_embedding_does_not_change_an_answer() -> None:
    """A routed answer is the backend's own bytes, though its routing was paid for."""
    trace = Trace([CALL], [Call("e", Usage(9, 0), 0.25, 0.1)])
    assert whole_body(PLAIN, REPLY, "auto", trace) is RAW
    assert explain("auto", ("m",), trace)["cost_usd"] == 0.75
    assert explain("auto", ("m",), trace)["embeddings"][0]["prompt_tokens"] == 9


def test_several_calls_are_summed() -> None:
    """Usage is the sum over all calls, and the explained calls add up to it."""
    body = json.loads(whole_body(EXPLAINED, REPLY, "vote", Trace([CALL, CALL])))
    assert body["usage"]["completion_tokens"] == 4
    assert sum(call["completion_tokens"] for call in body["chorus"]["calls"]) == 4
    assert body["chorus"]["members"] == [
        {"model": "m", "calls": 2, "prompt_tokens": 2, "completion_tokens": 4, "cost_usd": 1.0}
    ]


def test_last_event_only_when_asked() -> None:
    """A caller who asked for nothing gets no event of ours."""
    assert last_event(PLAIN, ("m",), "direct", Trace([CALL]), tail=None) == b""


def test_last_event_keeps_the_backends_usage() -> None:
    """A single call's usage event is kept as the backend wrote it, details included."""
    tail = {"id": "x", "created": 1, "model": "theirs", "choices": [], "usage": {"novel": 1}}
    told = json.loads(last_event(ASKED, ("m",), "direct", Trace([CALL]), tail=tail)[6:])
    assert told == {**tail, "chorus": {"cost_usd": 0.5}}


def test_last_event_tells_who_was_left_out() -> None:
    """A stream has no headers at its end."""
    call = replace(CALL, told={"left_out": [{"index": 0, "model": "b", "why": "load", "at": 0}]})
    told = json.loads(last_event(ASKED, ("a", "b"), "duet", Trace([call]), tail=None)[6:])
    assert told["chorus"] == {"cost_usd": 0.5, "left_out": ["b"]}


def test_last_event_sums_several_calls() -> None:
    """After several calls the last event has their sum."""
    tail = {"id": "x", "created": 1, "model": "theirs", "choices": [], "usage": {"novel": 1}}
    told = json.loads(last_event(ASKED, ("m",), "cascade", Trace([CALL, CALL]), tail=tail)[6:])
    assert told["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "total_tokens": 6}
