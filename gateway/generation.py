"""One generation of a gateway: all that a config decides about an answer. A reload replaces it as a whole.

A request belongs to the generation in force when it came, to its end. What generations share (connections to
unchanged deployments, breakers, keys, accounts, the ledger) is handed on when the next one is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gateway.answering import Answering
from gateway.caching.cached import Caches
from gateway.catalogue import Catalogue
from gateway.cors import Cors
from gateway.exchange import Exchange, Receive, Scope, Send
from gateway.ids import Ids
from gateway.observers import Observers
from gateway.pages import KEY, PROBES
from gateway.passing import Relay, find_relay
from gateway.surfaces import SURFACES
from gateway.telemetry import Telemetry
from gateway.tenancy import Tenancy
from protocol.anthropic import ANTHROPIC
from protocol.errors import MethodNotAllowed, StateUnavailable, Unauthenticated
from protocol.settings import Settings
from protocol.telling import OPENAI

__all__ = ["Generation"]

_HOT_PATHS = frozenset(path for _, path in SURFACES)


class Generation:
    """Answers over a `catalogue` made of `settings`. `pages` answer what is not hot; `requests` are under way."""

    def __init__(
        self,
        settings: Settings,
        catalogue: Catalogue,
        tenancy: Tenancy,
        telemetry: Telemetry,
        observers: Observers,
        ids: Ids,
        pages: Any,
        caches: Caches | None = None,
    ) -> None:
        server = settings.server
        self.settings, self.catalogue, self.tenancy = settings, catalogue, tenancy
        self.requests = 0
        self.caches = caches
        self._answer = Answering(catalogue, tenancy, telemetry, server, observers, ids, caches)
        self._observers, self._ids, self._pages = observers, ids, pages
        self.app: Any = self._route
        """The ASGI application: nothing stands before the routes that the settings do not ask for."""
        if server.cors is not None:
            self.app = Cors(self.app, server.cors, ids)
        if server.trusted_proxies:
            self.app = ProxyHeadersMiddleware(self.app, list(server.trusted_proxies))

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        surface = SURFACES.get((scope["method"], scope["path"]))
        if surface is not None:
            await self._answer(surface, scope, receive, send)
            return
        relay = find_relay(scope["method"], scope["path"])
        if isinstance(relay, Relay):
            await self._answer.relay(relay, scope, receive, send)
            return
        await self._page(scope, receive, send, relay)

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
                    scope[KEY] = await self.tenancy.admit(exchange.headers)
                except (Unauthenticated, StateUnavailable) as error:
                    await exchange.fail(error)
                    return
            await self._pages(scope, receive, exchange.labelled(send))
        finally:
            if path not in PROBES:
                observers.page(exchange, method, _route_of(scope))


def _route_of(scope: Scope) -> str:
    """The route that answered, as it is written in the table of routes: what the caller wrote there may be anything."""
    return str(getattr(scope.get("route"), "path", "unknown"))
