"""What can go wrong between the HTTP/1.1 client and a server, as one tree.

    Http1Error
    ├── ConnectError      nothing was sent: another server may be asked without doing anything twice
    │   ├── ConnectTimeout    name, TCP, proxy and TLS together took too long
    │   ├── TlsError          the certificate or the handshake was refused, by either side
    │   └── PoolExhausted     every connection is busy, and none became free in time
    ├── ClosedEarly       the server closed or reset the connection before its answer was complete
    │   └── Unanswered        and before the head of its answer was
    ├── BadResponse       what came is not HTTP/1.1
    │   └── TooLarge          its head or body is larger than the limits allow
    └── TimedOut          a clock ran out after the request was sent
        ├── FirstByteTimeout  no complete response head
        ├── IdleTimeout       silence in the middle of the body
        └── TotalTimeout      the whole exchange took too long

Messages hold neither addresses nor headers. What our own code does wrong (a line break in a header) is a
`ValueError`.
"""

from __future__ import annotations

__all__ = [
    "BadResponse",
    "ClosedEarly",
    "ConnectError",
    "ConnectTimeout",
    "FirstByteTimeout",
    "Http1Error",
    "IdleTimeout",
    "PoolExhausted",
    "TimedOut",
    "TlsError",
    "TooLarge",
    "TotalTimeout",
    "Unanswered",
]


class Http1Error(Exception):
    """Root of the tree."""


class ConnectError(Http1Error):
    """No connection: refused, unreachable, unknown host, or the client is closed. Nothing was sent."""


class ConnectTimeout(ConnectError):
    """No connection in time. Nothing was sent."""


class TlsError(ConnectError):
    """No TLS session. Nothing was sent."""


class PoolExhausted(ConnectError):
    """No connection of the pool became free. Nothing was sent."""


class ClosedEarly(Http1Error):
    """The server closed or reset the connection before its answer was complete."""


class Unanswered(ClosedEarly):
    """The server closed or reset the connection before the head of an answer was complete."""


class BadResponse(Http1Error):
    """The server did not speak HTTP/1.1."""


class TooLarge(BadResponse):
    """The head or the body of the answer is larger than the limits allow."""


class TimedOut(Http1Error):
    """A clock ran out after the request was sent."""


class FirstByteTimeout(TimedOut):
    """No complete response head in time."""


class IdleTimeout(TimedOut):
    """Silence in the middle of the body."""


class TotalTimeout(TimedOut):
    """The whole exchange took too long."""
