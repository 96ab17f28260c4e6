"""The supervisor's own HTTP server: probes, merged metrics, the admin API and the dashboard, apart from the workers'
busy loops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from secrets import token_hex
from socket import socket
from typing import Any

from aiohttp import web

from gateway.admin_api import AdminApi
from gateway.dashboard.site import GUARDS
from gateway.engine_metrics import engine_metrics
from gateway.exchange import request_id
from gateway.telemetry import CONTENT_TYPE, merged
from protocol.errors import ChorusError, InternalError, MethodNotAllowed, NotFound

__all__ = ["admin_server"]

log = logging.getLogger("chorus.gateway")

Status = Callable[[], dict[str, Any]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def admin_server(
    listener: socket,
    status: Status,
    metrics: Path,
    api: AdminApi | None = None,
    engines: Callable[[], Path | None] = lambda: None,
    own: Callable[[], bytes] = bytes,
) -> AsyncIterator[None]:
    """Serve on `listener`. `status()` tells `{"status": "ready" | …, "components": {…}}`; `metrics` is the
    folder that the workers write into; `api` is closed in the end; `engines()` is the
    socket of the engine host, whose metrics are shown along, as are the supervisor's `own()`."""

    async def live(request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def ready(request: web.Request) -> web.Response:
        told = status()
        return web.json_response(told, status=200 if told["status"] == "ready" else 503)

    async def state(request: web.Request) -> web.Response:
        return web.json_response(status())

    async def exposition(request: web.Request) -> web.Response:
        body = await asyncio.to_thread(merged, metrics) + await engine_metrics(engines()) + own()
        return web.Response(body=body, headers={"content-type": CONTENT_TYPE})

    application = web.Application(middlewares=[_speak_openai])
    application.on_response_prepare.append(_labelled)
    application.add_routes(
        [
            web.get("/livez", live),
            web.get("/readyz", ready),
            web.get("/status", state),
            web.get("/metrics", exposition),
        ]
    )
    if api is not None:
        application.add_routes([*api.routes(), *api.open_routes()])
        application.on_response_prepare.append(_guarded)
        application.middlewares.append(api.door.renewing)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    try:
        yield
    finally:
        await runner.cleanup()
        if api is not None:
            await api.close()


async def _labelled(request: web.Request, response: web.StreamResponse) -> None:
    """Every answer has an id: the public port's where its answer is passed on, else the caller's where he sent one;
    which server it is concerns nobody."""
    if "x-request-id" not in response.headers:
        given = request.headers.get("x-request-id", "").encode("latin-1", "replace")
        response.headers["x-request-id"] = request_id({b"x-request-id": given}, token_hex(16))
    response.headers.pop("server", None)


async def _guarded(request: web.Request, response: web.StreamResponse) -> None:
    """What people look at is for this origin alone, and figures are kept by nobody on the way."""
    if request.path.startswith(("/admin", "/dashboard")) or request.path == "/":
        response.headers.update(GUARDS)
        response.headers.setdefault("cache-control", "no-store")


@web.middleware
async def _speak_openai(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors in the same shape as everywhere."""
    allow: dict[str, str] = {}
    try:
        return await handler(request)
    except ChorusError as told:
        error: Any = told
    except web.HTTPMethodNotAllowed as refused:
        allow = {"allow": refused.headers["allow"]}
        error = MethodNotAllowed(f"{request.path} does not answer {request.method}.")
    except web.HTTPNotFound:
        error = NotFound(f"There is no route {request.path}.")
    except (web.HTTPRedirection, ConnectionError):  # the caller is sent elsewhere, or has left
        raise
    except Exception:
        log.exception("a bug of ours")
        error = InternalError("An internal error occurred; it is logged.")
    return web.json_response(error.body(), status=error.status, headers={**allow, **error.headers()})
