"""Shared by all tests: what a machine must have for some of them, and where the real weights are.

Mark a test with what it needs; without it the test is skipped with the command that provides it, and with
``CHORUS_REQUIRE_ALL=1`` (set in CI) it fails instead, so that nothing is skipped unseen:

    @pytest.mark.models                       # the real small models: weights, torch, vLLM
    @pytest.mark.requires("redis-server")     # anything in THINGS, "weights:<id>", or "peer:<name>" of peers.py

Fixtures that find out halfway call ``requires("data")``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from engines.weights import CATALOGUE, Home, status
from tests import peers
from tests.postgres_server import PostgresServer, binaries, postgres_server

# thing -> (is it here, how to get it). A test that needs something new adds a line.
THINGS: dict[str, tuple[Callable[[], bool], str]] = {
    "engines": (
        lambda: all(importlib.util.find_spec(name) for name in ("torch", "vllm", "transformers")),
        "make .venv (or: pip install 'chorus-gateway[engines]', see docs/install.md)",
    ),
    "torch": (
        lambda: importlib.util.find_spec("torch") is not None,
        "make .venv (or: pip install 'chorus-gateway[engines]', see docs/install.md)",
    ),
    "hosted": (
        lambda: all(importlib.util.find_spec(name) for name in ("litellm", "boto3")),
        "make .venv (or: pip install 'chorus-gateway[hosted]')",
    ),
    "redis-server": (lambda: shutil.which("redis-server") is not None, "apt-get install redis-server"),
    "postgres": (
        lambda: binaries() is not None and importlib.util.find_spec("psycopg") is not None,
        "apt-get install postgresql; pip install 'chorus-gateway[postgres]'",
    ),
    "promtool": (lambda: shutil.which("promtool") is not None, "apt-get install prometheus"),
    "prometheus": (lambda: shutil.which("prometheus") is not None, "apt-get install prometheus"),
    "docker-compose": (lambda: shutil.which("docker-compose") is not None, "apt-get install docker-compose"),
    "systemd-analyze": (lambda: shutil.which("systemd-analyze") is not None, "apt-get install systemd"),
    "chromium": (lambda: shutil.which("chromium") is not None, "apt-get install chromium"),
    "curl": (lambda: shutil.which("curl") is not None, "apt-get install curl"),
    "data": (
        lambda: Path(os.environ.get("CHORUS_DATA", "/nonexistent")).is_dir(),
        "set CHORUS_DATA to the folder with the published outcome tables",
    ),
}


def requires(*things: str) -> None:
    """Skip the calling test unless the machine has ``things``; fail it under ``CHORUS_REQUIRE_ALL=1``."""
    for thing in things:
        present, remedy = _look_up(thing)
        if not present:
            reason = f"needs {thing}: {remedy}"
            if os.environ.get("CHORUS_REQUIRE_ALL") == "1":
                pytest.fail(reason, pytrace=False)
            pytest.skip(reason)


def _look_up(thing: str) -> tuple[bool, str]:
    kind, _, id = thing.partition(":")
    if kind == "weights":
        found = {entry.weights.id: entry.installed for entry in status()}
        return found[id], f"python -m engines.weights {id}"
    if kind == "peer":
        return peers.available(id), peers.remedy(id)
    present, remedy = THINGS[thing]
    return present(), remedy


class TogetherScheduling(LoadFileScheduling):
    """Under `-n`, a file's tests run in one process, and all that load engines in the same one: in two they would
    hold twice the memory and fight for the cores."""

    def _split_scope(self, nodeid: str) -> str:
        return "engines" if nodeid.startswith(HEAVY) else super()._split_scope(nodeid)


HEAVY = ("tests/engines/", "tests/ensembles/")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TogetherScheduling:
    """How `-n` deals the tests out."""
    return TogetherScheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check a test's needs before its fixtures are made."""
    if item.get_closest_marker("models"):
        requires("engines", *(f"weights:{id}" for id in CATALOGUE))
    for marker in item.iter_markers("requires"):
        requires(*marker.args)


@pytest.fixture(scope="session")
def weights() -> Callable[[str], Path]:
    """Where the weights with an id lie: ``weights("gemma3-270m")``. For tests marked ``models``."""
    home = Home.from_environ()
    return lambda id: home.weights / CATALOGUE[id].id


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for the whole run; each test makes a database of its own in it."""
    requires("postgres")
    with postgres_server() as server:
        yield server


@pytest.fixture(autouse=True, scope="session")
def _offline() -> Iterator[None]:
    """No test asks a model hub: one that tries fails at once instead of passing only online."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test keeps keys or a ledger where the user of this machine does, nor where another test did."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
