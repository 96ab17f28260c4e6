"""One line in the log for each request: who asked for what, and what came of it. No words, no header, no address."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.observers import Finished
from protocol.log_pipe import LogPipe
from protocol.run import Call

__all__ = ["AccessLog", "line"]


class AccessLog:
    """Writes to `log`, whose thread makes the lines."""

    def __init__(self, log: LogPipe) -> None:
        self._log = log

    def finished(self, request: Finished) -> None:
        """A request has been answered. Never waits."""
        self._log.fact(lambda: line(request))


def line(request: Finished) -> Mapping[str, Any]:
    """The line's fields."""
    told: dict[str, Any] = {
        "ts": request.at,
        "level": "info" if request.status < 500 else "warning",
        "logger": "chorus.access",
        "event": "request",
        "method": request.method,
        "path": request.path,
        "status": request.status,
        "outcome": request.outcome,
        "duration_ms": _ms(request.took_s),
    }
    if request.began_s is not None:
        told["first_byte_ms"] = _ms(request.began_s)
    if request.key:
        told["key_id"] = request.key
    if request.strategy != "none":
        told |= {
            "requested_model": request.requested,
            "strategy": request.strategy,
            "stream": request.streamed,
        }
    if (trace := request.trace) is not None:
        answered = dict.fromkeys(call.model for call in trace.calls if call.outcome == "ok")
        told |= {
            "model": ",".join(answered),
            "calls": len(trace.calls),
            "attempts": sum(call.attempts for call in trace.calls),
            "input_tokens": sum(call.usage.prompt_tokens for call in trace.calls),
            "output_tokens": sum(call.usage.completion_tokens for call in trace.calls),
            "cost_usd": round(trace.cost_usd, 12),
        }
        if failed := [_failure(call) for call in trace.calls if call.outcome not in _NO_FAILURE]:
            told["failed"] = "; ".join(dict.fromkeys(failed))
    return told


_NO_FAILURE = ("ok", "cancelled", "hedged")


def _failure(call: Call) -> str:
    """Which model failed, how and why: also where another one answered in its place."""
    return f"{call.model} {call.outcome}" + (f" ({call.cause})" if call.cause else "")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
