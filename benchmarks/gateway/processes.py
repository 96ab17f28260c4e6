"""Starting processes on a core of their own, what they use, and ending them and all they started, by id."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Cores", "Process", "free_port", "wait_for"]

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Cores:
    """One core for the gateway, another for upstream and load generator; the same one, with a note, where
    there is none."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.pinned = len(cores) >= 2
        self.load, self.gateway = ({cores[0]}, {cores[-1]}) if self.pinned else (set(), set())

    @property
    def note(self) -> str:
        """How processes were placed, for the report."""
        if not self.pinned:
            return "NOT PINNED: fewer than two cores, so load generator and gateway disturb each other"
        return f"gateway on core {min(self.gateway)}, upstream and load generator on core {min(self.load)}"

    def pin_self(self) -> None:
        """Move this process to the load generator's core."""
        if self.pinned:
            os.sched_setaffinity(0, self.load)


class Process:
    """A child in a process group of its own. Use as a context manager: leaving ends it and its
    descendants."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cores: set[int],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._argv, self._cores, self._log = list(argv), cores, log
        self._env, self._cwd = {**os.environ, **(env or {})}, cwd

    def __enter__(self) -> Process:
        def pin() -> None:
            if self._cores:
                os.sched_setaffinity(0, self._cores)

        with self._log.open("wb") as log:
            self._child = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._env, cwd=self._cwd,
                start_new_session=True, preexec_fn=pin,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        pids = self.tree()
        for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            ends = time.monotonic() + patience_s
            while time.monotonic() < ends and any(_alive(pid) for pid in pids):
                self._child.poll()
                time.sleep(0.05)
        self._child.wait()

    @property
    def running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._child.poll() is None

    def output(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-2000:]

    def tree(self) -> list[int]:
        """Its process id and those of all its descendants."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self._child.pid]
        for pid in found:
            found += children.get(pid, [])
        return found


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds of processor time, user and system, that `pids` and their ended children have used."""
    return sum(sum(map(int, fields[11:15])) for pid in pids if (fields := _stat(pid))) / TICKS_PER_S


def rss_mb(pids: Sequence[int]) -> float:
    """Resident memory of `pids` together, in MB; pages that they share are counted for each."""
    pages = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _stat(pid: int) -> list[str]:
    """`/proc/PID/stat` after the command's name, state first; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _alive(pid: int) -> bool:
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def free_port() -> int:
    """A TCP port on loopback that nobody has just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(url: str, process: Process, within_s: float) -> None:
    """Return when `url` answers 200. Raises `RuntimeError` with the process's output when it ends or takes
    too long."""
    ends = time.monotonic() + within_s
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < ends and process.running:
        with contextlib.suppress(OSError, urllib.error.URLError), opener.open(url, timeout=2) as response:
            if response.status == 200:
                return
        time.sleep(0.1)
    raise RuntimeError(f"{url} is not ready:\n{process.output()}")
