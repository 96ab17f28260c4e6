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
    told = b"".join(b"".join(tap.feed(STREAM[i : i + step])) for i in range(0, len(STREAM), step))
    tap.end()
    assert told == ROLE + b": keep-alive\n\n" + WORD
    assert tap.done
    assert tap.usage_event == {"choices": [], "usage": {"prompt_tokens": 3}}


def test_usage_beside_words_passes() -> None:
    """Usage in an event that also holds words is recorded and relayed."""
    both = event({"choices": [{"delta": {}}], "usage": {"prompt_tokens": 3}})
    tap = StreamTap("m")
    assert list(tap.feed(both)) == [both]
    assert tap.usage_event is not None


def test_error_raises() -> None:
    """An upstream's error event is an error, with its secrets blotted out."""
    with pytest.raises(UpstreamBroken, match=r"fell over at \[redacted\]"):
        list(StreamTap("m", ["http://x"]).feed(event({"error": {"message": "fell over at http://x"}})))


@pytest.mark.parametrize("payload", [b'{"a": ', b"hello", b"[1]", b'{"error": }'])
def test_malformed_raises(payload: bytes) -> None:
    """An event that is no JSON object is not relayed."""
    with pytest.raises(UpstreamBroken, match="malformed"):
        list(StreamTap("m").feed(b"data: " + payload + b"\n\n"))


def test_end_without_done_raises() -> None:
    """A stream that ends without `[DONE]` was cut."""
    tap = StreamTap("m")
    list(tap.feed(ROLE))
    with pytest.raises(UpstreamBroken, match="before the answer was complete"):
        tap.end()


def test_nothing_after_done() -> None:
    """What follows `[DONE]` is not relayed."""
    tap = StreamTap("m")
    assert list(tap.feed(DONE + ROLE)) == []
