"""Artefacts: what is written is read back, and what does not fit is refused before use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest

from outcomes import artefact
from outcomes.artefact import Manifest, annotate, load_artefact, read_manifest, save_artefact, tensor
from protocol.errors import ArtefactMismatch, MethodError

MANIFEST = Manifest(method="some-method", models=("a", "b"), parameters={"k": 3}, embedder="e@1")


def _saved(folder: Path) -> Manifest:
    return save_artefact(folder, MANIFEST, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


def test_round_trip(tmp_path: Path) -> None:
    """Manifest and tensors come back as they were, with a version."""
    saved = _saved(tmp_path)
    manifest, tensors = load_artefact(tmp_path, method="some-method")
    assert manifest == saved
    assert len(manifest.version) == 12
    assert np.array_equal(tensors["x"], [[0, 1, 2], [3, 4, 5]])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "tensors.safetensors"]


def test_version_is_of_content_not_time(tmp_path: Path) -> None:
    """Time of making and metrics do not change the version; another embedder or other parameters do."""
    first = _saved(tmp_path)
    assert annotate(tmp_path, created="2030-01-01", metrics={"queries": 1}).version == first.version
    assert annotate(tmp_path, embedder="e@2").version != first.version


@pytest.mark.parametrize("models", [("a", "c"), ()])
def test_other_models_are_refused_naming_both_sides(models: tuple[str, ...]) -> None:
    """The error says for whom the artefact was made and who is configured."""
    with pytest.raises(ArtefactMismatch, match=r"made for a, b, but the config has .*b"):
        MANIFEST.require(models=models)


def test_another_embedder_is_refused_naming_both_sides() -> None:
    """The error says which embedder the artefact needs and which is configured."""
    with pytest.raises(ArtefactMismatch, match=r"e@1.*e@2"):
        MANIFEST.require(embedder="e@2")
    MANIFEST.require(models=("b", "c", "a"), embedder="e@1")


def test_another_method_is_refused(tmp_path: Path) -> None:
    """A loader never gets tensors that another method wrote."""
    _saved(tmp_path)
    with pytest.raises(ArtefactMismatch, match="some-method"):
        load_artefact(tmp_path, method="other-method")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"surprise": 1},
        {"models": None},
        {"models": [1]},
        {"knob": {"levels": [1]}},
        {"method": 3},
    ],
)
def test_malformed_manifests_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    """An unknown format or field, or a field of the wrong type, is a `MethodError` with the path."""
    _saved(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_bytes(orjson.dumps({**orjson.loads(path.read_bytes()), **change}))
    with pytest.raises(MethodError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null"])
def test_manifests_that_are_no_objects_are_refused(tmp_path: Path, content: bytes) -> None:
    """Bytes that are not a JSON object are a `MethodError`."""
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(MethodError, match="not a manifest"):
        read_manifest(tmp_path)


def test_missing_artefacts_say_how_to_make_one(tmp_path: Path) -> None:
    """The remedy is in the message."""
    with pytest.raises(MethodError, match="chorus train"):
        read_manifest(tmp_path / "nothing")


@pytest.mark.parametrize("content", [b"\x80\x04\x95pickle", b"\xff" * 64, b""])
def test_files_that_are_not_safetensors_are_refused(tmp_path: Path, content: bytes) -> None:
    """A pickle or garbage under the tensors' name is never loaded."""
    _saved(tmp_path)
    (tmp_path / "tensors.safetensors").write_bytes(content)
    with pytest.raises(MethodError, match="safetensors"):
        load_artefact(tmp_path, method="some-method")


@pytest.mark.parametrize(
    ("limit", "value"), [("MAX_MANIFEST_BYTES", 10), ("MAX_TENSOR_BYTES", 10), ("MAX_TENSORS", 0)]
)
def test_oversized_artefacts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """Files beyond the limits are refused before they are read."""
    _saved(tmp_path)
    monkeypatch.setattr(artefact, limit, value)
    with pytest.raises(MethodError):
        load_artefact(tmp_path, method="some-method")


def test_tensors_are_checked_for_shape_and_values() -> None:
    """A tensor that is missing, of another shape, or not finite is refused by name."""
    tensors = {"x": np.ones((2, 3)), "bad": np.array([np.inf])}
    assert tensor(tensors, "x", (None, 3)).shape == (2, 3)
    for name, shape in (("y", (2, 3)), ("x", (2, 4)), ("x", (2,)), ("bad", (1,))):
        with pytest.raises(MethodError, match=repr(name)):
            tensor(tensors, name, shape)
