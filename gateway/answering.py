"""The hot routes: how a request becomes an answer. Read it downwards."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import orjson

from gateway import explanation
from gateway.catalogue import Catalogue, Target
from gateway.exchange import ClientLeft, Exchange, Receive, Scope, Send
from gateway.ledger.entry import Entry
from gateway.run import Limits, LiveRun, open_run
from gateway.surfaces import parse_completion, parse_embedding
from gateway.telemetry import Telemetry
from gateway.tenancy import Tenancy, Visit
from protocol import sse
from protocol.chat import ChatRequest
from protocol.errors import ChorusError, InternalError, MethodError
from protocol.run import Answer, Chunk, Event, Reply, Trace
from protocol.settings import ServerSettings
from protocol.wire import replay

__all__ = ["SURFACES", "Answering", "Surface"]

log = logging.getLogger("chorus.gateway")


@dataclass(frozen=True, slots=True)
class Surface:
    """A route that models answer: its path below `/v1`, here and upstream, and how its body is checked."""

    path: str
    parse: Callable[[bytes], ChatRequest]


SURFACES: Mapping[tuple[str, str], Surface] = {
    ("POST", "/v1/chat/completions"): Surface("/chat/completions", ChatRequest.parse),
    ("POST", "/v1/completions"): Surface("/completions", parse_completion),
    ("POST", "/v1/embeddings"): Surface("/embeddings", parse_embedding),
}


class Answering:
    """Answers the requests of every surface: admit, parse, resolve, answer, relay, settle."""

    def __init__(
        self, catalogue: Catalogue, tenancy: Tenancy, telemetry: Telemetry, server: ServerSettings
    ) -> None:
        self._catalogue, self._tenancy = catalogue, tenancy
        self._telemetry, self._server = telemetry, server

    async def __call__(self, surface: Surface, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        record = _Record()
        self._telemetry.started()
        try:
            record.visit = visit = Visit(await self._tenancy.admit(exchange.headers))
            record.request = request = surface.parse(await exchange.body(self._server.max_body_bytes))
            limits = await self._tenancy.enter(
                visit, request.model, request.body, self._catalogue.names, self._limits(request)
            )
            exchange.told = visit.headers()
            record.target = target = self._catalogue.resolve(request.model, surface.path)
            async with open_run(
                self._catalogue, limits, path=surface.path, session=_session(exchange, request)
            ) as run:
                record.trace = run.trace
                async with exchange.leaving_cancels():
                    await _answer(request, target, run, exchange)
            record.outcome = "ok"
        except ClientLeft:
            log.info("%s: the client left", exchange.request_id)
        except ChorusError as error:
            record.outcome = error.code or error.type
            await exchange.fail(error)
        except Exception:
            record.outcome = "internal_error"
            log.exception("%s: a bug of ours", exchange.request_id)
            await exchange.fail(
                InternalError(f"An internal error occurred; it is logged as {exchange.request_id}.")
            )
        finally:
            self._settle(record, exchange, surface.path)

    def _limits(self, request: ChatRequest) -> Limits:
        """The caller's bounds, within the server's."""
        server, options = self._server, request.options
        deadline_s = server.deadline_s if options.deadline_ms is None else options.deadline_ms / 1000
        return Limits(
            min(deadline_s, server.deadline_s), options.max_cost_usd, server.max_calls, server.max_depth
        )

    def _settle(self, record: _Record, exchange: Exchange, path: str) -> None:
        if record.visit is not None:
            self._tenancy.leave(record.visit, record.trace)
            self._tenancy.record(self._entry(record, record.visit, exchange, path))
        self._telemetry.finished(
            record.request.model if record.request else "unknown",
            record.target.label if record.target else "none",
            record.outcome,
            record.trace,
            began_s=exchange.began_s,
            took_s=exchange.elapsed_s,
        )

    def _entry(self, record: _Record, visit: Visit, exchange: Exchange, path: str) -> Entry:
        """The request as the ledger keeps it."""
        body = record.request.body if record.request else {}
        return Entry(
            uuid4().hex,
            exchange.request_id,
            time.time() - exchange.elapsed_s,
            visit.key,
            body.get("user"),
            body.get("metadata"),
            path,
            record.request.model if record.target and record.request else "unknown",
            record.target.label if record.target else "none",
            record.outcome,
            exchange.elapsed_s,
            record.trace,
        )


_SESSION_HEADERS = (
    b"x-session-id",
    b"x-conversation-id",
    b"x-claude-code-session-id",
    b"x-litellm-session-id",
)


def _session(exchange: Exchange, request: ChatRequest) -> str | None:
    """What names the conversation: a header that clients are known to send, or OpenAI's `prompt_cache_key`."""
    for name in _SESSION_HEADERS:
        if given := exchange.headers.get(name):
            return given.decode("latin-1")
    key = request.body.get("prompt_cache_key")
    return key if isinstance(key, str) else None


