"""Whose word counts on where a request comes from."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.composition import make_catalogue
from gateway.generation import Generation
from gateway.ids import Ids
from gateway.observers import Observers
from gateway.telemetry import Telemetry
from gateway.tenancy import Tenancy
from protocol.errors import SettingsError
from tests.gateway.conftest import settings_for


async def seen(peer: str, headers: dict[str, str], trusted: list[str]) -> tuple[Any, str]:
    """Client and scheme of a request from `peer`, as they reach what answers it."""
    settings = settings_for("http://a/v1", {"one": {}}, server={"trusted_proxies": trusted})
    scopes: list[Any] = []

    async def pages(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    catalogue = make_catalogue(settings, {})
    shared = Tenancy(settings), Telemetry(()), Observers(), Ids()
    generation = Generation(settings, catalogue, *shared, pages)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/page",
        "scheme": "http",
        "client": (peer, 1234),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await generation.app(scope, None, None)
    return scopes[0]["client"][0], scopes[0]["scheme"]


TOLD = {"x-forwarded-for": "6.6.6.6, 203.0.113.9, 10.0.0.7", "x-forwarded-proto": "https"}


@pytest.mark.parametrize(
    ("peer", "trusted", "client", "scheme"),
    [
        ("10.0.0.1", [], "10.0.0.1", "http"),
        ("198.51.100.1", ["10.0.0.0/8"], "198.51.100.1", "http"),
        ("10.0.0.1", ["10.0.0.0/8"], "203.0.113.9", "https"),
        ("10.0.0.1", ["10.0.0.1"], "10.0.0.7", "https"),
    ],
)
async def test_only_trusted_proxies_are_believed(
    peer: str, trusted: list[str], client: str, scheme: str
) -> None:
    """The client is the last one that is no trusted proxy; what it says of itself, and what others say, counts for
    nothing."""
    assert await seen(peer, TOLD, trusted) == (client, scheme)


def test_networks_are_checked() -> None:
    """What is no network stops the start."""
    with pytest.raises(SettingsError, match="not an address or network"):
        settings_for("http://a/v1", {"one": {}}, server={"trusted_proxies": ["10.0.0.0/33"]})
