"""Taking a TCP port, and saying who has it when it is taken."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

from protocol.errors import SettingsError

__all__ = ["bind"]

_LISTEN = "0A"
"""The state of a listening socket in `/proc/net/tcp`."""


def bind(host: str, port: int, option: str) -> socket.socket:
    """A TCP socket bound to `host` and `port`, not listening yet. Raises `SettingsError` naming the holder of
    a taken port and the command-line `option` that picks another."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise SettingsError(_complaint(host, port, option, error)) from None
    return listener


def _complaint(host: str, port: int, option: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        holder = _holder(port)
        by = f" by {holder}" if holder else ""
        return f"Port {port} on {host} is taken{by}. Stop that process, or choose another port with {option}."
    if error.errno == errno.EACCES:
        return f"Port {port} on {host} needs privileges. Choose one above 1023 with {option}."
    return f"Cannot listen on {host} port {port} ({error.strerror}). Choose another with --host or {option}."


def _holder(port: int) -> str | None:
    """Command and id of the process that listens on `port`; None where the system does not tell."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in inodes for fd in (process / "fd").iterdir()):
                command = (
                    (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                )
                return f"process {process.name} ({command[:80]})"
        except OSError:
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(fields[9])
    return found
