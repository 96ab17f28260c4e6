"""What is preloaded into the engine host's process, and how it is told."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from engines import preload
from engines.preload import Library

FOUND = Library("libfast", Path("/lib/libfast.so"), ("fast",), "Install it.")
ABSENT = Library("libnone", None, ("none",), "Install that.")


def test_what_is_found_is_added_behind_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own preloads stay in front; what is there already, or a rival of it, is not added again."""
    monkeypatch.setattr(preload, "libraries", lambda: [FOUND, ABSENT])
    assert preload.environment({}) == {"LD_PRELOAD": "/lib/libfast.so"}
    assert preload.environment({"LD_PRELOAD": "mine.so"}) == {"LD_PRELOAD": "mine.so:/lib/libfast.so"}
    assert preload.environment({"LD_PRELOAD": "/opt/libfaster.so"}) == {}
    monkeypatch.setattr(preload, "libraries", lambda: [ABSENT])
    assert preload.environment({}) == {}


def test_what_it_adds_it_finds_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process begun with the additions wants no more of them, so that it never begins anew twice."""
    added = preload.environment({})
    assert preload.environment(added) == {}
    for name, value in added.items():
        monkeypatch.setenv(name, value)
    there = {library.name for library in preload.libraries() if library.path}
    assert {name for name, has in preload.loaded().items() if has} >= there


def test_machines_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """libiomp5 is looked for where it is built for, nothing where the loader has no such variable; a missing wheel is
    no error."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert [library.name for library in preload.libraries()] == ["libtcmalloc"]

    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr(preload, "distribution", absent)
    openmp = preload.libraries()[-1]
    assert (openmp.name, openmp.path) == ("libiomp5", None)
    assert "intel-openmp" in openmp.remedy
    monkeypatch.setattr(sys, "platform", "darwin")
    assert preload.libraries() == []


def test_the_distributions_library_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder of this machine's kind, as Debian has it, or without one; the first there is."""
    monkeypatch.setattr(preload, "LIBRARY_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert preload.libraries()[0].path is None
    for folder in (tmp_path, tmp_path / "aarch64-linux-gnu"):
        folder.mkdir(exist_ok=True)
        library = folder / "libtcmalloc_minimal.so.4"
        library.touch()
        assert preload.environment({}) == {"LD_PRELOAD": str(library)}


PROGRAM = """
import os, sys
from pathlib import Path
from engines import preload
from engines.preload import Library
preload.libraries = lambda: [Library("libfast", Path("/nowhere/libfast.so"), ("fast",), "")]
print(os.getpid(), sys.argv[1:], os.environ.get("LD_PRELOAD"))
preload.ensure()
"""


def test_a_process_begins_anew_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command with the same arguments, in the same process, with the libraries in front."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(Path(preload.__file__).parents[1]))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    ran = subprocess.run([sys.executable, program, "a b", "c"], capture_output=True, text=True, check=True)
    first, second = ran.stdout.splitlines()
    pid = first.split()[0]
    assert first == f"{pid} ['a b', 'c'] None"
    assert second == f"{pid} ['a b', 'c'] /nowhere/libfast.so"
