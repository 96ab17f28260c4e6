"""A boot's private files: the sockets of our own processes, the workers' ready marks and their metrics."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HELPERS", "MULTIPROC_DIR", "RunDir"]

HELPERS = ("engines", "embedder", "hosted")
"""The processes that serve on a socket of the run directory."""

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus-client's own variable. It is read once, when that library is imported, so a process has it set
from its start: the supervisor gives every boot a fresh folder, where all workers of that boot write."""


@dataclass(frozen=True, slots=True)
class RunDir:
    """The folder at `path`; its makers and its users derive every name in it from here."""

    path: Path

    @classmethod
    @contextmanager
    def fresh(cls) -> Iterator[tuple[RunDir, Path]]:
        """A new folder that only this user may enter, removed on leaving, and the folder of its workers'
        metrics.

        Metrics go below the operator's own `PROMETHEUS_MULTIPROC_DIR`, if there is one, in a folder of this
        boot.
        """
        path = Path(tempfile.mkdtemp(prefix="chorus-"))
        metrics = Path(tempfile.mkdtemp(prefix="chorus-", dir=os.environ.get(MULTIPROC_DIR) or path))
        try:
            yield cls(path), metrics
        finally:
            shutil.rmtree(path, ignore_errors=True)
            shutil.rmtree(metrics, ignore_errors=True)

    def socket(self, helper: str, number: int = 0) -> Path:
        """The Unix socket that `helper` serves on; its next process, which takes its place, gets another `number`."""
        return self.path / (f"{helper}-{number}.sock" if number else f"{helper}.sock")

    def sockets(self) -> dict[str, Path]:
        """The sockets of all helpers."""
        return {helper: self.socket(helper) for helper in HELPERS}

    def orders(self, worker: str) -> Path:
        """The Unix socket at which `worker` takes the supervisor's orders."""
        return self.path / f"{worker}.orders"

    def config(self, digest: str) -> Path:
        """The copy of a config that came, or is to come, into force."""
        return self.path / f"{digest}.yaml"

    def ready_mark(self, worker: str) -> Path:
        """The file that exists while `worker` accepts requests."""
        return self.path / f"{worker}.ready"
