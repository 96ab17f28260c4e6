"""A home, an index and a pip configuration of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.weights import Home


class Heard:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.downloads: list[str] = []
        self.open = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, label: str, size: int) -> None:
        self.downloads.append(label)
        self.open += 1

    def reached(self, done: int) -> None:
        assert done >= 0

    def end(self) -> None:
        self.open -= 1


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place this test's pip looks in; it has no network."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    return folder
