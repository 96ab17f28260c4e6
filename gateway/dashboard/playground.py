"""The playground's way to the gateway: a chat request is passed on to the public port with the key that its caller
chose, and with no other. The admin key stays here."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from protocol.errors import BadRequest, ChorusError
from protocol.settings import ServerSettings

__all__ = ["Playground"]

KEY = re.compile(r"[\x21-\x7e]{1,512}")
FIELDS = ("model", "messages", "max_tokens", "temperature", "seed", "chorus")
"""What of a chat request is passed on."""
TOLD = ("content-type", "x-request-id", "retry-after")
"""Headers of the gateway's answer that are passed back."""
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - not bound, replaced
CONNECT_S = 5.0


class GatewayAway(ChorusError):
    """The public port does not answer."""

    status, code = 502, "gateway_unreachable"


class Playground:
    """Reaches the public port of `server`."""

    def __init__(self, server: ServerSettings) -> None:
        host = ANYWHERE.get(server.host, server.host)
        host = f"[{host}]" if ":" in host else host
        self._base = f"{'https' if server.tls else 'http'}://{host}:{server.port}"
        self._tls = server.tls
        self._client: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End its connections."""
        if self._client is not None:
            await self._client.close()

    async def models(self, body: Mapping[str, Any]) -> web.Response:
        """The names that the key of `body` may use."""
        try:
            async with self._session().get(
                f"{self._base}/v1/models", headers=_headers(body), ssl=self._trust()
            ) as answer:
                return web.Response(
                    body=await answer.read(), status=_status(answer.status), content_type="application/json"
                )
        except aiohttp.ClientError:
            raise _away() from None

    async def chat(self, request: web.Request, body: Mapping[str, Any]) -> web.StreamResponse:
        """Stream the answer to the chat request in `body`. A caller that leaves ends it."""
        asked = body.get("request")
        if not isinstance(asked, dict):
            raise BadRequest("'request' must be a chat request.", param="request")
        sent = {name: asked[name] for name in FIELDS if name in asked}
        sent |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {**_headers(body), "content-type": "application/json"}
        try:
            async with self._session().post(
                f"{self._base}/v1/chat/completions",
                data=orjson.dumps(sent),
                headers=headers,
                ssl=self._trust(),
            ) as answer:
                told = {name: answer.headers[name] for name in TOLD if name in answer.headers}
                told["cache-control"] = "no-store"
                response = web.StreamResponse(status=_status(answer.status), headers=told)
                await response.prepare(request)
                async for data in answer.content.iter_any():
                    await response.write(data)
                await response.write_eof()
                return response
        except aiohttp.ClientError:
            raise _away() from None

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            # Streams may take as long as the gateway's own deadline allows; no cookie is ever kept or sent.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S)
            self._client = aiohttp.ClientSession(timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())
        return self._client

    def _trust(self) -> ssl.SSLContext | bool:
        """The gateway's own certificate, whatever name it is for: the address is this machine's."""
        if self._tls is None:
            return True
        context = ssl.create_default_context(cafile=str(self._tls.certificate))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.check_hostname = False
        return context


def _headers(body: Mapping[str, Any]) -> dict[str, str]:
    """The caller's own key, where there is one."""
    key = body.get("key") or ""
    if not isinstance(key, str) or (key and not KEY.fullmatch(key)):
        raise BadRequest("'key' must be a key's secret.", param="key")
    return {"authorization": f"Bearer {key}"} if key else {}


def _status(status: int) -> int:
    """That the *playground's* key was refused must not look like the end of the session."""
    return 422 if status == 401 else status


def _away() -> GatewayAway:
    return GatewayAway("The gateway's public port does not answer.")
