"""`chorus chat`."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pytest


def events(*bodies: dict[str, Any], done: bool = True) -> bytes:
    data = b"".join(b"data: " + orjson.dumps(body) + b"\n\n" for body in bodies)
    return data + (b"data: [DONE]\n\n" if done else b"")


def chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}]}


LAST = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}, "chorus": {"cost_usd": 1.5e-6}}
WHOLE = (200, {"x-chorus-model": "small,large"}, events(chunk("Par"), chunk("is."), LAST))


def test_says_who_answered_and_the_cost(chorus, gateway) -> None:
    """One message is answered, streamed, with a line on who, tokens and cost; the key is sent."""
    gateway.answer = lambda body: WHOLE
    status, out, _ = chorus(
        "chat", "Capital of France?", "--model", "cascade", "--url", gateway.url, "--key", "sk-x"
    )
    assert status == 0
    answer, line = out.splitlines()
    assert answer == "Paris."
    assert line.startswith("— small + large · 9 + 3 tokens · $0.0000015 · ")
    (asked,) = gateway.asked
    assert (asked["model"], asked["stream"], asked["stream_options"]) == (
        "cascade",
        True,
        {"include_usage": True},
    )
    assert gateway.headers[0]["authorization"] == "Bearer sk-x"


@pytest.mark.parametrize("ending", ["", "/", "/v1", "/v1/"])
def test_the_url_may_be_that_of_an_sdk(chorus, gateway, ending: str) -> None:
    """`base_url` is what people have at hand; it ends with /v1."""
    gateway.answer = lambda body: WHOLE
    assert chorus("chat", "Hi", "--url", gateway.url + ending)[0] == 0
    assert gateway.paths == ["/v1/chat/completions"]


def test_a_url_that_is_none(chorus) -> None:
    """Its shape is told before anybody is asked."""
    status, _, err = chorus("chat", "Hi", "--url", "localhost:8080")
    assert (status, "write http://HOST:PORT" in err) == (2, True)


def test_a_conversation_goes_on(chorus, gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are remembered, commands change model and memory, a failed question is taken back."""
    replies = iter([WHOLE, (404, {}, b'{"error": {"message": "no such model", "type": "x"}}'), WHOLE, WHOLE])
    gateway.answer = lambda body: next(replies)
    lines = ["one", "/model other", "bad", "/help", "", "two", "/clear", "three", "/quit", "never"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    status, out, _ = chorus("chat", "--url", gateway.url)
    assert status == 0
    assert "no such model" in out
    said = [[message["content"] for message in asked["messages"]] for asked in gateway.asked]
    assert said == [["one"], ["one", "Paris.", "bad"], ["one", "Paris.", "two"], ["three"]]
    assert [asked["model"] for asked in gateway.asked] == ["auto", "other", "other", "other"]


def test_end_of_input_leaves(chorus, gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-D ends the chat well."""
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert chorus("chat", "--url", gateway.url)[0] == 0


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((401, {}, b'{"error": {"message": "Wrong key.", "type": "authentication_error"}}'), "Wrong key."),
        ((500, {}, b"<html>"), "status 500"),
        ((503, {"retry-after": "2"}, b'{"error": {"message": "engine host down"}}'), "engine host down"),
        ((200, {}, events(chunk("Par"), {"error": {"message": "cut off"}}, done=False)), "cut off"),
        ((200, {}, events(chunk("Par"), done=False)), "cut short"),
    ],
)
def test_failures_are_one_line(chorus, gateway, answer, told: str) -> None:
    """Whatever the gateway says or breaks, the user reads one line and the status is 1."""
    gateway.answer = lambda body: answer
    status, _, err = chorus("chat", "hi", "--url", gateway.url)
    assert status == 1
    assert told in err
    assert "Traceback" not in err


def test_no_gateway(chorus) -> None:
    """Without a gateway the command to start one is named."""
    status, _, err = chorus("chat", "hi", "--url", "http://127.0.0.1:9")
    assert status == 1
    assert "chorus serve" in err
