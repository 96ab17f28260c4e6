"""What a client sees of a growing byte string."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engines.visible_text import VisibleText


def _feed(text: VisibleText, *pieces: bytes) -> list[str]:
    return [text.push(piece) for piece in pieces]


def test_half_a_character_waits() -> None:
    """Bytes of one character in two pieces come out together, in the second."""
    assert _feed(VisibleText(), b"a\xf0\x9f", b"\x99\x82b") == ["a", "🙂b"]


def test_bytes_that_are_no_utf8_are_left_out() -> None:
    """No U+FFFD is made up, nor at the end for a character that never became whole."""
    text = VisibleText()
    assert _feed(text, b"a\xffb", b"\xe2\x82") == ["ab", ""]
    assert text.finish() == ""


def test_what_may_become_a_stop_string_waits() -> None:
    """The beginning of a stop string is held until it is one, or is not."""
    text = VisibleText([b"END"])
    assert _feed(text, b"xE", b"Nx", b"EN", b"D!") == ["x", "ENx", "", ""]
    assert text.stopped
    assert text.finish() == ""


def test_the_end_releases_what_waited() -> None:
    """Without a stop string everything is shown."""
    text = VisibleText([b"END"])
    assert text.push(b"xEN") == "x"
    assert text.finish() == "EN"


def test_the_earliest_stop_string_wins() -> None:
    """Of two stop strings in one piece the one that begins first cuts."""
    assert VisibleText([b"\nUser:", b"\n\nUser:"]).push(b"hi\n\nUser: me") == "hi"


def test_a_stop_string_may_begin_in_the_prompt() -> None:
    """A prompt that ends in a newline lets a stop string with one match at the very beginning of the
    answer."""
    text = VisibleText([b"\nUser:"], before=b"\n")
    assert _feed(text, b"Us", b"er: and so on") == ["", ""]
    assert text.stopped
    assert text.released == 0


@given(
    st.text(alphabet="ab\n🙂é", max_size=40),
    st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3),
    st.randoms(),
)
def test_any_cutting_shows_the_same(whole: str, stops: list[str], chance: object) -> None:
    """However the bytes are cut, the text shown is the whole up to the earliest stop string."""
    data = whole.encode()
    pieces, start = [], 0
    while start < len(data):
        size = chance.randint(1, 3)  # type: ignore[attr-defined]
        pieces.append(data[start : start + size])
        start += size
    text = VisibleText([stop.encode() for stop in stops])
    shown = "".join(_feed(text, *pieces)) + text.finish()
    found = [at for stop in stops if (at := whole.find(stop)) >= 0]
    # Fed in pieces, the first stop string to be *complete* ends the answer; it may begin behind a longer
    # one's start.
    assert whole.startswith(shown)
    assert len(shown) >= min(found, default=len(whole))
    assert not any(stop in shown for stop in stops)
