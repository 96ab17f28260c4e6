"""Bodies of completions and chunks."""

from __future__ import annotations

import copy

import pytest

from protocol.usage import Usage
from protocol.wire import assembled, chunk, completion, completion_id, replay, reply_text, token_logprobs


def body(text: str | None, tokens: list[tuple[str, float]], **message) -> dict:
    content = [{"token": token, "logprob": value} for token, value in tokens]
    return {"choices": [{"message": {"content": text, **message}, "logprobs": {"content": content}}]}


def test_completion_and_chunk_shapes() -> None:
    """The bodies are OpenAI's, key by key; a chunk without delta has no choices."""
    whole = completion(id="i", created=1, model="m", text="t", finish_reason="stop", usage=Usage(1, 2))
    assert set(whole) == {"id", "object", "created", "model", "choices", "usage"}
    assert whole["usage"]["total_tokens"] == 3
    assert reply_text(whole) == "t"
    assert chunk(id="i", created=1, model="m", usage={"x": 1}) == {
        "id": "i", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [],
        "usage": {"x": 1},
    }  # fmt: skip
    assert completion_id() != completion_id()


def test_replay_is_the_answer_as_a_stream() -> None:
    """Role, then content with its log-probabilities, then the finish reason, one head for all."""
    whole = completion(id="i", created=1, model="m", text="hello", finish_reason="length", usage=Usage())
    whole["choices"][0]["logprobs"] = {"content": []}
    first, second, last = replay(whole)
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in (first, second, last)} == {
        ("i", 1, "m", "chat.completion.chunk")
    }
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert second["choices"][0]["delta"] == {"content": "hello"}
    assert second["choices"][0]["logprobs"] == {"content": []}
    assert last["choices"][0]["delta"] == {}
    assert [c["choices"][0]["finish_reason"] for c in (first, second, last)] == [None, None, "length"]


def test_replay_numbers_tool_calls_and_changes_nothing() -> None:
    """Tool calls get the index that streams carry; the answer itself is left alone."""
    whole = completion(id="i", created=1, model="m", text="", finish_reason="tool_calls", usage=Usage())
    whole["choices"][0]["message"] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a"}, {"id": "b"}],
    }
    before = copy.deepcopy(whole)
    delta = list(replay(whole))[1]["choices"][0]["delta"]
    assert delta == {"tool_calls": [{"index": 0, "id": "a"}, {"index": 1, "id": "b"}]}
    assert whole == before


def test_replay_keeps_every_choice() -> None:
    """With several choices each has its own chunks and index."""
    whole = completion(id="i", created=1, model="m", text="a", finish_reason="stop", usage=Usage())
    whole["choices"].append({**whole["choices"][0], "index": 1})
    assert [c["choices"][0]["index"] for c in replay(whole)] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("text", "tokens", "kept"),
    [
        ("hello", [("hel", -1), ("lo", -2)], [-1, -2]),
        ("hello", [("hel", -1), ("lo", -2), ("<|im_end|>", -3)], [-1, -2]),
        ("hello", [("hel", -1), ("lo", -2), ("", -3)], [-1, -2]),
        ("hello", [(" hello", -1), ("\n", -2), ("User:", -3)], [-1]),
        ("yes", [("<think>", -1), ("yes", -2), ("</think>", -3), ("yes", -4)], [-4]),
        ("Ġodd", [("Ä", -1), ("?", -2)], [-1, -2]),
        ("", [("</s>", -1)], []),
        (None, [("</s>", -1)], []),
        ("hello", [], []),
    ],
)
def test_token_logprobs_are_the_visible_tokens(text: str | None, tokens: list, kept: list) -> None:
    """End, stop and reasoning tokens are left out; tokens that do not spell the text all count."""
    assert token_logprobs(body(text, tokens)) == kept


def test_token_logprobs_spell_with_bytes() -> None:
    """Characters that several tokens share are put together from the tokens' bytes."""
    found = body("é!", [("\\xc3", -1), ("\\xa9", -2), ("!", -3), ("<end>", -4)])
    for token, data in zip(
        found["choices"][0]["logprobs"]["content"], (b"\xc3", b"\xa9", b"!", None), strict=True
    ):
        token["bytes"] = None if data is None else list(data)
    assert token_logprobs(found) == [-1, -2, -3]


def test_tool_calls_count_all_their_tokens() -> None:
    """A tool call has no visible text; every token of it is its own."""
    assert token_logprobs(body(None, [("{", -1), ("}", -2)], tool_calls=[{"id": "x"}])) == [-1, -2]


@pytest.mark.parametrize("logprobs", [None, {}, {"content": None}])
def test_no_logprobs(logprobs: dict | None) -> None:
    """A backend that sends none gives an empty list."""
    assert token_logprobs({"choices": [{"message": {"content": "x"}, "logprobs": logprobs}]}) == []
    assert token_logprobs({"choices": [{"message": {"content": "x"}}]}) == []


def test_assembled_undoes_replay() -> None:
    """A stream put together is the answer it was made of: texts, tool calls, log-probabilities, several choices."""
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call, {**call, "id": "c2"}]}
    logprobs = {"content": [{"token": "hi", "logprob": -0.1}], "refusal": None}
    body = completion(id="x", created=1, model="m", text="hi", finish_reason="stop", usage=Usage(3, 4))
    body["choices"][0]["logprobs"] = logprobs
    body["choices"].append({"index": 1, "message": message, "logprobs": None, "finish_reason": "tool_calls"})
    made = assembled(replay(body), Usage(3, 4))
    assert made is not None
    made["choices"][0]["message"]["refusal"] = None  # a stream does not say what is null
    assert made["choices"][0]["logprobs"].pop("refusal", None) is None
    logprobs.pop("refusal")
    assert made == body


def test_assembled_of_pieces() -> None:
    """Texts and arguments come in pieces, reasoning beside them; some backends repeat ids; what has no end is none."""
    head = {"id": "x", "created": 1, "model": "m"}
    pieces = [
        {"role": "assistant", "content": "", "reasoning_content": "h"},
        {"role": "assistant", "reasoning_content": "m"},
        {"content": "he"},
        {
            "content": "y",
            "tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}],
        },
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"arguments": "{"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}, {"index": 1, "id": "d"}]},
    ]
    stream = [chunk(**head, delta=piece) for piece in pieces]  # type: ignore[arg-type]
    assert assembled(stream, Usage()) is None
    made = assembled([*stream, chunk(**head, delta={}, finish_reason="stop")], Usage())  # type: ignore[arg-type]
    assert made is not None
    assert made["choices"][0]["message"] == {
        "role": "assistant",
        "content": "hey",
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "d"},
        ],
    }
    assert stream[3]["choices"][0]["delta"]["tool_calls"][0]["function"] == {"name": "f"}, (
        "pieces are untouched"
    )
