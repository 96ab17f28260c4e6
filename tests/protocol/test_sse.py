"""Server-sent events as bytes."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import sse
from protocol.errors import UpstreamBroken
from protocol.sse import EventSplitter, event, event_data

EVENTS = [
    b'data: {"a": "1\\n"}',
    b": keep-alive",
    b"event: x\ndata: a\ndata:b",
    "data: Zürich ✓".encode(),
    b"data: [DONE]",
]


def feed(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = EventSplitter()
    events = [found for piece in pieces for found in splitter.feed(piece)]
    return events, splitter.rest


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_every_chunking_gives_the_same_events(line_end: bytes) -> None:
    """However the network cuts the bytes in two or three, the same whole events come out, bytes untouched."""
    whole = [one.replace(b"\n", line_end) + line_end * 2 for one in EVENTS]
    stream = b"".join(whole)
    assert feed([stream]) == (whole, b"")
    assert feed([stream[i : i + 1] for i in range(len(stream))]) == (whole, b"")
    for i, j in itertools.combinations(range(len(stream)), 2):
        assert feed([stream[:i], stream[i:j], stream[j:]]) == (whole, b"")


@settings(deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=20).filter(lambda b: not {10, 13} & set(b))),
    st.lists(st.integers(0, 200)),
)
def test_any_payload_in_any_pieces(payloads: list[bytes], cuts: list[int]) -> None:
    """Payloads of any bytes come out as they went in, wherever the stream is cut; nothing is lost."""
    whole = [b"data: " + payload + b"\n\n" for payload in payloads]
    stream = b"".join(whole) + b"data: unfinished"
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert feed([stream[a:b] for a, b in itertools.pairwise(edges)]) == (whole, b"data: unfinished")


def test_mixed_line_ends() -> None:
    """Events of one stream may end differently."""
    assert feed([b"data: a\r\n\r\ndata: b\n\ndata: c\r\r"])[0] == [
        b"data: a\r\n\r\n",
        b"data: b\n\n",
        b"data: c\r\r",
    ]


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that never ends its event is broken, not a reason to run out of memory."""
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 100)
    splitter = EventSplitter()
    assert list(splitter.feed(b"data: ok\n\n" * 50)) == [b"data: ok\n\n"] * 50
    with pytest.raises(UpstreamBroken, match="100"):
        list(splitter.feed(b"x" * 101))


def test_event_data() -> None:
    """The payload is the data lines joined by LF, one leading space removed; comments have none."""
    assert event_data(b"event: x\r\ndata:  a\r\ndata:b\r\n\r\n") == b" a\nb"
    assert event_data(b": hi\n\n") == b""
    assert event_data(event({"x": "ü"})) == orjson.dumps({"x": "ü"})
    assert event_data(sse.DONE) == b"[DONE]"
    assert event_data(sse.KEEP_ALIVE) == b""
