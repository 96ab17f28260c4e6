"""TLS on the public port, whose certificate can be renewed while it serves.

The listener has one context for its whole life. When a client says hello, it is handed the context that is current
then; so a renewed certificate concerns new connections alone, and files that do not fit each other never come into
force.
"""

from __future__ import annotations

import ssl

from backends.certificates import load_pair
from protocol.errors import SettingsError
from protocol.network import TlsSettings

__all__ = ["PublicTls", "server_context"]


def server_context(settings: TlsSettings) -> ssl.SSLContext:
    """A context that shows the certificate of `settings`: TLS 1.2 and newer, HTTP/1.1. Raises `SettingsError`."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        load_pair(context, settings.certificate, settings.key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        told = f"{settings.certificate} with {settings.key}"
        raise SettingsError(f"server.tls: cannot use {told}: {error}.") from None
    return context


class PublicTls:
    """`listening` is the listener's context; connections get the one given last, to `show` or at first."""

    def __init__(self, first: ssl.SSLContext) -> None:
        self._current = first
        self.listening = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.listening.minimum_version = ssl.TLSVersion.TLSv1_2
        self.listening.set_alpn_protocols(["http/1.1"])
        # Called for every hello, also for one that names no server.
        self.listening.sni_callback = self._hello

    def show(self, context: ssl.SSLContext) -> None:
        """Use `context` for connections from now on."""
        self._current = context

    def _hello(self, connection: ssl.SSLObject, name: str | None, listening: ssl.SSLContext) -> None:
        connection.context = self._current
