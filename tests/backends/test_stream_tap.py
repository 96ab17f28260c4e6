"""The stream tap: bytes in, bytes out."""

from __future__ import annotations

import pytest

from backends.stream_tap import StreamTap
from protocol.errors import UpstreamBroken
from protocol.sse import DONE, event

ROLE = event({"choices": [{"delta": {"role": "assistant"}}], "usage": None})
WORD = b'data:{"choices":[{"delta":{"content":"\xc3\xa9 \\"usage\\" \\"error\\""}}]}\r\n\r\n'
USAGE = event({"choices": [], "usage": {"prompt_tokens": 3}})
STREAM = ROLE + b": keep-alive\n\n" + WORD + USAGE + DONE


@pytest.mark.parametrize("step", [1, 2, 7, len(STREAM)])
def test_relays_untouched(step: int) -> None:
    """However the network cuts the stream, all but usage and `[DONE]` passes byte for byte."""
    tap = StreamTap("m")
    told = b"".join(tap.feed(STREAM[i : i + step]) for i in range(0, len(STREAM), step))
    tap.end()
    assert told == ROLE + b": keep-alive\n\n" + WORD
    assert tap.done
    assert tap.usage_event == {"choices": [], "usage": {"prompt_tokens": 3}}


def test_usage_beside_words_passes() -> None:
    """Usage in an event that also holds words is recorded and relayed."""
    both = event({"choices": [{"delta": {}}], "usage": {"prompt_tokens": 3}})
    tap = StreamTap("m")
    assert tap.feed(both) == both
    assert tap.usage_event is not None


def test_error_raises() -> None:
    """An upstream's error event is an error, with its secrets blotted out."""
    with pytest.raises(UpstreamBroken, match=r"fell over at \[redacted\]"):
        StreamTap("m", ["http://x"]).feed(event({"error": {"message": "fell over at http://x"}}))


@pytest.mark.parametrize("payload", [b'{"a": ', b"hello", b"[1]", b'{"error": }'])
def test_malformed_raises(payload: bytes) -> None:
    """An event that is no JSON object is not relayed."""
    with pytest.raises(UpstreamBroken, match="malformed"):
        StreamTap("m").feed(b"data: " + payload + b"\n\n")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b'data: {"choices":[{"text":"a"}],"usage":null}\n\n', b'data: {"choices":[{"text":"a"}]}\n\n'),
        (
            b'data: {"choices":[{"text":"a"}],"usage":null}\r\n\r\n',
            b'data: {"choices":[{"text":"a"}]}\r\n\r\n',
        ),
        (b'data: {"usage": null, "choices": [{"text": "a"}]}\n\n', b'data: {"choices": [{"text": "a"}]}\n\n'),
        (b'data: {"a": 1, "usage": null, "x": 2}\n\n', b'data: {"a": 1, "x": 2}\n\n'),
        (b'data: {"a": 1, "usage": null}\n\n', b'data: {"a": 1}\n\n'),
        (
            b'data: {"a":"\\"usage\\":null,\\\\","b":{"usage":null},"usage":null,"c":["]"]}\n\n',
            b'data: {"a":"\\"usage\\":null,\\\\","b":{"usage":null},"c":["]"]}\n\n',
        ),
        (b'data: {"b":{"usage":null}}\n\n', b'data: {"b":{"usage":null}}\n\n'),
    ],
)
def test_injected_null_usage_is_cut_out(sent: bytes, told: bytes) -> None:
    """For a caller who did not ask for usage, the top-level `"usage": null` goes, and not a byte more."""
    assert StreamTap("m", usage_asked=False).feed(sent) == told
    assert StreamTap("m").feed(sent) == sent


@pytest.mark.parametrize(
    ("delta", "begun"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"content": "a"}, True),
        ({"reasoning_content": "hm"}, True),
        ({"tool_calls": [{"index": 0}]}, True),
    ],
)
def test_begins_with_words(delta: dict[str, object], begun: bool) -> None:
    """An answer begins with words, thoughts or a tool call, not with who speaks."""
    tap = StreamTap("m")
    tap.feed(event({"choices": [{"delta": delta, "finish_reason": None}]}))
    assert tap.begun is begun


def test_an_empty_answer_is_an_answer() -> None:
    """A reason to finish begins and ends an answer; `[DONE]` alone does not."""
    tap = StreamTap("m")
    tap.feed(ROLE + event({"choices": [{"delta": {}, "finish_reason": "stop"}]}) + DONE)
    tap.end()
    tap = StreamTap("m")
    tap.feed(ROLE + DONE)
    with pytest.raises(UpstreamBroken, match="without an answer"):
        tap.end()


def test_counts_what_was_seen() -> None:
    """Chunks with words are counted, and the bytes by which larger ones exceed the smallest."""
    tap = StreamTap("m")
    list(
        tap.feed(ROLE + b"".join(event({"choices": [{"text": text}]}) for text in ("a", "b", "c" * 41, "d")))
    )
    assert (tap.words, tap.seen_bytes) == (4, 40)


def test_end_without_done_raises() -> None:
    """A stream that ends without `[DONE]` was cut."""
    tap = StreamTap("m")
    tap.feed(ROLE)
    with pytest.raises(UpstreamBroken, match="before the answer was complete"):
        tap.end()


def test_nothing_after_done() -> None:
    """What follows `[DONE]` is not relayed."""
    tap = StreamTap("m")
    assert tap.feed(DONE + ROLE) == b""


WORDS = [
    event({"choices": [{"delta": {"content": word}}], "usage": None}) for word in ("a", "bc", "d" * 40, "e")
]
WHOLE = b"".join([ROLE, *WORDS, b": quiet\n\n", *WORDS, USAGE, DONE])


@pytest.mark.parametrize("step", [1, 3, 64, 200, 500, len(WHOLE)])
@pytest.mark.parametrize("usage_asked", [False, True])
def test_many_at_once_equals_one_by_one(step: int, usage_asked: bool) -> None:
    """Events that come together pass as they would alone, and are counted and measured alike."""
    taps = [StreamTap("m", usage_asked=usage_asked) for _ in range(2)]
    told = [taps[0].feed(each) for each in (ROLE, *WORDS, b": quiet\n\n", *WORDS, USAGE, DONE)]
    pieces = [taps[1].feed(WHOLE[i : i + step]) for i in range(0, len(WHOLE), step)]
    assert b"".join(pieces) == b"".join(told)
    seen = [(tap.words, tap.passed, tap.seen_bytes, tap.begun, tap.done, tap.usage_event) for tap in taps]
    assert seen[0] == seen[1]
    assert taps[0].words == 8


def test_a_fault_behind_words_is_left() -> None:
    """What came before a fault goes on first."""
    tap = StreamTap("m")
    assert tap.feed(ROLE + WORDS[0] + event({"error": {"message": "oh"}}) + WORDS[1]) == ROLE + WORDS[0]
    assert isinstance(tap.fault, UpstreamBroken)
