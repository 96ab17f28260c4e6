"""Taking a port."""

from __future__ import annotations

import os
import socket

import pytest

from gateway.ports import bind
from protocol.errors import SettingsError


def test_taken_port_names_its_holder() -> None:
    """A taken port's error names the process that has it and the option that picks another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError) as caught:
            bind("127.0.0.1", port, "--port")
    assert f"process {os.getpid()}" in caught.value.message
    assert "--port" in caught.value.message


def test_free_port() -> None:
    """A free port is bound, and refuses connections until somebody listens."""
    with bind("127.0.0.1", 0, "--port") as listener, socket.socket() as client:
        with pytest.raises(ConnectionRefusedError):
            client.connect(listener.getsockname())
        listener.listen()
        client.connect(listener.getsockname())


def test_foreign_address() -> None:
    """An address that is not this machine's says so."""
    with pytest.raises(SettingsError, match="--host"):
        bind("192.0.2.1", 8080, "--port")
