"""A PostgreSQL of a test's own: a cluster made for it, on a Unix socket."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from urllib.parse import quote

UNPRIVILEGED = ("postgres", "nobody")
"""Whose process it becomes where the tests run as root, whom PostgreSQL refuses to serve."""
QUICK = "-c fsync=off -c shared_buffers=16MB -c max_connections=20 -c listen_addresses="


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL's programs: Debian does not put them on PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(re.sub(r"\D", "", path.parts[-3]) or 0),
    )
    if found:
        return found[-1].parent
    initdb = shutil.which("initdb")
    return Path(initdb).parent if initdb else None


class PostgresServer:
    """A running cluster in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        bin = binaries()
        assert bin is not None
        self.bin = bin
        self.user: str | None = None
        if os.getuid() == 0:
            known = {entry.pw_name for entry in pwd.getpwall()}
            self.user = next(name for name in UNPRIVILEGED if name in known)
            shutil.chown(folder, self.user)

    def url(self, database: str) -> str:
        return f"postgresql://chorus@/{database}?host={quote(str(self.folder))}"

    def run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the user whose cluster it is."""
        done = subprocess.run(
            [self.bin / program, *arguments],
            user=self.user,
            group=pwd.getpwnam(self.user).pw_gid if self.user else None,
            extra_groups=() if self.user else None,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def create(self) -> None:
        data = str(self.folder / "data")
        self.run(
            "initdb", "-D", data, "-U", "chorus", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C"
        )
        self.start()

    def start(self) -> None:
        options = f"{QUICK} -k {self.folder}"
        log = str(self.folder / "log")
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")

    def database(self, name: str) -> str:
        """A new, empty database; gives its URL."""
        self.run("createdb", "-h", str(self.folder), "-U", "chorus", name)
        return self.url(name)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A cluster, for as long as the block runs. Its folder's path is short enough for a socket's name."""
    folder = Path(mkdtemp(prefix="chorus-pg-", dir="/tmp"))
    try:
        server = PostgresServer(folder)
        server.create()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
