"""The way to a backend: through which proxy, trusting whom, and shown as whom.

What a deployment's own settings say goes before `outbound`, and that before the environment. HTTPS_PROXY, HTTP_PROXY
and NO_PROXY are read as most programs read them (also in small letters, which win); ALL_PROXY is not. SSL_CERT_FILE
and SSL_CERT_DIR are OpenSSL's own, and count wherever no `ca_file` is set.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit

from backends.certificates import load_pair
from protocol.errors import SettingsError
from protocol.network import OutboundSettings
from protocol.settings import OpenAIModel

__all__ = ["Way", "bypasses", "find_way"]

LOOPBACK = ("localhost", ".localhost", "127.0.0.0/8", "::1")


@dataclass(frozen=True, slots=True)
class Way:
    """`proxy`: its URL, or None; `context`: None means the system's certificate authorities. Two are equal when they
    were made of the same proxy and the same contents of files."""

    proxy: str | None = field(default=None, repr=False)
    files: tuple[bytes, ...] = field(default=(), repr=False)
    context: ssl.SSLContext | None = field(default=None, compare=False, repr=False)


def find_way(
    name: str, upstream: OpenAIModel, outbound: OutboundSettings, environ: Mapping[str, str] = os.environ
) -> Way:
    """The way to `upstream`, a deployment of the model `name`. Raises `SettingsError` for files that cannot be used."""
    url = urlsplit(upstream.base_url)
    if url.scheme == "unix":
        return Way()
    proxy = _proxy(upstream, outbound, url.scheme, url.hostname or "", environ)
    if url.scheme == "http":
        return Way(proxy)
    ca, shown = upstream.ca_file or outbound.ca_file, upstream.client_certificate
    if ca is None and shown is None:
        return Way(proxy)
    where = f"models.{name}.openai"
    pair = (shown.certificate, shown.key) if shown else ()
    files = tuple(_read(where, path) for path in ((ca,) if ca else ()) + pair)
    try:
        context = ssl.create_default_context(cafile=ca)
        if shown:
            load_pair(context, shown.certificate, shown.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        told = ", ".join(map(str, ((ca,) if ca else ()) + pair))
        raise SettingsError(f"{where}: cannot use {told}: {error}.") from None
    return Way(proxy, files, context)


def bypasses(host: str, rules: Iterable[str]) -> bool:
    """Whether `host` is reached directly by `rules`: names, `.domains` (a name alone means its subdomains too),
    addresses, networks, `*`."""
    host = host.lower().rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        address = None
    for rule in (rule.strip().lower() for rule in rules):
        if rule == "*":
            return True
        if address is not None:
            try:
                if address in ip_network(rule, strict=False):
                    return True
            except ValueError:
                continue  # a name
        else:
            domain = rule.removeprefix("*").lstrip(".")
            if domain and (host == domain or host.endswith(f".{domain}")):
                return True
    return False


def _proxy(
    upstream: OpenAIModel, outbound: OutboundSettings, scheme: str, host: str, environ: Mapping[str, str]
) -> str | None:
    if upstream.proxy is not None:
        return None if isinstance(upstream.proxy, str) else upstream.proxy.get_secret_value()
    if bypasses(host, outbound.no_proxy):
        return None
    if outbound.proxy is not None:
        return outbound.proxy.get_secret_value()
    if not outbound.environment:
        return None
    none = _variable(environ, "no_proxy").split(",")
    return None if bypasses(host, (*LOOPBACK, *none)) else _variable(environ, f"{scheme}_proxy") or None


def _variable(environ: Mapping[str, str], name: str) -> str:
    return environ.get(name) or environ.get(name.upper()) or ""


def _read(where: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{where}: cannot read {path}: {error.strerror}.") from None
