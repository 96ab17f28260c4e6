"""Deliberate faults of our own: each breaks the gateway in one way, and names the cell that must turn red.

They prove that the matrix bites: a check that no sabotage can trip checks nothing.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from backends import openai_http, stream_tap, upstream_errors
from backends.attempts import Attempts
from backends.balancer import Turn
from backends.breaker import Breaker
from backends.http1 import Response
from backends.model import Model, ModelStream
from backends.openai_http import Deployment, UpstreamStream
from backends.retrying import Retrying
from gateway import run as gateway_run
from gateway.exchange import Exchange
from gateway.run import LiveRun
from protocol import sse
from protocol.errors import UpstreamError, UpstreamRefused
from protocol.run import Chunk
from protocol.usage import Usage

__all__ = ["SABOTAGES", "Sabotage"]


@dataclass(frozen=True, slots=True)
class Sabotage:
    """`about` says what is broken, `cell` which cell must show it, and how (`red`, a part of its message)."""

    about: str
    cell: str
    red: str
    target: object
    name: str
    broken: Callable[..., Any]

    @contextmanager
    def done(self) -> Iterator[None]:
        """The gateway is broken inside."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.target, self.name, self.broken)
            yield


_call, _wait_s, _reserve, _fail = Deployment.call, Retrying.wait_s, LiveRun._reserve, Exchange.fail
_translate, _headers, _begun = upstream_errors.translate, UpstreamError.headers, Deployment._check_begun


def _reserve_twice(self: LiveRun, *args: Any) -> float:
    usd = _reserve(self, *args)
    self._tree.reserved_usd += usd
    return usd


async def _replace_what_has_begun(self: LiveRun, name: str, request: Any) -> AsyncGenerator[Chunk, None]:
    for model in self._chain(name):
        try:
            async for chunk in self._stream(model, request.body, first=True):
                yield chunk
        except UpstreamError as error:
            failed = error
        else:
            return
    raise failed


async def _end_well(self: Exchange, error: Any, headers: Any = None) -> None:
    if self._streaming and not self._complete:
        await self.end_stream(sse.event(error.body()), sse.DONE)
    else:
        await _fail(self, error, headers)


def _always(self: Retrying, error: UpstreamError, now: float, *, attempts: int, **_: Any) -> float | None:
    return 0.0 if attempts <= 2 else None


def _whatever_it_asks(self: Retrying, error: UpstreamError, now: float, **given: Any) -> float | None:
    error.asked_s = None
    return _wait_s(self, error, now, **given)


async def _no_holding(self: ModelStream) -> None:
    self._held = []


async def _once(self: Attempts, ask: Any, calling: Any, **_: Any) -> Any:
    return await self._one(ask, await self._turn(calling, set()), calling)


def _fall_over_anyway(error: Any, failed: Any) -> Any:
    return failed or error


async def _no_check(self: Deployment, path: str, *args: Any) -> Any:
    answer = await _call(self, "/unchecked", *args)
    answer[0].setdefault("choices", [{"index": 0, "message": {"content": ""}}])
    return answer


def _with_its_address(error: Any, name: str) -> UpstreamError:
    told = _translate(error, name)
    told.message += " It is at 127.0.0.1."
    return told


def _without_wait(self: UpstreamError) -> dict[str, str]:
    return {key: value for key, value in _headers(self).items() if not key.startswith("retry-after")}


async def _any_type(self: Deployment, response: Any) -> None:
    if response.status != 200:
        await _begun(self, response)


@contextmanager
def _nobody_watches(self: Exchange) -> Iterator[None]:
    yield


