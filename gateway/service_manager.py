"""What a service manager such as systemd gives and is told: a socket it holds for us, and that we are ready.

With the socket held there (deploy/systemd/chorus.socket) a restart refuses nobody: who connects meanwhile
waits in its queue. The protocols are sd_listen_fds(3) and sd_notify(3).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

from protocol.errors import SettingsError

__all__ = ["given_listener", "notify"]

FIRST_FD = 3


def given_listener(environ: Mapping[str, str], pid: int) -> socket.socket | None:
    """The TCP socket that the process `pid`, this one, was started with; None when there is none. Raises
    `SettingsError` when it is given anything else: nothing would tell what to serve where."""
    if environ.get("LISTEN_PID") != str(pid):
        return None
    count = environ.get("LISTEN_FDS")
    if count != "1":
        raise SettingsError(
            f"The service manager passes {count} sockets; give one, which takes the place of server.port."
        )
    os.set_inheritable(FIRST_FD, False)
    listener = socket.socket(fileno=FIRST_FD)
    if listener.family not in (socket.AF_INET, socket.AF_INET6) or listener.type != socket.SOCK_STREAM:
        raise SettingsError("The service manager passes a socket that is not TCP; Chorus serves on TCP.")
    return listener


def notify(environ: Mapping[str, str], state: str) -> None:
    """Tell the service manager, if one listens, `state`: "READY=1" or "STOPPING=1"."""
    address = environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        # A name that begins with "@" is in the abstract name space, where that byte is a zero.
        channel.connect("\0" + address[1:] if address.startswith("@") else address)
        channel.send(state.encode())
