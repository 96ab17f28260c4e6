"""The ASGI application: hot routes by (method, path) in front of the pages, and what every answer of both has
in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from backends.registry import Sockets
from gateway.access_log import AccessLog
from gateway.answering import Answering
from gateway.caching.composition import make_caches
from gateway.catalogue import Catalogue
from gateway.composition import make_catalogue
from gateway.exchange import Exchange, Receive, Scope, Send
from gateway.ids import Ids
from gateway.observers import Observers
from gateway.pages import KEY, PROBES, Lifespan, make_pages
from gateway.passing import Relay, find_relay
from gateway.surfaces import SURFACES
from gateway.telemetry import Telemetry
from gateway.tenancy import Tenancy
from gateway.tracing import Exporter, make_tracing
from protocol.anthropic import ANTHROPIC
from protocol.errors import MethodNotAllowed, StateUnavailable, Unauthenticated
from protocol.log_pipe import LogPipe
from protocol.settings import Settings
from protocol.telling import OPENAI

__all__ = ["Gateway", "make_app"]

_HOT_PATHS = frozenset(path for _, path in SURFACES)


def make_app(settings: Settings, sockets: Sockets, log: LogPipe | None = None) -> Gateway:
    """The gateway that `settings` describe; `sockets` are where our own processes serve, `log` is where requests are
    told. Raises `SettingsError`."""
    return Gateway(make_catalogue(settings, sockets), settings, log)


class Gateway:
    """An ASGI application (lifespan included) over a `catalogue`, which it closes at shutdown."""

    def __init__(self, catalogue: Catalogue, settings: Settings, log: LogPipe | None = None) -> None:
        telemetry = Telemetry(catalogue.names)
        self._tenancy = tenancy = Tenancy(settings, telemetry.ledger_dropped)
        tracing = make_tracing(settings, telemetry)
        access = AccessLog(log).finished if log is not None and settings.logging.access else None
        if log is not None:
            log.dropped = telemetry.log_dropped
        self._observers = observers = Observers(access, tracing)
        self._ids = ids = Ids()
        self._answer = Answering(
            catalogue, tenancy, telemetry, settings.server, observers, ids, make_caches(settings)
        )

        def degraded() -> list[str]:
            lost = ["telemetry"] if tracing is not None and tracing.failing else []
            return [*tenancy.degraded(), *lost]

        self._pages = make_pages(
            catalogue,
            telemetry,
            created=int(time.time()),
            degraded=degraded,
            lifespan=_lifespan(catalogue, telemetry, tenancy, tracing, degraded),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            surface = SURFACES.get((scope["method"], scope["path"]))
            if surface is not None:
                await self._answer(surface, scope, receive, send)
                return
            relay = find_relay(scope["method"], scope["path"])
            if isinstance(relay, Relay):
                await self._answer.relay(relay, scope, receive, send)
                return
            await self._page(scope, receive, send, relay)
        else:
            await self._pages(scope, receive, send)

    async def _page(self, scope: Scope, receive: Receive, send: Send, methods: Sequence[str] | None) -> None:
        """A page, behind the same door as the hot routes, with the same headers. `methods`: of a hot route that is
        asked with none of them."""
        path, method = scope["path"], scope["method"]
        wording = ANTHROPIC if path.startswith("/v1/messages") else OPENAI
        exchange = Exchange(scope, receive, send, self._ids.fresh(), wording)
        observers = self._observers
        observers.begin(exchange, scope)
        if path in _HOT_PATHS:
            methods = ("POST",)
        try:
            if methods:
                allow = ", ".join(methods)
                await exchange.fail(
                    MethodNotAllowed(f"{path} answers {allow}, not {method}."), {"allow": allow}
                )
                return
            if path.startswith("/v1"):
                try:
                    scope[KEY] = await self._tenancy.admit(exchange.headers)
                except (Unauthenticated, StateUnavailable) as error:
                    await exchange.fail(error)
                    return
            await self._pages(scope, receive, exchange.labelled(send))
        finally:
            if path not in PROBES:
                observers.page(exchange, method, _route(scope))


def _route(scope: Scope) -> str:
    """The route that answered, as it is written in the table of routes: what the caller wrote there may be anything."""
    return str(getattr(scope.get("route"), "path", "unknown"))


def _lifespan(
    catalogue: Catalogue,
    telemetry: Telemetry,
    tenancy: Tenancy,
    tracing: Exporter | None,
    degraded: Callable[[], list[str]],
) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        watches = [
            asyncio.create_task(telemetry.watch(catalogue.models, degraded)),
            asyncio.create_task(telemetry.flush_often()),
        ]
        if tracing is not None:
            tracing.start()
        try:
            async with tenancy.serving():
                yield
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)
            await catalogue.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.close)

    return lifespan