def _trusting(*args: Any, **named: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


SABOTAGES: Mapping[str, Sabotage] = {
    "keep the place": Sabotage(
        "a deployment's place is never given back", "422/whole/single", "stays busy", Turn, "release", lambda self: None
    ),
    "keep the money": Sabotage(
        "a reservation is never released", "500/whole/single", "reserved", LiveRun, "_reserve", _reserve_twice
    ),
    "keep the socket": Sabotage(
        "a stream that is given up keeps its connection", "sse-error/stream/single", "socket", Response, "close",
        lambda self: None,
    ),
    "retry after the first words": Sabotage(
        "a stream that has begun is replaced by another", "sse-cut-after/stream/pair", "good model was asked 1",
        LiveRun, "_chunks", _replace_what_has_begun,
    ),
    "end as if whole": Sabotage(
        "[DONE] is sent after an error", "sse-cut-after/stream/single", "looks like an end", Exchange, "fail", _end_well
    ),
    "do it twice": Sabotage(
        "what may have been done is retried", "truncated/whole/single", "tried 3 times", Retrying, "wait_s", _always
    ),
    "never retry": Sabotage(
        "what was not done is not retried", "500-once/whole/single", "tried 1 times", Attempts, "make", _once
    ),
    "ignore Retry-After": Sabotage(
        "the backend's own wait is ignored", "429-later/whole/single", "x-should-retry", Retrying, "wait_s",
        _whatever_it_asks,
    ),
    "charge nothing for a cut": Sabotage(
        "only reported usage is charged", "reset/stream/single", "0 tokens charged", ModelStream, "shares",
        property(lambda self: ()),
    ),
    "believe any usage": Sabotage(
        "negative usage is believed", "usage-wrong/whole/single", "non-negative|charged", Usage, "parse",
        classmethod(lambda cls, usage: cls(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))),
    ),
    "stop the clocks": Sabotage(
        "a stream's clocks do not ring", "sse-stalled/stream/single", "for ever", UpstreamStream, "_ring",
        lambda self: None,
    ),
    "hold nothing back": Sabotage(
        "a stream is passed on before its first words", "sse-cut-before/stream/pair", "good model was asked 0",
        ModelStream, "hold", _no_holding,
    ),
    "ask others to mend the request": Sabotage(
        "a refused request is asked of the fallback", "422/whole/pair", "good model was asked 1",
        gateway_run, "_next_or_raise", _fall_over_anyway,
    ),
    "invite more retries": Sabotage(
        "exhausted retries are not told", "503/whole/single", "x-should-retry", UpstreamError, "exhausted",
        property(lambda self: False, lambda self, value: None),
    ),
    "show what we asked": Sabotage(
        "usage reaches who did not ask", "sse-split/stream/single", "nobody asked", stream_tap, "_without_null_usage",
        lambda event: event,
    ),
    "take anything for an answer": Sabotage(
        "a 200 without choices is an answer", "no-choices/whole/single", "status 200", Deployment, "call", _no_check
    ),
    "trust anybody": Sabotage(
        "any certificate will do", "untrusted/whole/single", "status|tried", ssl, "create_default_context", _trusting
    ),
    "stream any type": Sabotage(
        "a stream may be of any type", "wrong-type/stream/single", "status 200", Deployment, "_check_begun", _any_type
    ),
    "blame the backend": Sabotage(
        "a refusal with status 200 is the backend's fault", "refusal-200/whole/single", "status 502", upstream_errors,
        "_told_status", lambda error: None,
    ),
    "count callers' mistakes": Sabotage(
        "a caller's mistake speaks against the backend", "bound/mistakes", "closed the deployment", UpstreamRefused,
        "blames_backend", property(lambda self: True, lambda self, value: None),
    ),
    "keep the wait to ourselves": Sabotage(
        "Retry-After is not passed on", "503-later/whole/single", "retry-after", UpstreamError, "headers", _without_wait
    ),
    "say too much": Sabotage(
        "an error tells the backend's address", "refused/whole/single", "an address", openai_http, "translate",
        _with_its_address,
    ),
    "retry without a budget": Sabotage(
        "retries have no budget", "bound/outage", "retries of", Retrying, "draw", lambda self, now: True
    ),
    "probe at once": Sabotage(
        "an open breaker lets all through", "bound/left-alone", "statuses", Breaker, "opens_at", lambda self, now: now
    ),
    "hedge at any price": Sabotage(
        "hedging has no cost cap", "bound/too-dear", "asked 2 times", Model, "_may_hedge", lambda self, body: True
    ),
    "forget the hedge": Sabotage(
        "an overtaken call costs nothing", "bound/hedged", "tokens charged", Model, "hedge_shares",
        lambda self, body: (),
    ),
    "spend without asking": Sabotage(
        "nothing is reserved before a call", "bound/money", "charged|asked|assert", LiveRun, "_reserve",
        lambda self, *args: 0.0,
    ),
    "never look": Sabotage(
        "a client's leaving is not noticed", "leave/whole/a vote", "goes on after its client", Exchange,
        "leaving_cancels", _nobody_watches,
    ),
}  # fmt: skip
