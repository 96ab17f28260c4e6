"""Certificates on disk: loaded without ever asking anybody for a password, and how long they are good."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["good_until", "load_pair"]


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have `context` show the chain in the PEM file `certificate`. Raises `OSError` (`ssl.SSLError` is one) or
    `ValueError` for files that cannot be read, do not fit each other, or are encrypted."""
    context.load_cert_chain(certificate, key, password=_no_password)


def good_until(certificate: Path, key: Path) -> datetime | None:
    """When the pair expires; None when it has, or is not good yet. Raises as `load_pair` does.

    The standard library tells this of a peer only: so a client that trusts this very certificate meets a server that
    shows it, both in memory.
    """
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pair(server_side, certificate, key)
    client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_side.check_hostname = False
    client_side.load_verify_locations(certificate)
    client_side.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server)
    told = None
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError:
            return None
        told = client.getpeercert()
    if not told:
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(str(told["notAfter"])), UTC)


def _no_password() -> str:
    # Without this, OpenSSL asks on the terminal, and a start without one hangs.
    raise ValueError("the private key is encrypted; give one that is not")
