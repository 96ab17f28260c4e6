"""Digests: of a file, and of the tensors in a safetensors file however they were written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["file_sha256", "tensors_sha256"]

_CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_sha256(path: Path) -> str:
    """sha256 of the named tensors in a safetensors file, hexadecimal.

    Over name, dtype, shape and little-endian bytes of each tensor in order of name. Unlike the file's own
    digest it does not depend on metadata, on the order of writing or on padding, so that two library versions
    that store equal weights agree.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        header.pop("__metadata__", None)
        for name in sorted(header):
            tensor = header[name]
            begin, end = tensor["data_offsets"]
            digest.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode())
            file.seek(8 + header_size + begin)
            _feed(digest.update, file, end - begin)
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], file: BinaryIO, size: int) -> None:
    while size > 0:
        chunk = file.read(min(size, _CHUNK))
        if not chunk:
            raise ValueError("safetensors file ends before its tensors do")
        update(chunk)
        size -= len(chunk)
