"""Where every process of ours writes its log: a bounded queue, and a thread that empties it into standard error.

    logging ──┐
    access ───┼──> LogPipe (bounded) ── thread ──> stderr     (a child's is read by the supervisor, and joins its pipe)
    warnings ─┘

Nobody who logs waits for who reads: what does not fit is dropped, counted, and told once there is room. Lines are JSON
objects or text, as the settings say; each names the request it belongs to, and goes through a `Redaction`.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

from protocol.observing import LoggingSettings
from protocol.redaction import Redaction, secrets_of
from protocol.settings import Settings
from protocol.tracing import TraceContext

__all__ = ["JSON_BEGINS", "LogPipe", "in_request", "start_logging"]

JSON_BEGINS = b'{"ts":"'
"""How each of our JSON lines begins."""

MAX_LINES = 10_000
WRITE_S = 0.1
"""How often lines are written: many at once cost a small part of what each by itself would."""
MAX_TEXT = 16_384
"""Characters of one message; a longer one is cut."""
BATCH = 500
CLOSE_S = 2.0
NOBODY = ("", "", "")

_request: ContextVar[tuple[str, str, str]] = ContextVar("request", default=NOBODY)

Facts = Callable[[], Mapping[str, Any]]


def in_request(request_id: str, context: TraceContext | None) -> None:
    """What this task logs from here on belongs to that request."""
    _request.set((request_id, context.trace_id, context.span_id) if context else (request_id, "", ""))


class LogPipe(logging.Handler):
    """`process` names the process in every line. `write` is given bytes, whole lines, and may block; what it raises as
    `OSError` loses them. `dropped` is told of lines that were lost, each time some are."""

    def __init__(
        self,
        settings: LoggingSettings,
        process: str,
        redaction: Redaction,
        write: Callable[[bytes], None] | None = None,
        dropped: Callable[[int], None] = lambda count: None,
    ) -> None:
        super().__init__()
        self.json = settings.format == "json"
        self.dropped = dropped
        self._process, self._redaction, self._write = process, redaction, write or _to_stderr
        self._waiting: deque[bytes | tuple[Facts, tuple[str, str, str]]] = deque()
        self._lost = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)

    def start(self) -> LogPipe:
        """Begin to write."""
        self._thread.start()
        return self

    def learn(self, settings: Settings) -> None:
        """Blot out the secrets of these settings too."""
        self._redaction.learn(secrets_of(settings))

    def close(self) -> None:
        """Write what waits, for a while, and end."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._stop.set()
            self._thread.join(CLOSE_S)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """A line of `logging`."""
        try:
            self.put(self._line(_of_record(record), _request.get()))
        except (TypeError, ValueError):  # what was logged cannot be formatted
            self.handleError(record)

    def fact(self, facts: Facts) -> None:
        """A line of which the fields are made later, in the thread; `ts`, where there is one, in seconds.

        They are names of ours and numbers; only the request's id, which is the caller's, goes through the redaction.
        """
        self.put((facts, _request.get()))

    def put(self, line: bytes | tuple[Facts, tuple[str, str, str]]) -> None:
        """A line that is ready. Never waits."""
        if len(self._waiting) >= MAX_LINES:
            self._lost += 1
            self.dropped(1)
        else:
            self._waiting.append(line)

    def relay(self, process: str, line: bytes) -> None:
        """A line that a child printed: one of ours goes on as it is."""
        if self.json and line.startswith(JSON_BEGINS):
            self.put(line + b"\n")
            return
        text = self._redaction.text(line.decode(errors="replace").rstrip("\r")[:MAX_TEXT])
        if self.json:
            self.put(
                self._line({"level": "info", "logger": "output", "process": process, "event": text}, NOBODY)
            )
        else:
            self.put(f"{process} | {text}\n".encode())

    def _run(self) -> None:
        stopping = False
        while not stopping:
            stopping = self._stop.wait(WRITE_S)
            while self._waiting or self._lost:
                self._write_some()

    def _write_some(self) -> None:
        lines = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        ready = [line if isinstance(line, bytes) else self._late(*line) for line in lines]
        lost, self._lost = self._lost, 0
        if lost:
            facts = {
                "level": "warning",
                "logger": "chorus.log",
                "event": "log lines were dropped",
                "dropped": lost,
            }
            ready.append(self._line(facts, NOBODY))
        try:
            self._write(b"".join(ready))
        except OSError:  # nobody reads any more, or the disk is full
            self.dropped(len(ready))

    def _late(self, facts: Facts, request: tuple[str, str, str]) -> bytes:
        try:
            return self._line(facts(), request, ours=True)
        except Exception as error:  # noqa: BLE001 - there is no other log to tell, and the next lines are to come
            told = {"level": "error", "logger": "chorus.log", "event": f"a line cannot be written: {error!r}"}
            return self._line(told, request)

    def _line(self, facts: Mapping[str, Any], request: tuple[str, str, str], *, ours: bool = False) -> bytes:
        request_id, trace_id, span_id = request
        clean = _as_it_is if ours else self._redaction.text
        request_id = self._redaction.text(request_id)
        told: dict[str, Any] = {"ts": "", "process": self._process, **facts}
        told["ts"] = _stamp(facts.get("ts"))
        if not self.json:
            return clean(_as_text(told, request_id)).encode() + b"\n"
        ids = {"request_id": request_id, "trace_id": trace_id, "span_id": span_id}
        told |= {name: value for name, value in ids.items() if value}
        if not ours:
            told = {name: clean(value) if isinstance(value, str) else value for name, value in told.items()}
        return orjson.dumps(told, default=str) + b"\n"


def _stamp(at: float | None) -> str:
    """`at`, in seconds since the epoch, or now."""
    then = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return then.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def _as_it_is(text: str) -> str:
    return text


def _of_record(record: logging.LogRecord) -> dict[str, Any]:
    facts = {
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage()[:MAX_TEXT],
    }
    if record.exc_info and record.exc_info[0] is not None:
        facts["error"] = record.exc_info[0].__name__
        facts["trace"] = "".join(traceback.format_exception(*record.exc_info))[:MAX_TEXT]
    return facts


def _as_text(facts: Mapping[str, Any], request_id: str) -> str:
    rest = dict(facts)
    head = f"{rest.pop('ts')} {str(rest.pop('level', '')).upper()} {rest.pop('logger', '')}: {rest.pop('event', '')}"
    rest.pop("process", None)
    trace = rest.pop("trace", "")
    if request_id:
        rest["request_id"] = request_id
    told = " ".join((head.replace("\n", "\n  "), *(f"{name}={value}" for name, value in rest.items())))
    return f"{told}\n  {trace.rstrip()}".replace("\n", "\n  ") if trace else told


def _to_stderr(lines: bytes) -> None:
    rest = memoryview(lines)
    while rest:
        rest = rest[os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, rest) :]


def start_logging(settings: Settings, process: str) -> LogPipe:
    """Have everything that this process logs go through one pipe. To be called once, by a process's `main`."""
    pipe = LogPipe(settings.logging, process, Redaction(secrets_of(settings))).start()
    root = logging.getLogger()
    for handler in tuple(root.handlers):
        root.removeHandler(handler)
    root.addHandler(pipe)
    root.setLevel(logging.WARNING)
    logging.getLogger("chorus").setLevel(settings.logging.level.upper())
    logging.captureWarnings(True)
    return pipe
