"""What files hold, and whether they may have changed, in a few bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path

__all__ = ["digest", "glance"]


def digest(*paths: Path) -> bytes:
    """Of the contents of `paths`, files or folders; what is not there counts as such. Symbolic links are followed."""
    told = blake2b(digest_size=16)
    for path in _files(paths):
        try:
            content = blake2b(path.read_bytes(), digest_size=16).digest()
        except OSError:
            content = b"?"
        told.update(b"%b\0%b" % (str(path).encode(), content))
    return told.digest()


def glance(*paths: Path) -> tuple[object, ...]:
    """What changes when a file of `paths` is written, replaced, removed, or linked to elsewhere: sizes, times and
    inodes, of which the reading costs little."""
    return tuple(_stat(path) for path in _files(paths))


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        else:
            yield path


def _stat(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return path
    return path, found.st_mtime_ns, found.st_size, found.st_ino
