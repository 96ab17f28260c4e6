"""Opening a connection: where a base URL leads, name look-up, TCP, Unix sockets, TLS, and the way through a
proxy."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from backends._http1_errors import ConnectError, ConnectTimeout, TlsError

__all__ = ["Dialler", "Origin"]

P = TypeVar("P", bound=asyncio.Protocol)

MAX_PROXY_HEAD = 16 * 1024


@dataclass(frozen=True, slots=True)
class Origin:
    """A base URL taken apart. `unix:///run/x.sock` is the server behind that socket, its paths below
    `/v1`."""

    host: str
    port: int
    tls: bool
    prefix: str
    socket_path: str | None = None
    credentials: str | None = None
    """`user:password` of a proxy; refused anywhere else."""

    @classmethod
    def parse(cls, url: str, *, proxy: bool = False) -> Origin:
        """Raises `ValueError` for what is not an http, https or unix URL, or carries credentials without
        need."""
        parts = urlsplit(url)
        if parts.scheme == "unix":
            if not parts.path:
                raise ValueError("a unix:// URL needs the path of a socket")
            return cls("localhost", 80, False, "/v1", parts.path)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http://, https:// or unix:// URL")
        credentials = None
        if "@" in parts.netloc:
            if not proxy:
                raise ValueError("credentials do not belong in a base URL; give an API key")
            credentials = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        tls = parts.scheme == "https"
        host = parts.hostname.encode("idna").decode("ascii")
        return cls(host, parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"), None, credentials)

    @property
    def authority(self) -> str:
        """`host:port`, IPv6 addresses in brackets."""
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def host_header(self) -> str:
        """What the `host` header says: the port only where it is not the scheme's own."""
        usual = self.port == (443 if self.tls else 80)
        return self.authority.rpartition(":")[0] if usual else self.authority


class Dialler:
    """Opens connections to `origin`, through `proxy` where there is one. `context` None: the system's CAs."""

    def __init__(
        self, origin: Origin, *, connect_s: float, context: ssl.SSLContext | None, proxy: Origin | None
    ) -> None:
        self._origin, self._connect_s = origin, connect_s
        self._context, self._proxy = context, None if origin.socket_path else proxy

    async def dial(self, protocol: Callable[[], P]) -> P:
        """A connected `protocol()`. Raises `ConnectError`, and closes what it opened when it is cancelled."""
        try:
            async with asyncio.timeout(self._connect_s):
                return await self._dial(protocol)
        except TimeoutError as error:
            raise ConnectTimeout(f"no connection within {self._connect_s:g} s") from error
        except ssl.SSLError as error:
            raise TlsError(f"no TLS session: {_why(error)}") from error
        except OSError as error:
            raise ConnectError(f"no connection: {_why(error)}") from error

    async def _dial(self, protocol: Callable[[], P]) -> P:
        loop = asyncio.get_running_loop()
        origin, proxy = self._origin, self._proxy
        if origin.socket_path is not None:
            return (await loop.create_unix_connection(protocol, origin.socket_path))[1]
        sock = await _reach(proxy or origin, self._connect_s)
        if not origin.tls:
            return (await loop.create_connection(protocol, sock=sock))[1]
        try:
            if proxy is not None:
                await _tunnel(sock, origin, proxy)
            if self._context is None:
                # Reading the system's CAs takes tens of milliseconds: done once, and not in the event loop.
                self._context = await asyncio.to_thread(ssl.create_default_context)
        except BaseException:
            sock.close()
            raise
        connecting = loop.create_connection(
            protocol, sock=sock, ssl=self._context, server_hostname=origin.host
        )
        return (await connecting)[1]


def _why(error: OSError) -> str:
    """The reason in the system's words, which hold no address, unlike those of the exception."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.partition(",")[0]  # then comes the host that the certificate is not for
    if isinstance(error, ssl.SSLError):
        return error.reason or type(error).__name__
    if isinstance(error, socket.gaierror):
        return error.strerror or "unknown host"
    return os.strerror(error.errno) if error.errno else type(error).__name__


async def _reach(origin: Origin, budget_s: float) -> socket.socket:
    """A TCP connection to the first address that takes one. Each gets its share of the time that is left,
    so that one dead address (IPv6 without a route, say) does not use up the others'. Raises `OSError`."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + budget_s
    addresses = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    failure: OSError = OSError("the host has no address")
    for i, (family, kind, protocol, _, address) in enumerate(addresses):
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            async with asyncio.timeout((ends - loop.time()) / (len(addresses) - i)):
                await loop.sock_connect(sock, address)
            return sock
        except OSError as error:  # TimeoutError is one
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def _tunnel(sock: socket.socket, origin: Origin, proxy: Origin) -> None:
    """Ask a proxy to connect `sock` through to `origin`. Raises `ConnectError` when it does not."""
    loop = asyncio.get_running_loop()
    lines = [f"CONNECT {origin.authority} HTTP/1.1", f"host: {origin.authority}"]
    if proxy.credentials is not None:
        lines.append(proxy_authorization(proxy.credentials))
    await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode("latin-1"))
    head = b""
    while b"\r\n\r\n" not in head:
        data = await loop.sock_recv(sock, 4096)
        head += data
        if not data or len(head) > MAX_PROXY_HEAD:
            raise ConnectError("no connection: the proxy closed it")
    version, _, rest = head.partition(b" ")
    # A server speaks first in no protocol that runs inside: bytes after the head would not be the origin's.
    if not version.startswith(b"HTTP/1.") or not rest.startswith(b"200") or not head.endswith(b"\r\n\r\n"):
        raise ConnectError(f"no connection: the proxy answered {rest[:3].decode('latin-1')!r}")


def proxy_authorization(credentials: str) -> str:
    """The header line that names us to a proxy."""
    return f"proxy-authorization: Basic {b64encode(credentials.encode()).decode('ascii')}"
