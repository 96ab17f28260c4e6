"""docs/new-method.md is run as it stands: two blocks of code are a method."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import routers
from outcomes.table import split
from outcomes.train import train
from protocol.methods import find_method, load_method
from tests.contracts import router_checks

PAGE = Path(__file__).parent.parent / "docs" / "new-method.md"
MODULE, TEST = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
NAME = "by_length"


@pytest.fixture
def installed(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module, in a folder that is part of the package `routers` for one test."""
    folder = tmp_path_factory.mktemp("more")
    (folder / f"{NAME}.py").write_text(MODULE)
    monkeypatch.setattr(routers, "__path__", [*routers.__path__, str(folder)])
    importlib.invalidate_caches()
    yield
    sys.modules.pop(f"routers.{NAME}", None)
    vars(routers).pop(NAME, None)


def test_it_is_as_short_as_it_says() -> None:
    """Under 40 lines of code, and the page says how many."""
    lines = [line for line in (MODULE + TEST).splitlines() if line.strip()]
    assert len(lines) < 40
    assert f"{len(lines)} lines" in PAGE.read_text()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("check", router_checks.CHECKS, ids=lambda check: check.__name__)
def test_it_passes_the_contract(check, tmp_path: Path) -> None:
    """The module on the page keeps every law of routers."""
    check(load_method(find_method("by-length", "router")), tmp_path)


@pytest.mark.usefixtures("installed")
def test_its_own_test_passes_and_it_trains(tmp_path: Path) -> None:
    """The test on the page runs, and `chorus train`'s function knows the method by name."""
    own: dict[str, object] = {}
    exec(compile(TEST, str(PAGE), "exec"), own)
    own["test_length_decides"]()  # type: ignore[operator]
    manifest = train("by-length", router_checks.outcomes(200), tmp_path / "a", resamples=20)
    assert manifest.method == "by-length"
    assert manifest.metrics["queries"] == len(split(router_checks.outcomes(200))[1])
