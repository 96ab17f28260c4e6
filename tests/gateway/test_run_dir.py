"""A boot's private files."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.run_dir import MULTIPROC_DIR, RunDir


def test_private_and_removed() -> None:
    """The folder is this user's alone and goes with its boot."""
    with RunDir.fresh() as (run_dir, metrics):
        assert run_dir.path.stat().st_mode & 0o777 == 0o700
        assert metrics.is_relative_to(run_dir.path)
        assert run_dir.sockets() == {name: run_dir.socket(name) for name in ("engines", "embedder", "hosted")}
    assert not run_dir.path.exists()


def test_each_boot_has_its_own_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two boots below one PROMETHEUS_MULTIPROC_DIR do not touch each other's files."""
    monkeypatch.setenv(MULTIPROC_DIR, str(tmp_path))
    with RunDir.fresh() as (_, first), RunDir.fresh() as (_, second):
        assert first.parent == second.parent == tmp_path
        assert first != second
    assert list(tmp_path.iterdir()) == []
