"""Digests of files and of tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from engines.weights.digest import file_sha256, tensors_sha256

A, B = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, dtype=np.float32)


def test_file_digest(tmp_path: Path) -> None:
    """The digest of a file is sha256 of its bytes."""
    path = tmp_path / "file"
    path.write_bytes(b"chorus" * 1_000_000)
    assert file_sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_tensor_digest_ignores_how_they_are_written(tmp_path: Path) -> None:
    """Metadata and order of writing change the file, not the digest of its tensors."""
    save_file({"a": A, "b": B}, tmp_path / "one")
    save_file({"b": B, "a": A}, tmp_path / "two", metadata={"format": "pt", "note": "x"})

    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()
    assert tensors_sha256(tmp_path / "one") == tensors_sha256(tmp_path / "two")


@pytest.mark.parametrize(
    "other",
    [
        {"a": A, "c": B},
        {"a": A.T.copy(), "b": B},
        {"a": A.astype(np.float64), "b": B},
        {"a": A + np.float32(1e-7), "b": B},
        {"a": A},
    ],
    ids=["name", "shape", "dtype", "value", "missing"],
)
def test_tensor_digest_sees_every_difference(tmp_path: Path, other: dict[str, np.ndarray]) -> None:
    """Another name, shape, dtype, value or set of tensors is another digest."""
    save_file({"a": A, "b": B}, tmp_path / "one")
    save_file(other, tmp_path / "two")
    assert tensors_sha256(tmp_path / "one") != tensors_sha256(tmp_path / "two")


def test_cut_file_is_an_error(tmp_path: Path) -> None:
    """A file that ends before its tensors do has no digest."""
    save_file({"a": A}, tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:-4])
    with pytest.raises(ValueError, match="ends before"):
        tensors_sha256(tmp_path / "cut")
