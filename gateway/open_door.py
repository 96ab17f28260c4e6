"""Whether people whom nobody knows may ask models, and so spend money."""

from __future__ import annotations

from ipaddress import ip_address

from protocol.settings import Settings

__all__ = ["OPEN", "anybody_may_ask"]

OPEN = "Set keys.required or server.master_key, listen on 127.0.0.1, or let your network decide who comes in."
"""What to do about it."""


def anybody_may_ask(settings: Settings, host: str) -> bool:
    """Whether a gateway that listens on `host` is reached from other machines and asks for no key."""
    if settings.server.master_key is not None or settings.keys.required:
        return False
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"
