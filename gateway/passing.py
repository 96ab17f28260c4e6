"""Requests passed on to a backend that has the endpoint itself, and its answers passed back, in its own words.

Two kinds: surfaces with words of their own (`pass_surface`), and the table `RELAYS` of endpoints that only backends
have: files, images, audio. Of the caller's request go out: a method and path of the table, the query fields of `QUERY`,
and the body with the model's name there. No header does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

import orjson

from backends.passing import Outgoing, Passed
from backends.passing_tap import PassingTap
from gateway import explanation
from gateway.catalogue import DIRECT, Catalogue
from gateway.exchange import Exchange, Scope
from gateway.run import LiveRun
from gateway.surfaces import Surface
from protocol.chat import ChatRequest, check_model, parse_object
from protocol.errors import UpstreamBroken
from protocol.multipart import boundary_of, field, with_field
from protocol.responses import response_usage
from protocol.settings import Endpoint
from protocol.usage import Usage

__all__ = ["RELAYS", "Relay", "Relayed", "find_relay", "pass_surface", "relayed"]

QUERY = frozenset({"after", "before", "include", "limit", "order", "purpose"})
"""Fields of a query that go on to the backend."""

_ID = "[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


@dataclass(frozen=True, slots=True)
class Relay:
    """A route that is only passed on. `body`: what it carries; `named`: whether that must name a model, where it may
    not the first model whose backend has the endpoint is asked."""

    method: str
    path: str
    endpoint: Endpoint
    body: Literal["json", "form", "none"] = "json"
    named: bool = False

    def pattern(self) -> re.Pattern[str]:
        """Of the whole path; an id in it has nothing that could lead elsewhere."""
        return re.compile("/v1" + re.escape(self.path).replace(r"\{id\}", _ID))


RELAYS = (
    Relay("POST", "/images/generations", "images", named=True),
    Relay("POST", "/images/edits", "images", "form", named=True),
    Relay("POST", "/images/variations", "images", "form"),
    Relay("POST", "/audio/speech", "audio", named=True),
    Relay("POST", "/audio/transcriptions", "audio", "form", named=True),
    Relay("POST", "/audio/translations", "audio", "form", named=True),
    Relay("POST", "/moderations", "moderations"),
    Relay("POST", "/files", "files", "form"),
    Relay("GET", "/files", "files", "none"),
    Relay("GET", "/files/{id}", "files", "none"),
    Relay("DELETE", "/files/{id}", "files", "none"),
    Relay("GET", "/files/{id}/content", "files", "none"),
    Relay("POST", "/batches", "batches"),
    Relay("GET", "/batches", "batches", "none"),
    Relay("GET", "/batches/{id}", "batches", "none"),
    Relay("POST", "/batches/{id}/cancel", "batches", "none"),
    Relay("GET", "/responses/{id}", "responses", "none"),
    Relay("DELETE", "/responses/{id}", "responses", "none"),
    Relay("POST", "/responses/{id}/cancel", "responses", "none"),
    Relay("GET", "/responses/{id}/input_items", "responses", "none"),
)
_PATTERNS = tuple((relay.pattern(), relay) for relay in RELAYS)


@dataclass(frozen=True, slots=True)
class Relayed:
    """One request of a relay: the model whose backend is asked, and what it is asked."""

    model: str
    outgoing: Callable[[str], Outgoing]
    judged: Mapping[str, Any]

    async def answer(self, run: LiveRun, exchange: Exchange) -> None:
        """Ask, and pass the answer back: JSON whole, anything else as it comes."""
        raw: bytes | None = None
        headers = explanation.headers(DIRECT, (self.model,))
        async with run.passing(self.model, self.judged, self.outgoing) as passed:
            if passed.content_type.startswith("application/json"):
                raw = await passed.read()
                passed.usage = _usage(raw, response_usage)
            else:
                await exchange.start_bytes(passed.status, passed.content_type, headers)
                async for data in passed:
                    await exchange.send_event(data)
                await exchange.end_stream()
        if raw is not None:
            headers = explanation.headers(DIRECT, (self.model,), run.trace)
            await exchange.send_bytes(raw, status=passed.status, headers=headers)


def find_relay(method: str, path: str) -> Relay | list[str] | None:
    """The relay of that route; the methods it has where `method` is none of them; None where there is no such
    route."""
    found = [relay for pattern, relay in _PATTERNS if pattern.fullmatch(path)]
    return next(
        (relay for relay in found if relay.method == method), [relay.method for relay in found] or None
    )


def relayed(relay: Relay, scope: Scope, content_type: str, raw: bytes, catalogue: Catalogue) -> Relayed:
    """What a request to `relay` asks of whom. Raises `BadRequest`, `NotFound`."""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1"), max_num_fields=32))
    body: Mapping[str, Any] = {}
    boundary = b""
    if relay.body == "json":
        body = parse_object(raw)
        name = body.get("model")
    elif relay.body == "form":
        boundary = boundary_of(content_type)
        name = field(raw, boundary, "model")
    else:
        name = query.get("model")
    if relay.named or name is not None:
        check_model({"model": name})
        catalogue.resolve(str(name), relay.endpoint, relay.path)
        model = str(name)
    else:
        model = catalogue.first_with(relay.endpoint, relay.path)
    kept = urlencode({key: value for key, value in query.items() if key in QUERY})
    path = scope["path"].removeprefix("/v1") + (f"?{kept}" if kept else "")

    def outgoing(there: str) -> Outgoing:
        match relay.body:
            case "json":
                renamed = {"model": there} if name is not None else {}
                return Outgoing(relay.method, path, orjson.dumps({**body, **renamed}))
            case "form":
                return Outgoing(relay.method, path, with_field(raw, boundary, "model", there), content_type)
            case "none":
                return Outgoing(relay.method, path)

    judged = body if relay.endpoint == "moderations" else {}
    return Relayed(model, outgoing, judged)


async def pass_surface(request: ChatRequest, surface: Surface, run: LiveRun, exchange: Exchange) -> None:
    """Pass on a request whose backend has the surface itself, and its answer back, byte for byte."""
    assert surface.tongue is not None
    name, told = request.model, explanation.headers(DIRECT, (request.model,))

    def outgoing(there: str) -> Outgoing:
        body = orjson.dumps({**request.body, "model": there})
        return Outgoing("POST", surface.path, body, messages=surface.endpoint == "messages")

    async with run.passing(name, _judged(request), outgoing) as passed:
        if request.stream:
            await _stream(passed, PassingTap(surface.tongue, name, passed.secrets), told, exchange)
            return
        raw = await passed.read()
        passed.usage = _usage(raw, surface.tongue.whole_usage)
    await exchange.send_bytes(
        raw, status=passed.status, headers=explanation.headers(DIRECT, (name,), run.trace)
    )


def _judged(request: ChatRequest) -> Mapping[str, Any]:
    """By what the call's cost is judged beforehand, in the words of chat and completions."""
    body = request.body
    if "messages" in body:
        return {"messages": body["messages"], "max_tokens": body.get("max_tokens")}
    bound = body.get("max_output_tokens")
    known = isinstance(bound, int) and not isinstance(bound, bool) and bound > 0
    return {"prompt": orjson.dumps(body.get("input")).decode(), "max_tokens": bound if known else None}


async def _stream(passed: Passed, tap: PassingTap, headers: Mapping[str, str], exchange: Exchange) -> None:
    if not passed.streams:
        raise UpstreamBroken("The backend did not answer with a stream.")
    begun = False
    try:
        async for data in passed:
            for event in tap.feed(data):
                if not begun:
                    begun = True
                    await exchange.start_stream(headers)
                await exchange.send_event(event)
            if tap.done:
                await passed.drain()
                break
        tap.end()
    finally:
        passed.usage = tap.usage
    await exchange.end_stream()


def _usage(raw: bytes, read: Callable[[Mapping[str, Any] | None], Usage]) -> Usage:
    """The tokens a whole answer tells of; an answer that is no JSON object is the backend's fault."""
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        body = None
    if not isinstance(body, dict):
        raise UpstreamBroken("The backend did not answer with a JSON object.")
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    return Usage.parse(usage) if "prompt_tokens" in usage else read(usage)
