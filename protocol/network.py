"""Settings of the network around the gateway: TLS, proxies before and behind it, browsers of other origins."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from protocol.frozen import Frozen

__all__ = [
    "ClientCertificate",
    "CorsSettings",
    "Network",
    "OutboundSettings",
    "ProxyUrl",
    "TlsSettings",
    "Url",
]

_ORIGIN = re.compile(r"https?://[A-Za-z0-9.-]+(:\d{1,5})?|https?://\[[0-9a-fA-F:]+\](:\d{1,5})?|null")


def _network(value: str) -> str:
    try:
        ip_network(value)
    except ValueError as error:
        raise ValueError(f"not an address or network, such as 10.0.0.0/8: {error}") from None
    return value


def _origin(value: str) -> str:
    if value != "*" and not _ORIGIN.fullmatch(value):
        raise ValueError("an origin is scheme://host[:port] without a path, or '*'")
    return value


def _proxy_url(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith("http://"):
        raise ValueError("a proxy has an http:// URL; TLS to a backend goes through it in a tunnel")
    _url(value.get_secret_value())
    return value


def _url(value: str) -> str:
    try:
        urlsplit(value).port  # noqa: B018 - what it says of a port that is none is wanted
    except ValueError:
        # Without the value: there may be a password in it.
        raise ValueError("not a URL: its host or port cannot be read") from None
    return value


Network = Annotated[str, AfterValidator(_network)]
Url = Annotated[str, AfterValidator(_url)]
ProxyUrl = Annotated[SecretStr, AfterValidator(_proxy_url)]


class TlsSettings(Frozen):
    """TLS on the public port, 1.2 and newer. Renewed files are picked up by a reload, without dropping a connection."""

    certificate: Path = Field(description="PEM file: the certificate, then the chain; relative to this file")
    key: Path = Field(description="PEM file of its private key, not encrypted; relative to this file")


class CorsSettings(Frozen):
    """Which web pages may call the gateway from a browser."""

    origins: tuple[Annotated[str, AfterValidator(_origin)], ...] = Field(
        min_length=1, description="such as https://app.example; '*' is every origin"
    )
    credentials: bool = Field(
        False, description="whether cookies and the like may be sent; never together with '*'"
    )
    max_age_s: int = Field(
        600, ge=0, le=86_400, description="how long a browser may remember the answer, in seconds"
    )

    @model_validator(mode="after")
    def _not_everyone_with_credentials(self) -> CorsSettings:
        if self.credentials and "*" in self.origins:
            raise ValueError("credentials must not be allowed to every origin; name the origins")
        return self


class ClientCertificate(Frozen):
    """What we show to a server that asks who we are (mutual TLS)."""

    certificate: Path = Field(description="PEM file, the chain included; relative to this file")
    key: Path = Field(description="PEM file of its private key, not encrypted; relative to this file")


class OutboundSettings(Frozen):
    """The way to backends over HTTP(S); `models.NAME.openai` may say otherwise for one of them."""

    proxy: ProxyUrl | None = Field(
        None, description="http://[user:password@]host:port; TLS goes through it in a tunnel"
    )
    no_proxy: tuple[str, ...] = Field(
        (), description="hosts, .domains, addresses and networks that are reached directly; '*' is all"
    )
    environment: bool = Field(
        True,
        description="without `proxy`, follow HTTPS_PROXY, HTTP_PROXY and NO_PROXY, as other programs do; "
        "loopback addresses are always reached directly then",
    )
    ca_file: Path | None = Field(
        None,
        description="PEM file of the certificate authorities to trust instead of the system's; relative to this file",
    )