@dataclass(slots=True)
class _Record:
    """What became of a request, as far as it came."""

    visit: Visit | None = None
    request: ChatRequest | None = None
    target: Target | None = None
    trace: Trace | None = None
    outcome: str = "cancelled"


async def _answer(request: ChatRequest, target: Target, run: LiveRun, exchange: Exchange) -> None:
    """Ask the strategy. Nothing is sent before its first event, so that an error until then gets a status of
    its own."""
    async with aclosing(cast(Any, target.strategy.answer(request, run))) as events:
        first: Event | None = await anext(events, None)
        if first is None:
            raise MethodError(f"The strategy {target.label!r} gave no answer.")
        if isinstance(first, Answer):
            relay = _replay if request.stream else _send_whole
            await relay(request, first.reply, target, run, exchange)
        elif request.stream:
            await _relay(request, first, events, target, run, exchange)
        else:
            raise MethodError(f"The strategy {target.label!r} streamed to a caller who did not ask for it.")


async def _send_whole(
    request: ChatRequest, reply: Reply, target: Target, run: LiveRun, exchange: Exchange
) -> None:
    body = explanation.whole_body(request, reply, target.label, run.trace)
    await exchange.send_bytes(body, headers=explanation.headers(target.label, reply.members, run.trace))


async def _replay(
    request: ChatRequest, reply: Reply, target: Target, run: LiveRun, exchange: Exchange
) -> None:
    """A complete answer to a caller who streams: the same chunks a stream would have had, all at once."""
    chunks = list(replay(reply.body))
    if request.wants_usage:
        chunks = [{**chunk, "usage": None} for chunk in chunks]
    last = explanation.last_event(request, reply.members, target.label, run.trace, tail=None, head=reply.body)
    await exchange.start_stream(explanation.headers(target.label, reply.members))
    await exchange.end_stream(*map(sse.event, chunks), last, sse.DONE)


async def _relay(
    request: ChatRequest,
    first: Chunk,
    events: AsyncIterator[Event],
    target: Target,
    run: LiveRun,
    exchange: Exchange,
) -> None:
    """Pass a stream on, event by event, untouched."""
    await exchange.start_stream(explanation.headers(target.label, first.members))
    await exchange.send_event(first.data)
    async for event in events:
        if not isinstance(event, Chunk):
            raise MethodError(f"The strategy {target.label!r} mixed chunks with a complete answer.")
        await exchange.send_event(event.data)
    head = None if run.tail else _head(first)
    last = explanation.last_event(request, first.members, target.label, run.trace, tail=run.tail, head=head)
    await exchange.end_stream(last, sse.DONE)


def _head(first: Chunk) -> Mapping[str, Any] | None:
    """The id, time and model of a stream, read from its first event; None when that is only a comment."""
    payload = sse.event_data(first.data)
    return cast(Mapping[str, Any], orjson.loads(payload)) if payload else None
