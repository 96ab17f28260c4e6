"""Who may use the admin API: programs by the admin key, and the dashboard by a session that the key began.

A session's cookie is sent by the browser whoever makes it, so that it alone lets nobody in to write: a write must come
from a page of this very origin and show a token that only such a page can have read.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address, ip_network
from urllib.parse import urlsplit

from aiohttp import web

from gateway.dashboard.sessions import LIFE_S, Session, Sessions, Throttle
from protocol.chat import parse_object
from protocol.errors import BadRequest, Forbidden, RateLimited, Unauthenticated

__all__ = ["AdminDoor"]

CSRF_HEADER = "x-chorus-csrf"
READS = ("GET", "HEAD")
MAX_BODY = 4096


class AdminDoor:
    """Knows the admin `key`. `proxies`: whose `X-Forwarded-Proto` is believed (addresses and networks)."""

    def __init__(self, key: bytes, proxies: Sequence[str] = (), sessions: Sessions | None = None) -> None:
        self._key, self._proxies = key, [ip_network(proxy) for proxy in proxies]
        self.sessions = sessions or Sessions()
        self._throttle = Throttle()

    def routes(self) -> list[web.RouteDef]:
        """Logging in and out; to be added to the admin server."""
        return [
            web.post("/admin/session", self._log_in),
            web.get("/admin/session", self._tell),
            web.delete("/admin/session", self._log_out),
        ]

    def admit(self, request: web.Request) -> str:
        """Who acts, for the audit log. Raises `Unauthenticated`, `Forbidden`."""
        if "authorization" in request.headers:
            scheme, _, given = request.headers["authorization"].partition(" ")
            if scheme.lower() != "bearer" or not self._is_key(given.strip()):
                raise Unauthenticated(NEEDED)
            return f"api:{request.remote or 'unknown'}"
        self._session(request)
        return f"dashboard:{request.remote or 'unknown'}"

    @web.middleware
    async def renewing(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Middleware: give the session that asked a new token, when it is time."""
        response = await handler(request)
        token = request.cookies.get(self._cookie(request))
        if token and not response.prepared and (session := self.sessions.find(token)) is not None:
            fresh = self.sessions.rotate(session)
            if fresh is not None:
                self._set(request, response, fresh, self.sessions.left_s(session))
        return response

    async def _log_in(self, request: web.Request) -> web.Response:
        _same_origin(request)
        if (wait_s := self._throttle.wait_s()) > 0:
            raise RateLimited("Too many failed logins; wait a little.", type="requests", retry_after_s=wait_s)
        raw = await request.content.read(MAX_BODY + 1)
        if len(raw) > MAX_BODY:
            raise BadRequest("The body is too large.")
        given = parse_object(raw).get("key")
        if not isinstance(given, str) or not self._is_key(given.strip()):
            self._throttle.failed()
            raise Unauthenticated("That is not the admin key.")
        token = request.cookies.get(self._cookie(request))
        if token and (former := self.sessions.find(token)) is not None:
            self.sessions.close(former)
        token, session = self.sessions.open()
        response = web.json_response(_told(session, LIFE_S), status=201)
        self._set(request, response, token, LIFE_S)
        return response

    async def _tell(self, request: web.Request) -> web.Response:
        """The session, or that there is none: a page that asks before its login has done nothing wrong."""
        try:
            session = self._session(request)
        except Unauthenticated:
            return web.json_response({"object": "session", "csrf": None})
        return web.json_response(_told(session, self.sessions.left_s(session)))

    async def _log_out(self, request: web.Request) -> web.Response:
        """End this session; with `?all=1` every one."""
        session = self._session(request)
        if request.query.get("all") == "1":
            self.sessions.close_all()
        else:
            self.sessions.close(session)
        response = web.json_response({"object": "session", "ended": True})
        response.del_cookie(self._cookie(request), path="/", secure=self._over_tls(request), httponly=True)
        return response

    def _session(self, request: web.Request) -> Session:
        token = request.cookies.get(self._cookie(request))
        session = self.sessions.find(token) if token else None
        if session is None:
            raise Unauthenticated(NEEDED)
        if request.method not in READS:
            _same_origin(request)
            if not session.shown(request.headers.get(CSRF_HEADER, "")):
                raise Forbidden(f"A session's writes need the header {CSRF_HEADER}.")
        return session

    def _set(self, request: web.Request, response: web.StreamResponse, token: str, life_s: float) -> None:
        response.set_cookie(
            self._cookie(request),
            token,
            path="/",
            max_age=int(life_s),
            httponly=True,
            samesite="Strict",
            secure=self._over_tls(request),
        )

    def _cookie(self, request: web.Request) -> str:
        """Under TLS a name that browsers accept for this host alone."""
        return "__Host-chorus-session" if self._over_tls(request) else "chorus-session"

    def _over_tls(self, request: web.Request) -> bool:
        if request.secure:
            return True
        if request.headers.get("x-forwarded-proto", "").strip().lower() != "https" or not request.remote:
            return False
        return any(ip_address(request.remote) in network for network in self._proxies)

    def _is_key(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(errors="replace"), self._key)


NEEDED = "The admin API needs the admin key: 'Authorization: Bearer <key>'."


def _same_origin(request: web.Request) -> None:
    """Raises `Forbidden` for what a page of another origin sent. Programs send neither header."""
    origin = request.headers.get("origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.host
    if foreign or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Forbidden("Pages of other origins may not use the admin API.")


def _told(session: Session, left_s: float) -> dict[str, object]:
    return {"object": "session", "csrf": session.csrf, "expires_in_s": int(left_s)}
