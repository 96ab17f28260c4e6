"""Parsing and checking chat requests."""

from __future__ import annotations

import orjson
import pytest

from protocol.chat import MAX_DEPTH, ChatRequest, Options, human_ask, message_text, parse_object
from protocol.errors import BadRequest
from tests.fuzz.bad_bodies import BAD

USER = {"role": "user", "content": "hi"}


def parse(**fields):
    return ChatRequest.parse(orjson.dumps({"model": "m", "messages": [USER], **fields}))


def test_unknown_fields_survive() -> None:
    """What we do not know is carried on unchanged; the `chorus` object is taken out."""
    request = parse(vendor={"x": [1, None]}, chorus={"explain": True})
    assert request.body == {"model": "m", "messages": [USER], "vendor": {"x": [1, None]}}
    assert request.options == Options(explain=True)
    assert orjson.loads(request.wire()) == request.body


def test_weights_of_members() -> None:
    """They arrive by name as numbers; none above zero is a 400."""
    assert parse(chorus={"weights": {"a": 1, "b": 0}}).options.weights == {"a": 1.0, "b": 0.0}
    with pytest.raises(BadRequest, match="above 0") as caught:
        parse(chorus={"weights": {"a": 0}})
    assert caught.value.param == "chorus.weights"


@pytest.mark.parametrize(("fields", "param"), BAD["/chat/completions"])
def test_faults_name_their_field(fields: dict, param: str) -> None:
    """Each malformed field is a 400 that names it."""
    with pytest.raises(BadRequest) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "top_p": 1, "n": 1, "max_tokens": 1, "stop": "x", "seed": -5},
        {"temperature": None, "stop": None, "stream": None, "stream_options": None, "chorus": None},
        {
            "messages": [
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "tool", "content": "x"},
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]},
    ],
)
def test_good_requests_pass(fields: dict) -> None:
    """Boundary values, nulls, tool messages and content parts are accepted."""
    parse(**fields)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"{'a': 1}", b"\xff", b'{"a": NaN}'])
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    """Anything but a JSON object is a 400 with a code."""
    with pytest.raises(BadRequest) as caught:
        parse_object(raw)
    assert caught.value.code == "invalid_json"


def test_depth_is_bounded() -> None:
    """A body nested too deep is refused, and one just below it is not."""
    assert parse_object(b'{"a":' * (MAX_DEPTH - 1) + b"1" + b"}" * (MAX_DEPTH - 1))
    with pytest.raises(BadRequest) as caught:
        parse_object(b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1))
    assert caught.value.code == "too_deep"


def test_a_long_bad_value_is_not_echoed_whole() -> None:
    """Error messages stay short whatever was sent."""
    with pytest.raises(BadRequest) as caught:
        parse(temperature="x" * 10_000)
    assert len(caught.value.message) < 200


def test_changed_copies() -> None:
    """Changing a request leaves the original alone; None removes a field, and only a field that was named."""
    request = parse(stream=True, seed=1, vendor=None)
    changed = request.changed(stream=None, logprobs=True, absent=None)
    assert changed.body == {"model": "m", "messages": [USER], "seed": 1, "vendor": None, "logprobs": True}
    assert request.stream
    assert not changed.stream


def test_max_tokens_prefers_the_newer_name() -> None:
    """`max_completion_tokens` is what counts where both are given."""
    assert parse(max_tokens=5, max_completion_tokens=7).max_tokens == 7
    assert parse(max_tokens=5).max_tokens == 5
    assert parse().max_tokens is None


def test_message_text() -> None:
    """Text is the content string or the text parts; other parts and odd values add nothing."""
    assert message_text({"content": "x"}) == "x"
    parts = [
        {"type": "text", "text": "a"},
        {"type": "image_url"},
        {"type": "text", "text": 3},
        {"type": "text", "text": "b"},
    ]
    assert message_text({"content": parts}) == "a\nb"
    assert message_text({}) == ""


def test_human_ask_is_the_last_user_text() -> None:
    """A router looks at what the user said last, or, without a user, at the last text there is."""
    messages = [USER, {"role": "user", "content": "last"}, {"role": "assistant", "content": "no"}]
    assert human_ask(parse(messages=messages)) == "last"
    assert human_ask(parse(messages=[USER, {"role": "user", "content": [{"type": "image_url"}]}])) == "hi"
    assert human_ask(parse(messages=[{"role": "system", "content": "rules"}])) == "rules"
    assert human_ask(parse(messages=[{"role": "user", "content": " "}])) == ""


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ({"max_tokens": "10"}, "'max_tokens' must be an integer of at least 1; got \"10\"."),
        ({"temperature": "0.5"}, "'temperature' must be a number between 0 and 2; got \"0.5\"."),
        ({"top_p": 0}, "'top_p' must be a number above 0, at most 1; got 0."),
        ({"seed": True}, "'seed' must be an integer of 64 bits; got true."),
        ({"messages": [{"content": "x"}]}, "got null."),
    ],
)
def test_what_was_sent_is_told_as_it_was_written(field: dict[str, object], told: str) -> None:
    """A number in quotes is the commonest mistake, and must look like one."""
    with pytest.raises(BadRequest) as caught:
        parse(**field)
    assert told in caught.value.message
