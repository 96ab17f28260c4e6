"""Fetching pinned wheels through the user's own pip.

pip is asked, because pip is what the user has configured: index, mirror, proxy, certificates, credentials,
`--find-links`. Chorus names no host. Each wheel is asked for with its sha256, so that an index may hold what
it likes and only the pinned bytes pass; they are checked once more here, then renamed into the cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from engines.weights.catalogue import Wheel
from engines.weights.digest import file_sha256
from engines.weights.errors import FetchFailed, WrongDigest
from engines.weights.home import Home
from engines.weights.progress import Progress

__all__ = ["fetch", "is_cached"]

_POLL_S = 0.2

# What pip says (stderr, in this order of precedence), and what the user can do. pip has no exit codes for
# these.
_REMEDIES = (
    (
        "No module named pip",
        "This environment has no pip: run `python -m ensurepip`, or `uv pip install pip`, and try again.",
    ),
    (
        "DO NOT MATCH THE HASHES",
        "The index delivers another file than the pinned one. Use an index that mirrors PyPI.",
    ),
    (
        "No space left on device",
        "Free some space, or set CHORUS_HOME to a folder on a larger disk.",
    ),
    (
        "connection broken by",
        "Is this machine online? If it needs a mirror or a proxy, tell pip so (pip.conf, PIP_INDEX_URL, "
        "PIP_PROXY): Chorus uses pip's configuration. What was fetched so far is kept.",
    ),
    (
        "No matching distribution found",
        "The index pip is configured with (`pip config list`) does not have this wheel or could not be "
        "reached. One that mirrors PyPI has it; a folder with the wheel, named in PIP_FIND_LINKS, does too.",
    ),
)
_OTHER_REMEDY = "What was fetched so far is kept; run the command again once pip works."


def is_cached(home: Home, wheel: Wheel) -> bool:
    """Whether the wheel is in the cache; what is there was verified before it got there."""
    path = home.wheels / wheel.filename
    return path.is_file() and path.stat().st_size == wheel.size


def fetch(home: Home, wheel: Wheel, progress: Progress) -> Path:
    """Return the verified wheel in the cache, downloading it first when it is not there. Needs the home's
    lock.

    Raises:
        FetchFailed: pip could not deliver it.
        WrongDigest: the bytes are not the pinned ones (a cached file that rotted is thrown away and fetched
            anew).
    """
    cached = home.wheels / wheel.filename
    if is_cached(home, wheel):
        if file_sha256(cached) == wheel.sha256:
            return cached
        progress.note(f"  {wheel.filename} in the cache is damaged; fetching it again")
        cached.unlink()
    with home.staging() as folder:
        _pip_download(wheel, folder, progress)
        arrived = folder / "out" / wheel.filename
        if not arrived.is_file():
            raise FetchFailed(f"pip did not leave {wheel.filename}.", _OTHER_REMEDY)
        if file_sha256(arrived) != wheel.sha256:
            raise WrongDigest(
                f"{wheel.filename} is not the pinned file.", dict(_REMEDIES)["DO NOT MATCH THE HASHES"]
            )
        home.publish(arrived, cached)
    return cached


def _pip_download(wheel: Wheel, folder: Path, progress: Progress) -> None:
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    scratch = folder / "tmp"
    scratch.mkdir()
    # --no-cache-dir: the wheel is kept in our cache; pip's would hold the same hundreds of megabytes a second
    # time.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += ["--progress-bar", "off", "--no-input", "--require-hashes"]
    command += ["--dest", str(folder / "out"), "--requirement", str(requirement)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            # pip downloads into TMPDIR and moves: watching that folder grow is a progress bar that works with
            # every pip.
            env={**os.environ, "TMPDIR": str(scratch), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        progress.begin(f"{wheel.name} {wheel.version}", wheel.size)
        try:
            while _still_running(process):
                progress.reached(min(_bytes_under(folder), wheel.size))
            if process.returncode == 0:
                progress.reached(wheel.size)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            progress.end()
        if process.returncode != 0:
            log.seek(0)
            raise _explained(wheel, log.read())


def _still_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_POLL_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _bytes_under(folder: Path) -> int:
    # Files vanish while pip moves them; a vanished file counts nothing this time.
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def _explained(wheel: Wheel, log: str) -> FetchFailed | WrongDigest:
    said = [
        line.strip() for line in log.splitlines() if line.startswith(("ERROR", "/")) or "No module" in line
    ]
    problem = (
        f"pip could not fetch {wheel.name}=={wheel.version}: {' '.join(said[:2]) or 'it gave no reason'}"
    )
    for symptom, remedy in _REMEDIES:
        if symptom in log:
            kind = WrongDigest if symptom == "DO NOT MATCH THE HASHES" else FetchFailed
            return kind(problem, remedy)
    return FetchFailed(problem, _OTHER_REMEDY)
