"""The hot routes: how a request becomes an answer. Read it downwards."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, cast

import orjson

from gateway import explanation
from gateway.caching.cached import Caches, Later, Visitor
from gateway.caching.control import Control
from gateway.catalogue import DIRECT, Catalogue, Target
from gateway.exchange import ClientLeft, Exchange, Receive, Scope, Send
from gateway.ids import Ids
from gateway.ledger.entry import Entry
from gateway.limits.bounds import NANO, Bound
from gateway.observers import Finished, Observers
from gateway.passing import Relay, pass_surface, relayed
from gateway.run import Limits, LiveRun, open_run
from gateway.surfaces import Surface
from gateway.telemetry import Telemetry
from gateway.tenancy import Tenancy, Visit
from gateway.told import Told, count
from gateway.transcript import Transcript
from protocol import sse
from protocol.chat import ChatRequest, Options
from protocol.errors import ChorusError, Forbidden, InternalError, MethodError
from protocol.run import Answer, Chunk, Event, Reply, Trace
from protocol.settings import ServerSettings
from protocol.tracing import Watch
from protocol.wire import replay

__all__ = ["Answering"]

log = logging.getLogger("chorus.gateway")


class Answering:
    """Answers the requests of every surface: admit, parse, resolve, answer, relay, settle."""

    def __init__(
        self,
        catalogue: Catalogue,
        tenancy: Tenancy,
        telemetry: Telemetry,
        server: ServerSettings,
        observers: Observers,
        ids: Ids,
        caches: Caches | None = None,
    ) -> None:
        self._catalogue, self._tenancy = catalogue, tenancy
        self._telemetry, self._server, self._observers = telemetry, server, observers
        self._ids, self._caches = ids, caches
        self._usual = Limits(server.deadline_s, None, server.max_calls, server.max_depth)
        self._metered = replace(self._usual, caps=tenancy.caps)

    async def __call__(self, surface: Surface, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of a `surface`."""
        exchange = Exchange(scope, receive, send, self._ids.fresh(), surface.wording)

        async def answered(record: _Record) -> None:
            server = self._server
            raw = await exchange.body(server.max_body_bytes, server.body_timeout_s)
            asked = self._catalogue.by_threshold(surface.parse(raw))
            record.asked = asked
            self._check(asked.model, record)
            if surface.tongue is not None:
                await self._other_words(surface, asked, len(raw), record, exchange)
                return
            target = self._catalogue.resolve(asked.model, surface.endpoint, surface.path)
            record.label = target.label
            answer = _decide if surface.decides else _answer
            if surface.endpoint == "chat" and not surface.decides:
                target = self._behind_caches(target, record, exchange)
            await self._run(
                lambda run: answer(asked, target, run, exchange),
                asked,
                len(raw),
                record,
                exchange,
                surface.path,
            )

        await self._settled(answered, exchange, surface.path, scope)

    async def relay(self, relay: Relay, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of a `relay`."""
        exchange = Exchange(scope, receive, send, self._ids.fresh())

        async def answered(record: _Record) -> None:
            server = self._server
            raw = await exchange.body(server.max_body_bytes, server.body_timeout_s)
            content_type = exchange.headers.get(b"content-type", b"").decode("latin-1")
            asked = relayed(relay, scope, content_type, raw, self._catalogue)
            self._check(asked.model, record)
            record.label = DIRECT

            async def answer(run: LiveRun) -> None:
                if relay.endpoint == "batches" and relay.method == "POST" and run.limits.caps:
                    raise Forbidden(
                        "A key with a budget may make no batches: what they cost is not known here."
                    )
                await asked.answer(run, exchange)

            await self._run(answer, ChatRequest({}), len(b"{}"), record, exchange, relay.path)

        await self._settled(answered, exchange, relay.path, scope)

    async def _other_words(
        self, surface: Surface, asked: ChatRequest, size: int, record: _Record, exchange: Exchange
    ) -> None:
        """A surface that is not chat: passed on where the backend has it, else translated."""
        if self._catalogue.has(asked.model, surface.endpoint):
            record.label = DIRECT

            async def passed(run: LiveRun) -> None:
                body = run.limits.capped(asked.model, asked.body, surface.path)
                await pass_surface(replace(asked, body=body), surface, run, exchange)

            await self._run(passed, asked, size, record, exchange, surface.path)
            return
        assert surface.telling is not None
        target = self._catalogue.resolve(asked.model, "chat", surface.path)
        record.label = target.label
        telling = surface.telling(asked)
        if surface.counts:
            await count(telling, exchange)
            return
        exchange.wording = telling
        target = self._behind_caches(target, record, exchange)
        await self._run(
            lambda run: _answer(telling.request, target, run, exchange, Told(telling)),
            asked,
            size,
            record,
            exchange,
        )

    def _behind_caches(self, target: Target, record: _Record, exchange: Exchange) -> Target:
        """`target`, asked only where no answer is kept for this caller."""
        assert record.visit is not None
        key = record.visit.key
        if self._caches is None or not key.cached or not self._caches.concern(record.requested):
            return target
        control = Control.parse(exchange.headers.get(b"cache-control", b""))
        visitor = Visitor(key.tenant, record.path, control, exchange.tell, partial(setattr, record, "later"))
        return Target(self._caches.around(target.strategy, visitor), target.label)

    async def _run(
        self,
        answer: Callable[[LiveRun], Awaitable[None]],
        asked: ChatRequest,
        size: int,
        record: _Record,
        exchange: Exchange,
        path: str = "/chat/completions",
    ) -> None:
        """Have `answer` do it in the run of this request, whose body came as `size` bytes; a client that leaves ends
        it."""
        assert record.visit is not None
        bound = await self._tenancy.enter(record.visit, record.requested, asked.body, size, path)
        limits = self._limits(asked.options, bound)
        exchange.told = record.visit.headers()
        session = _session(exchange, asked)
        async with open_run(self._catalogue, limits, path=path, session=session, watch=record.watch) as run:
            record.trace = run.trace
            if record.watch is not None and record.label != DIRECT:
                record.watch.level(record.label, None, run.trace.decision)
            with exchange.leaving_cancels():
                await answer(run)

    async def _settled(
        self, answer: Callable[[_Record], Awaitable[None]], exchange: Exchange, path: str, scope: Scope
    ) -> None:
        """Admit, `answer`, and settle, whatever becomes of it."""
        record = _Record(path, self._observers.begin(exchange, scope))
        self._telemetry.started()
        try:
            key = await self._tenancy.admit(exchange.headers)
            record.visit = Visit(key)
            if most := self._tenancy.stored_bytes(key):
                record.transcript = exchange.overheard(most)
            await answer(record)
            record.outcome = "ok"
        except ClientLeft:
            log.debug("the client left")
        except ChorusError as error:
            record.outcome = error.outcome
            await exchange.fail(error)
        except Exception:
            record.outcome = "internal_error"
            log.exception("a bug of ours")
            await exchange.fail(
                InternalError(f"An internal error occurred; it is logged as {exchange.request_id}.")
            )
        finally:
            self._settle(record, exchange, scope)
            if record.later is not None and self._caches is not None:
                self._caches.keeping.begin(record.later())

    def _limits(self, options: Options, bound: Bound | None) -> Limits:
        """The caller's bounds, within the server's, and within what was set aside."""
        usual = self._usual if bound is None else self._metered
        budget_usd = options.max_cost_usd
        # A tree that is free has nothing to keep to.
        if bound is not None and not bound.sure and bound.nanodollars:
            budget_usd = min(bound.nanodollars / NANO, inf if budget_usd is None else budget_usd)
        if budget_usd is None and options.deadline_ms is None:
            return usual
        asked_s = inf if options.deadline_ms is None else options.deadline_ms / 1000
        return replace(usual, deadline_s=min(asked_s, usual.deadline_s), budget_usd=budget_usd)

    def _check(self, name: str, record: _Record) -> None:
        """Raises `ModelNotFound` for a name that the caller's key may not use; it lists those that it may."""
        assert record.visit is not None
        record.visit.key.check(name, self._catalogue.names)
        record.requested = name

    def _settle(self, record: _Record, exchange: Exchange, scope: Scope) -> None:
        if record.visit is not None:
            self._tenancy.leave(record.visit, record.trace)
            self._tenancy.record(self._entry(record, record.visit, exchange))
        self._telemetry.finished(
            record.requested,
            record.label,
            record.outcome,
            record.trace,
            began_s=exchange.began_s,
            took_s=exchange.elapsed_s,
        )
        if self._observers.any:
            self._observers.finished(self._finished(record, exchange, scope))

    def _finished(self, record: _Record, exchange: Exchange, scope: Scope) -> Finished:
        """The request as those who look on are told of it. A name that means nothing here is not told."""
        return Finished(
            *(exchange.request_id, scope["method"], "/v1" + record.path, exchange.status, record.outcome),
            *(record.requested if record.label != "none" else "unknown", record.label),
            *(exchange.began_s, exchange.elapsed_s),
            "" if record.visit is None else record.visit.key.id,
            record.asked is not None and record.asked.stream,
            record.trace,
            record.watch,
        )

    def _entry(self, record: _Record, visit: Visit, exchange: Exchange) -> Entry:
        """The request as the ledger keeps it. A name that means nothing here is not kept."""
        body = record.asked.body if record.asked else {}
        return Entry(
            exchange.id,
            exchange.request_id,
            time.time() - exchange.elapsed_s,
            visit.key,
            body.get("user"),
            body.get("metadata"),
            record.path,
            record.requested if record.label != "none" else "unknown",
            record.label,
            record.outcome,
            exchange.elapsed_s,
            record.trace,
            record.transcript,
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
        if name in exchange.headers and (given := exchange.headers[name]):
            return given.decode("latin-1")
    key = request.body.get("prompt_cache_key")
    return key if isinstance(key, str) else None


@dataclass(slots=True)
class _Record:
    """What became of a request, as far as it came."""

    path: str
    watch: Watch | None = None
    visit: Visit | None = None
    transcript: Transcript | None = None
    asked: ChatRequest | None = None
    requested: str = "unknown"
    label: str = "none"
    trace: Trace | None = None
    outcome: str = "cancelled"
    later: Later | None = None
    """What the caches still do about it."""


async def _answer(
    request: ChatRequest, target: Target, run: LiveRun, exchange: Exchange, told: Told | None = None
) -> None:
    """Ask the strategy. Nothing is sent before its first event, so that an error until then gets a status of
    its own. `told`: the surface's own words, where they are not chat's."""
    whole, replayed, relay = (
        (_send_whole, _replay, _relay) if told is None else (told.whole, told.replay, told.relay)
    )
    async with aclosing(cast(Any, target.strategy.answer(request, run))) as events:
        first: Event | None = await anext(events, None)
        if first is None:
            raise MethodError(f"The strategy {target.label!r} gave no answer.")
        if isinstance(first, Answer):
            send = replayed if request.stream else whole
            await send(request, first.reply, target, run, exchange)
        elif request.stream:
            await relay(request, first, events, target, run, exchange)
        else:
            raise MethodError(f"The strategy {target.label!r} streamed to a caller who did not ask for it.")


async def _decide(request: ChatRequest, target: Target, run: LiveRun, exchange: Exchange) -> None:
    """Tell who would answer."""
    chosen = await run.decide(target.strategy, request) or request.model
    body = explanation.decision_body(request, chosen, target.label, run.trace)
    await exchange.send_bytes(body, headers=explanation.headers(target.label, (chosen,), run.trace))


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
    await exchange.start_stream(explanation.stream_headers(target.label, reply.members, run.trace))
    await exchange.end_stream(*map(sse.event, chunks), last, sse.DONE)


async def _relay(
    request: ChatRequest,
    first: Chunk,
    events: AsyncIterator[Event],
    target: Target,
    run: LiveRun,
    exchange: Exchange,
) -> None:
    """Pass a stream on as it comes, untouched; where no strategy looks at it, past all of them."""
    await exchange.start_stream(
        explanation.stream_headers(target.label, first.members, run.trace, run.begun_without)
    )
    await exchange.send_event(first.data)
    if first.onward is not None:
        first.onward.sink = exchange.sink
    async for event in events:
        if not isinstance(event, Chunk):
            raise MethodError(f"The strategy {target.label!r} mixed chunks with a complete answer.")
        await exchange.send_event(event.data)
    head = None if run.tail or not (request.wants_usage or request.options.explain) else _head(first)
    last = explanation.last_event(request, first.members, target.label, run.trace, tail=run.tail, head=head)
    await exchange.end_stream(last, sse.DONE)


def _head(first: Chunk) -> Mapping[str, Any] | None:
    """The id, time and model of a stream, read from its first event; None when that is only a comment."""
    payload = sse.event_data(next(sse.EventSplitter().feed(first.data)))
    return cast(Mapping[str, Any], orjson.loads(payload)) if payload else None
