"""The page's files, as they are shipped, under a policy that lets the browser run and load nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from protocol.errors import NotFound

__all__ = ["GUARDS", "POLICY", "Site"]

STATIC = Path(__file__).parent / "static"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # No text becomes markup: the browser refuses innerHTML and its like.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
GUARDS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Headers of everything below `/dashboard` and `/admin`."""


class Site:
    """All files are read once; nothing else can be asked for."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in KINDS}
        self._marks = {
            name: f'"{hashlib.sha256(data).hexdigest()[:24]}"' for name, data in self._files.items()
        }

    def routes(self) -> list[web.RouteDef]:
        """To be added to the admin server; they need no key, for there is nothing of anybody's in them."""
        return [
            web.get("/", self._enter),
            web.get("/dashboard", self._enter),
            web.get("/dashboard/", self._page),
            web.get("/dashboard/{file}", self._file),
        ]

    async def _enter(self, request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"location": "/dashboard/"})

    async def _page(self, request: web.Request) -> web.Response:
        return self._told(request, "index.html")

    async def _file(self, request: web.Request) -> web.Response:
        return self._told(request, request.match_info["file"])

    def _told(self, request: web.Request, name: str) -> web.Response:
        if name not in self._files:
            raise NotFound(f"There is no route {request.path}.")
        headers = {"etag": self._marks[name], "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == self._marks[name]:
            return web.Response(status=304, headers=headers)
        kind = {"content-type": KINDS[Path(name).suffix]}
        return web.Response(body=self._files[name], headers={**headers, **kind})
