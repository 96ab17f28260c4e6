"""What a service manager gives and is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gateway.service_manager import given_listener, notify
from protocol.errors import SettingsError


def test_nothing_is_given() -> None:
    """Without a service manager, or when its socket was meant for another process, there is no listener."""
    assert given_listener({}, 7) is None
    assert given_listener({"LISTEN_PID": "6", "LISTEN_FDS": "1"}, 7) is None


def test_several_sockets_are_refused() -> None:
    """With several sockets nothing would tell which one to serve on."""
    with pytest.raises(SettingsError, match="passes 2 sockets"):
        given_listener({"LISTEN_PID": "7", "LISTEN_FDS": "2"}, 7)


@pytest.mark.parametrize("prefix", ["", "@"])
def test_told_when_ready(tmp_path: Path, prefix: str) -> None:
    """The state goes to the manager's socket, whether that is a file or in the abstract name space."""
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name if prefix else name)
        notify({"NOTIFY_SOCKET": prefix + name}, "READY=1")
        assert manager.recv(64) == b"READY=1"


def test_nobody_listens() -> None:
    """Without a manager nothing is sent."""
    notify({}, "READY=1")
