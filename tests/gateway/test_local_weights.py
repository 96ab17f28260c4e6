"""Where weights lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.local_weights import wanted, weights_folder
from protocol.settings import parse_settings


def test_known_id_or_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known id lies under CHORUS_HOME; anything else is a path."""
    monkeypatch.setenv("CHORUS_HOME", str(tmp_path))
    assert weights_folder("gemma3-270m") == tmp_path / "weights" / "gemma3-270m"
    assert weights_folder("/models/mine") == Path("/models/mine")


def test_wanted() -> None:
    """Known weights of engines and embedders are fetched; paths and hosted models are not ours to fetch."""
    config = """
models:
  a: {engine: {weights: gemma3-270m}}
  b: {engine: {weights: /models/mine}}
  e: {embedder: {weights: all-minilm-l6-v2-int8}}
  o: {openai: {base_url: "http://127.0.0.1:9/v1", model: x}}
"""
    assert wanted(parse_settings(config)) == ["gemma3-270m", "all-minilm-l6-v2-int8"]
