"""The registry: one record a published method, found in the module named by its id.

A method is a module in one of `PACKAGES` with a `METHOD` record; its file name is its id with underscores. Nothing else
lists methods: `chorus methods`, `docs/METHODS.md`, the contract suites and the settings all read this registry.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

from protocol.errors import SettingsError

__all__ = ["FUSIONS", "PACKAGES", "Contract", "Evidence", "Method", "find_method", "load_method", "methods"]

PACKAGES = {
    "router": "routers",
    "scorer": "cascades",
    "aggregator": "ensembles.answers",
    "fusion": "ensembles.tokens",
    "search": "ensembles.tokens",
    "span": "ensembles.spans",
    "step": "ensembles.steps",
}
"""The contract of each package's methods → the package."""

Contract = Literal["router", "scorer", "aggregator", "fusion", "search", "span", "step"]
"""A step method keeps the contract of span methods; its spans are steps of a search."""
FUSIONS: tuple[Contract, ...] = ("fusion", "search", "span", "step")
"""What runs inside the engine host."""
Taxonomy = Literal["a1", "a2", "b1", "b2", "b3", "c1", "c2"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """One thing that was checked, how, and by which test (pytest path)."""

    kind: Literal["exact equivalence", "reproduced figure", "invariant"]
    what: str
    test: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A published method as the registry knows it.

    `implementation` is the class in the method's module; `needs` what it must be given (text, embedding, encoder,
    logprobs, full-logits, samples, artefact, labels); `optional_members`: of a fusion, a member without
    weight has no part, so that the others can go on without it; `unverified` what its card could not verify in a
    source.
    """

    id: str
    title: str
    year: int
    paper: str
    taxonomy: Taxonomy
    contract: Contract
    implementation: str
    needs: frozenset[str]
    serving: bool = True
    optional_members: bool = False
    aliases: tuple[str, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    unverified: str = ""

    @property
    def module(self) -> str:
        """Import path of the method's module."""
        return f"{PACKAGES[self.contract]}.{self.id.replace('-', '_')}"


def methods(contract: Contract | None = None) -> Iterator[Method]:
    """Every registered method, or those of one contract, in the order of package and id."""
    for kind, package in PACKAGES.items():
        if contract not in (None, kind):
            continue
        folder = import_module(package)
        for info in sorted(pkgutil.iter_modules(folder.__path__), key=lambda found: found.name):
            record = getattr(import_module(f"{package}.{info.name}"), "METHOD", None)
            if isinstance(record, Method) and record.contract == kind:
                yield record


def find_method(name: str, *contracts: Contract, where: str = "") -> Method:
    """The method of that id or alias, of one of `contracts`. Raises `SettingsError` naming the known ones, and `where`
    in the settings it stands."""
    known: Sequence[Method] = tuple(method for contract in contracts for method in methods(contract))
    for method in known:
        if name == method.id or name in method.aliases:
            return method
    close = get_close_matches(name, [method.id for method in known], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    path = f"{where}: " if where else ""
    raise SettingsError(
        f"{path}No {' or '.join(contracts)} method {name!r}.{hint} Known: {', '.join(m.id for m in known)}."
    )


def load_method(method: Method) -> Any:
    """The class that implements `method`."""
    return getattr(import_module(method.module), method.implementation)
