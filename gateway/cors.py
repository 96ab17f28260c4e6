"""Pages of other origins: what a browser must be told before it lets them call, and read what is answered."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from gateway.exchange import Exchange, Receive, Scope, Send
from gateway.ids import Ids
from gateway.wire import WIRE
from protocol.errors import Forbidden
from protocol.network import CorsSettings

__all__ = ["Cors"]

METHODS = b"GET, POST, DELETE"
_HEADER_LIST = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~ ,-]{1,2048}")
_READABLE = frozenset(
    {b"cache-control", b"content-language", b"content-length", b"content-type", b"expires", b"last-modified"}
)
"""What a page may read without being allowed to."""

App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Cors:
    """`app` for browsers, too. A page of an origin that is not allowed is answered, as anybody is, but its browser
    is not told that it may read the answer; and a preflight of its is refused."""

    def __init__(self, app: App, settings: CorsSettings, ids: Ids) -> None:
        self._app, self._settings, self._ids = app, settings, ids
        self._origins = frozenset(origin.encode("ascii") for origin in settings.origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What is answered passes here as ASGI messages, so that headers can be added to it: not past us on the wire.
        others = {name: given for name, given in scope.get("extensions", {}).items() if name != WIRE}
        scope = {**scope, "extensions": others}
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        origin = headers.get(b"origin")
        if origin is None:
            await self._app(scope, receive, self._varied(send, None))
        elif scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await self._preflight(origin, headers, Exchange(scope, receive, send, self._ids.fresh()), send)
        else:
            await self._app(scope, receive, self._varied(send, origin))

    async def _preflight(
        self, origin: bytes, headers: Mapping[bytes, bytes], exchange: Exchange, send: Send
    ) -> None:
        allowed = self._allowed(origin)
        if not allowed:
            await exchange.fail(Forbidden("Pages of this origin may not call: server.cors.origins."))
            return
        told = [
            *allowed,
            (b"access-control-allow-methods", METHODS),
            (b"access-control-max-age", str(self._settings.max_age_s).encode()),
            (b"vary", b"Origin, Access-Control-Request-Headers"),
            (b"content-length", b"0"),
        ]
        # Which headers a page sends is nothing to guard: what they may do here, they may for any client.
        wanted = headers.get(b"access-control-request-headers", b"")
        if _HEADER_LIST.fullmatch(wanted):
            told.append((b"access-control-allow-headers", wanted))
        send = exchange.labelled(send)
        await send({"type": "http.response.start", "status": 204, "headers": told})
        await send({"type": "http.response.body", "body": b""})

    def _varied(self, send: Send, origin: bytes | None) -> Send:
        """`send` for the answer to a page of `origin`: all of its headers may be read, `x-chorus-*` among them."""
        allowed = self._allowed(origin) if origin is not None else []

        async def told(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"vary", b"Origin")]
                if allowed:
                    names = dict.fromkeys(name.lower() for name, _ in message["headers"])
                    exposed = b", ".join(name for name in names if name not in _READABLE)
                    headers += [*allowed, (b"access-control-expose-headers", exposed)]
                message = {**message, "headers": headers}
            await send(message)

        return told

    def _allowed(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        """The headers that let pages of `origin` in; none where they are not."""
        if origin in self._origins:
            allowed = [(b"access-control-allow-origin", origin)]
            if self._settings.credentials:
                allowed.append((b"access-control-allow-credentials", b"true"))
            return allowed
        return [(b"access-control-allow-origin", b"*")] if b"*" in self._origins else []
