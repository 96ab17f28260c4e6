"""W3C's Trace Context: what is believed of a caller, and what an upstream is told."""

from __future__ import annotations

import pytest

from protocol.tracing import TraceContext

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def parse(*headers: tuple[str, str]) -> TraceContext | None:
    return TraceContext.parse([(name.encode(), value.encode("latin-1")) for name, value in headers])


def test_continued() -> None:
    """An upstream is told the caller's trace, our span, and the vendors' list as it came."""
    context = parse(("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=1,b@c=2"))
    assert context == TraceContext(TRACE, SPAN, True, "a=1,b@c=2")
    assert context.headers("00000000000000ff") == {
        "traceparent": f"00-{TRACE}-00000000000000ff-01",
        "tracestate": "a=1,b@c=2",
    }


def test_not_sampled() -> None:
    """The caller's decision not to sample is kept, and handed on."""
    context = parse(("traceparent", f"00-{TRACE}-{SPAN}-00"))
    assert context is not None
    assert context.headers(SPAN)["traceparent"].endswith("-00")


def test_later_version() -> None:
    """A later version may say more than we know."""
    assert parse(("traceparent", f"01-{TRACE}-{SPAN}-01-more")) is not None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "garbage",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\r\nx-evil: 1",
    ],
)
def test_malformed(value: str) -> None:
    """A malformed `traceparent` is no trace to continue."""
    assert parse(("traceparent", value)) is None


def test_twice() -> None:
    """Neither is one of two."""
    assert parse(*[("traceparent", f"00-{TRACE}-{SPAN}-01")] * 2) is None


LONG, MANY = "a=" + "x" * 600, ",".join(f"k{i}=1" for i in range(33))


@pytest.mark.parametrize("state", ["a", "A=1", "a=\x7f", "a=1\r\nx: y", "a=é", LONG, MANY])
def test_malformed_state(state: str) -> None:
    """A malformed `tracestate` is dropped; the trace goes on."""
    context = parse(("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", state))
    assert context is not None
    assert context.state == ""


def test_state_in_parts() -> None:
    """A `tracestate` that came in several headers is one list."""
    context = parse(("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=1"), ("tracestate", " b=2 ,"))
    assert context is not None
    assert context.state == "a=1,b=2"
