"""What is not hot: the model list, the probes, the metrics, and every error of routes that do not exist.
FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from gateway.catalogue import Catalogue
from gateway.keys.key import Key
from gateway.openapi import document
from gateway.surfaces import SURFACES
from gateway.telemetry import CONTENT_TYPE, Telemetry
from protocol.errors import BadRequest, ChorusError, InternalError, MethodNotAllowed, ModelNotFound, NotFound

__all__ = ["KEY", "PROBES", "Lifespan", "make_pages"]

Lifespan = Callable[[Any], AbstractAsyncContextManager[None]]

KEY = "chorus.key"
"""Where the ASGI scope of a page behind the door holds the caller's `Key`."""

LIVE = ("/livez", "/health", "/health/liveliness", "/health/liveness")
READY = ("/readyz", "/health/readiness")
PROBES = frozenset((*LIVE, *READY, "/metrics"))
"""What is asked every few seconds by who watches; not told in the access log."""


def make_pages(
    catalogue: Callable[[], Catalogue],
    telemetry: Telemetry,
    *,
    created: int,
    degraded: Callable[[], list[str]],
    leaving: Callable[[], bool],
    lifespan: Lifespan,
) -> FastAPI:
    """`catalogue()` is the one in force. `created`: seconds since the epoch, told as every model's time of creation.
    `degraded()` lists what does not work though requests are answered; `leaving()` says that this gateway is about to
    end."""
    # The hot routes are not FastAPI's: its own document would miss the very routes one looks for.
    pages = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)

    def card(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": created, "owned_by": "chorus"}

    def get(path: str) -> Callable[[Any], Any]:
        """A page; whoever looks with HEAD whether it is there, as uptime monitors do, is told."""
        return pages.api_route(path, methods=["GET", "HEAD"])

    @get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in _names(request, catalogue())]}

    @get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> dict[str, Any]:
        names = _names(request, catalogue())
        if name not in names:
            raise ModelNotFound(name, names)
        return card(name)

    @get("/openapi.json")
    async def openapi() -> dict[str, Any]:
        return document()

    async def live() -> dict[str, str]:
        return {"status": "alive"}

    async def ready() -> JSONResponse:
        if leaving():
            return JSONResponse({"status": "draining"}, 503)
        components = await _local_health(catalogue())
        whole = all(components.values())
        states = {name: "ready" if up else "not ready" for name, up in components.items()}
        return JSONResponse(
            {"status": "ready" if whole else "not ready", "components": states, "degraded": degraded()},
            200 if whole else 503,
        )

    for path in LIVE:
        get(path)(live)
    for path in READY:
        get(path)(ready)

    @get("/metrics")
    async def metrics() -> Response:
        telemetry.flush()  # here, in the thread that counts
        return Response(await asyncio.to_thread(telemetry.text), media_type=CONTENT_TYPE)

    _speak_openai(pages)
    return pages


def _names(request: Request, catalogue: Catalogue) -> list[str]:
    """The names that the caller may use."""
    key: Key = request.scope[KEY]
    return key.names(catalogue.names)


async def _local_health(catalogue: Catalogue) -> dict[str, bool]:
    """Which of our own processes answer; hosted models are never asked, for a probe must cost nothing."""
    one_of_each = {model.local: model for model in catalogue.models.values() if model.local}
    answers = await asyncio.gather(*(model.deployments[0].healthy() for model in one_of_each.values()))
    return dict(zip(map(str, one_of_each), answers, strict=True))


_ROUTES = (
    *dict.fromkeys(path for _, path in SURFACES),
    "/v1/models",
    *LIVE,
    *READY,
    "/metrics",
    "/openapi.json",
)


def _no_route(path: str) -> NotFound:
    """Most often a base URL has `/v1` once too seldom or too often, or ends with a slash."""
    rest = path[:128].rstrip("/")
    while rest.startswith("/v1/"):
        rest = rest.removeprefix("/v1")
    meant = f"/v1{rest}"
    close = [meant] if meant in _ROUTES else get_close_matches(path[:128], _ROUTES, n=1, cutoff=0.8)
    hint = f"; did you mean {close[0]}?" if close else "."
    return NotFound(f"There is no route {path[:200]}{hint}")


def _speak_openai(pages: FastAPI) -> None:
    """Every error in OpenAI's shape; FastAPI's own `detail` never shows."""

    def told(error: ChorusError, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers={**(headers or {}), **error.headers()})

    @pages.exception_handler(ChorusError)
    async def ours(request: Request, error: ChorusError) -> JSONResponse:
        return told(error)

    @pages.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            return told(MethodNotAllowed(f"{request.url.path} does not answer {request.method}."), headers)
        if error.status_code == 404:
            return told(_no_route(request.url.path), headers)
        other = BadRequest(str(error.detail))
        other.status = error.status_code
        return told(other, headers)

    @pages.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        refused = BadRequest(str(first["msg"]), param=".".join(map(str, first["loc"])))
        refused.status = 422
        return told(refused)

    @pages.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        return told(InternalError("An internal error occurred; it is logged."))
