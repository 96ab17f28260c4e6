"""Folders and registry agree, by test."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from protocol.errors import SettingsError
from protocol.methods import PACKAGES, Method, find_method, load_method, methods

ROOT = Path(__file__).parent.parent
ALL = list(methods())

MACHINERY = {
    "routers": {"estimating", "policy", "strategy"},
    "cascades": {"artefact", "base", "calibrate", "executor", "simulator", "strategy"},
    "ensembles.answers": {"base", "keys", "similarity", "strategy", "vote"},
    "ensembles.tokens": {"base"},
    "ensembles.spans": {"base"},
    "ensembles.steps": set(),
}
"""Modules of the method packages that are no method. Whatever else stands there must be registered."""


@pytest.mark.parametrize("package", PACKAGES.values())
def test_every_module_is_a_method_or_machinery(package: str) -> None:
    """A module of a method package has a record or is named above; nothing is half a method."""
    found = {info.name for info in pkgutil.iter_modules(import_module(package).__path__)}
    registered = {method.module.rpartition(".")[2] for method in ALL if PACKAGES[method.contract] == package}
    assert found - MACHINERY[package] == registered
    assert not registered & MACHINERY[package]


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.id)
def test_records_are_true(method: Method) -> None:
    """Id and file name agree, the implementation loads, a test module and all the evidence exist."""
    assert import_module(method.module).METHOD is method
    path = Path(*method.module.split("."))
    assert path.name == method.id.replace("-", "_")
    implementation = load_method(method)
    assert implementation.__module__ == method.module
    assert (ROOT / "tests" / path.parent / f"test_{path.name}.py").is_file()
    for evidence in method.evidence:
        file, _, name = evidence.test.partition("::")
        assert (ROOT / file).is_file(), f"{file} does not exist"
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{evidence.test} does not exist"


@pytest.mark.parametrize("method", ALL, ids=lambda method: method.id)
def test_docstrings_bridge_to_the_paper(method: Method) -> None:
    """The module says what it needs, what it returns, and how it differs from the paper."""
    told = import_module(method.module).__doc__ or ""
    for part in ("Needs", "Returns", "Differs from the paper", "Laws"):
        assert part in told, f"{method.module} has no {part!r} in its docstring"
    assert str(method.year) in told


def test_names_are_unique() -> None:
    """No two methods share an id or alias."""
    names = [name for method in ALL for name in (method.id, *method.aliases)]
    assert len(names) == len(set(names))


def test_every_family_has_a_method() -> None:
    """Each contract is kept by at least one method."""
    assert {method.contract for method in ALL} == set(PACKAGES)


def test_methods_are_found_by_id_and_alias() -> None:
    """Ids and aliases lead to the method, within its contract; another name is an error with a hint."""
    for method in ALL:
        assert all(find_method(name, method.contract) is method for name in (method.id, *method.aliases))
    with pytest.raises(SettingsError, match="Did you mean 'token-uncertainty'"):
        find_method("token-uncertanty", "scorer")
    with pytest.raises(SettingsError, match="No router method"):
        find_method("token-uncertainty", "router")


def test_listing_loads_nothing_heavy() -> None:
    """Listing the methods, as a gateway worker does, imports neither torch nor vLLM nor transformers."""
    code = (
        "import sys; from protocol.methods import methods, load_method; "
        "[load_method(m) for m in methods() if m.contract not in ('fusion', 'span', 'step')], list(methods()); "
        "print([n for n in ('torch', 'vllm', 'transformers', 'sklearn', 'pyarrow', 'onnxruntime', 'litellm') "
        "if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
