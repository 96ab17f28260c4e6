"""The log: bounded, never waiting, each line with its request, without secrets."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from protocol import log_pipe
from protocol.log_pipe import LogPipe, in_request
from protocol.observing import LoggingSettings
from protocol.redaction import Redaction
from protocol.tracing import TraceContext

Start = Callable[..., tuple[LogPipe, logging.Logger, list[bytes]]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a pipe into a list, and a logger on it."""
    pipes: list[LogPipe] = []
    log = logging.getLogger("chorus.test")
    log.propagate = False

    def make(form: str = "json", **fields: Any) -> tuple[LogPipe, logging.Logger, list[bytes]]:
        written: list[bytes] = []
        write = fields.pop("write", written.append)
        settings = LoggingSettings(format=form)  # type: ignore[arg-type]
        pipe = LogPipe(settings, "worker-0", Redaction(["known-by-heart"]), write, **fields)
        pipes.append(pipe)
        log.handlers = [pipe]
        return pipe, log, written

    yield make
    log.handlers, log.propagate = [], True
    for pipe in pipes:
        pipe.close()


def lines(written: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(written).splitlines()]


def test_json(start: Start) -> None:
    """A line says when, who, what and how bad, and names the request and the span it belongs to."""
    pipe, log, written = start()
    in_request("req_1", TraceContext("ab" * 16, "cd" * 8, True))
    log.warning("it is %s", "late")
    in_request("", None)
    pipe.start().close()
    (line,) = lines(written)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "process": "worker-0",
        "level": "warning",
        "logger": "chorus.test",
        "event": "it is late",
        "request_id": "req_1",
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
    }
    assert b"".join(written).startswith(log_pipe.JSON_BEGINS)


def test_exception(start: Start) -> None:
    """An exception is one line, with its traceback, without its secrets."""
    pipe, log, written = start()
    try:
        raise ValueError("known-by-heart")
    except ValueError:
        log.exception("it broke")
    pipe.start().close()
    (line,) = lines(written)
    assert line["error"] == "ValueError"
    assert "test_log_pipe.py" in line["trace"]
    assert b"known-by-heart" not in b"".join(written)


def test_text(start: Start) -> None:
    """As text a line begins with time and level; further lines are indented, so that none can be forged."""
    pipe, log, written = start("text")
    in_request("req_1", None)
    log.error("one\nERROR two")
    in_request("", None)
    pipe.start().close()
    first, second = b"".join(written).decode().splitlines()
    assert first.partition(" ")[2] == "ERROR chorus.test: one"
    assert second == "  ERROR two request_id=req_1"


def test_never_waits(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody reads, lines are kept as far as there is room, then dropped, counted, and told of later."""
    monkeypatch.setattr(log_pipe, "MAX_LINES", 3)
    reading, written, dropped = threading.Event(), [], []

    def write(data: bytes) -> None:
        reading.wait()
        written.append(data)

    pipe, log, _ = start(write=write, dropped=dropped.append)
    for i in range(10):
        log.warning("%d", i)
    assert sum(dropped) == 7
    pipe.start()
    reading.set()
    pipe.close()
    told = lines(written)
    assert [line["event"] for line in told[:3]] == ["0", "1", "2"]
    assert any(line.get("dropped") == 7 for line in told)


def test_nobody_reads(start: Start) -> None:
    """A broken pipe loses lines, which are counted, and nothing else."""
    dropped: list[int] = []

    def write(data: bytes) -> None:
        raise BrokenPipeError

    pipe, log, _ = start(write=write, dropped=dropped.append)
    log.warning("lost")
    pipe.start().close()
    assert sum(dropped) == 1


def test_relay(start: Start) -> None:
    """A child's JSON goes on as it is; whatever else it prints becomes a line, without secrets."""
    pipe, _, written = start()
    ours = log_pipe.JSON_BEGINS + b'x","event":"ours"}'
    pipe.relay("engines", ours)
    pipe.relay("engines", b"Traceback: sk-0123456789 \xff")
    pipe.start().close()
    first, second = b"".join(written).splitlines()
    assert first == ours
    told = json.loads(second)
    assert (told["process"], told["logger"]) == ("engines", "output")
    assert "0123456789" not in told["event"]


def test_relay_text(start: Start) -> None:
    """As text each line of a child has its name in front."""
    pipe, _, written = start("text")
    pipe.relay("engines", b"hello\r")
    pipe.start().close()
    assert written == [b"engines | hello\n"]


def test_late_facts(start: Start) -> None:
    """Fields made later are told with the request they were promised in; where they cannot be made, the line says so,
    and the next ones come."""
    pipe, _, written = start()

    def broken() -> dict[str, Any]:
        raise KeyError("nothing")

    in_request("sk-0123456789", None)
    pipe.fact(lambda: {"event": "request", "status": 200, "ts": 0.5})
    in_request("", None)
    pipe.fact(broken)
    pipe.fact(lambda: {"event": "after"})
    pipe.start().close()
    first, second, third = lines(written)
    assert (first["event"], first["status"], first["request_id"]) == ("request", 200, "[redacted]")
    assert first["ts"] == "1970-01-01T00:00:00.500Z"
    assert "KeyError" in second["event"]
    assert third["event"] == "after"
