"""The admin API: keys, usage, the audit log and the dashboard's figures over HTTP, on the admin port, behind a key of
its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from aiohttp import web

from gateway.dashboard.admission import AdminDoor
from gateway.dashboard.figures import Figures
from gateway.dashboard.playground import Playground
from gateway.dashboard.site import Site
from gateway.keys.key import Key
from gateway.keys.office import Order
from gateway.keys.secret import kept_secret
from gateway.ledger.glance import Glance
from gateway.ledger.place import make_ledger, savings_against
from gateway.ledger.savings import Savings
from gateway.ledger.store import reading
from gateway.ledger.usage import GROUPS, Line, usage
from gateway.state.store import StoreAway
from gateway.tenancy import make_office, make_shared
from protocol.chat import parse_object
from protocol.errors import BadRequest, SettingsError, StateUnavailable
from protocol.settings import ServerSettings, Settings
from protocol.tenancy import state_folder

__all__ = ["AdminApi"]

ADMIN_PREFIX = "sk-chorus-admin-"
MAX_BODY = 64 * 1024
MAX_ASKED = 256 * 1024
"""Of what the playground asks."""
DAY_S = 86_400.0


class AdminApi:
    """The routes below `/admin`, and the dashboard. `server` is where the gateway really listens, `in_force()` the
    settings now, `status()` the supervisor's report, `metrics` the folder that workers write into. Raises
    `SettingsError` where no admin key is set and none can be kept."""

    def __init__(
        self,
        settings: Settings,
        *,
        server: ServerSettings | None = None,
        in_force: Callable[[], Settings] | None = None,
        status: Callable[[], dict[str, Any]] = dict,
        metrics: Path | None = None,
    ) -> None:
        self._settings = settings
        self._shared = make_shared(settings)
        folder = state_folder(settings.state)
        given = settings.keys.admin
        key = given.get_secret_value() if given else kept_secret(folder / "admin.key", ADMIN_PREFIX)
        self.door = AdminDoor(key.encode(), settings.server.trusted_proxies)
        self._office = make_office(settings, self._shared)
        self._site, self._playground = Site(), Playground(server or settings.server)
        self._figures = Figures(
            Glance(lambda: make_ledger(settings)),
            self._shared.store,
            in_force or (lambda: settings),
            status,
            metrics,
        )

    def routes(self) -> list[web.RouteDef]:
        """What needs the admin key, or a session; to be added to the admin server."""
        figures = self._figures
        return [
            web.post("/admin/keys", self._create),
            web.get("/admin/keys", self._list),
            web.get("/admin/keys/{name}", self._show),
            web.patch("/admin/keys/{name}", self._change),
            web.post("/admin/keys/{name}/rotate", self._rotate),
            web.post("/admin/keys/{name}/revoke", self._revoke),
            web.get("/admin/audit", self._audit),
            web.get("/admin/usage", self._usage),
            web.get("/admin/live", self._figure(figures.live)),
            web.get("/admin/timeline", self._figure(figures.timeline)),
            web.get("/admin/requests", self._figure(figures.requests)),
            web.get("/admin/requests/{name}", self._figure(figures.request)),
            web.get("/admin/requests/{name}/text", self._text),
            web.get("/admin/savings", self._figure(figures.savings)),
            web.get("/admin/frontier", self._figure(figures.frontier)),
            web.get("/admin/routers", self._figure(figures.routers)),
            web.get("/admin/names", self._figure(figures.names)),
            web.get("/admin/budgets", self._budgets),
            web.post("/admin/playground/models", self._play_models),
            web.post("/admin/playground/chat", self._play),
        ]

    def open_routes(self) -> list[web.RouteDef]:
        """What needs none: logging in, and the page."""
        return [*self.door.routes(), *self._site.routes()]

    async def close(self) -> None:
        """Close the stores, and what the playground has open."""
        await self._playground.close()
        await self._shared.store.close()

    async def _create(self, request: web.Request) -> web.Response:
        actor = self._admit(request)
        order = Order.parse(await _body(request))
        key, secret = await _answered(self._office.create(order, actor))
        return web.json_response({**_told(key), "secret": secret}, status=201, headers=_SECRET)

    async def _list(self, request: web.Request) -> web.Response:
        self._admit(request)
        keys = await _answered(self._office.keys())
        return web.json_response({"object": "list", "data": [_told(key) for key in keys]})

    async def _show(self, request: web.Request) -> web.Response:
        self._admit(request)
        return web.json_response(_told(await _answered(self._office.find(request.match_info["name"]))))

    async def _change(self, request: web.Request) -> web.Response:
        actor = self._admit(request)
        key = await _answered(self._office.change(request.match_info["name"], await _body(request), actor))
        return web.json_response(_told(key))

    async def _rotate(self, request: web.Request) -> web.Response:
        actor = self._admit(request)
        terms = dict(await _body(request))
        grace_s = terms.pop("grace_s", 0)
        if (
            isinstance(grace_s, bool)
            or not isinstance(grace_s, (int, float))
            or not 0 <= grace_s <= 30 * DAY_S
        ):
            raise BadRequest("'grace_s' must be seconds, at most 30 days.", param="grace_s")
        name = request.match_info["name"]
        key, secret = await _answered(self._office.rotate(name, actor, grace_s=grace_s, terms=terms))
        return web.json_response({**_told(key), "secret": secret}, headers=_SECRET)

    async def _revoke(self, request: web.Request) -> web.Response:
        actor = self._admit(request)
        key = await _answered(self._office.revoke(request.match_info["name"], actor))
        return web.json_response(_told(key))

    async def _audit(self, request: web.Request) -> web.Response:
        self._admit(request)
        count = _number(request, "limit", 100, 1000)
        return web.json_response({"object": "list", "data": await _answered(self._office.audit(count))})

    async def _usage(self, request: web.Request) -> web.Response:
        self._admit(request)
        by = tuple(filter(None, request.query.get("by", "key").split(",")))
        if not by or not set(by) <= set(GROUPS):
            raise BadRequest(f"'by' must be some of {', '.join(GROUPS)}.", param="by")
        since = time.time() - _number(request, "days", 30, 36_500) * DAY_S
        lines, saved = await asyncio.to_thread(self._added_up, by, since, request.query.get("against"))
        rows = [
            {
                **dict(zip(by, line.group, strict=True)),
                "requests": line.requests,
                "calls": line.calls,
                "prompt_tokens": line.prompt_tokens,
                "completion_tokens": line.completion_tokens,
                "cost_usd": line.cost_usd,
            }
            for line in lines
        ]
        told = {"savings": saved.wire()} if saved else {}
        return web.json_response({"object": "list", "data": rows, **told})

    def _added_up(
        self, by: tuple[str, ...], since: float, against: str | None
    ) -> tuple[list[Line], Savings | None]:
        with closing(make_ledger(self._settings)) as ledger:
            try:
                saved = (
                    savings_against(self._settings, reading(ledger), against, since, by) if against else None
                )
            except SettingsError as error:
                raise BadRequest(error.message, param="against") from None
            return usage(ledger, by, since), saved

    def _figure(
        self, told: Callable[[web.Request], Awaitable[dict[str, Any]]]
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """A route that tells what `told` reads, to whoever is admitted."""

        async def route(request: web.Request) -> web.Response:
            self._admit(request)
            return web.json_response(await told(request))

        return route

    async def _text(self, request: web.Request) -> web.Response:
        actor = self._admit(request)
        told = await self._figures.text(request)
        await _answered(self._office.looked(told["request"], told["key"], actor))
        return web.json_response(told)

    async def _budgets(self, request: web.Request) -> web.Response:
        self._admit(request)
        now = time.time()
        keys = [key for key in await _answered(self._office.keys()) if key.state(now) == "active"]
        return web.json_response(await _answered(self._figures.budgets(keys)))

    async def _play_models(self, request: web.Request) -> web.Response:
        self._admit(request)
        return await self._playground.models(await _body(request))

    async def _play(self, request: web.Request) -> web.StreamResponse:
        self._admit(request)
        return await self._playground.chat(request, await _body(request, MAX_ASKED))

    def _admit(self, request: web.Request) -> str:
        """Who acts, for the audit log. Raises `Unauthenticated`, `Forbidden`."""
        return self.door.admit(request)


_SECRET: Mapping[str, str] = {"cache-control": "no-store"}


def _told(key: Key) -> dict[str, Any]:
    return {**key.wire(), "object": "key", "state": key.state(time.time())}


async def _body(request: web.Request, most: int = MAX_BODY) -> dict[str, Any]:
    raw = bytearray()
    while len(raw) <= most and (data := await request.content.readany()):
        raw += data
    if len(raw) > most:
        raise BadRequest("The body is too large.")
    return parse_object(bytes(raw)) if raw else {}


async def _answered(deed: Any) -> Any:
    try:
        return await deed
    except StoreAway:
        raise StateUnavailable("The store of keys does not answer; try again soon.") from None


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    given = request.query.get(name, str(default))
    if not given.isdigit() or not 1 <= int(given) <= most:
        raise BadRequest(f"'{name}' must be a whole number from 1 to {most}.", param=name)
    return int(given)
