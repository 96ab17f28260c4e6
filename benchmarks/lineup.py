"""Which models and fusions the benchmarks load: benchmarks/fusions.yaml, and what config/ and the registry have."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from engines.assemble import engine_specs, fusion_spec
from engines.engine import EngineSpec
from engines.host import FusionSpec
from engines.templates import Prompting, prompting
from engines.weights import Home
from protocol.errors import SettingsError
from protocol.methods import PACKAGES, Method, find_method, methods
from protocol.settings import Fusion, Settings, load_settings

__all__ = ["CONFIG", "Entry", "Lineup", "lineup"]

CONFIG = Path(__file__).with_name("fusions.yaml")
CONTRACTS = tuple(
    contract
    for contract, package in PACKAGES.items()
    if package in ("ensembles.tokens", "ensembles.spans", "ensembles.steps")
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A fusion that takes part: its settings, its method's record, and what the host loads."""

    settings: Fusion
    method: Method
    spec: FusionSpec

    @property
    def settled(self) -> str:
        """Changes with what the config says of the text: method, members, options."""
        told = self.settings.model_dump_json(include={"method", "members", "main", "options"})
        told += "".join(f"{part}={folder.name}" for part, folder in self.settings.artefacts.items())
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @property
    def digest(self) -> str:
        """Changes with that and with the text of the method's module."""
        found = find_spec(self.method.module)
        assert found is not None
        assert found.origin is not None
        told = self.settled.encode() + Path(found.origin).read_bytes()
        return hashlib.sha256(told).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Lineup:
    """Engines by name, fusions by name, how to prompt each engine; `absent`: who is left out, and why."""

    engines: Mapping[str, EngineSpec]
    entries: Mapping[str, Entry]
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompts(self) -> dict[str, Prompting]:
        """How to prompt each engine."""
        return {name: prompting(spec.folder) for name, spec in self.engines.items()}

    def rules_alone(self) -> dict[str, str]:
        """Fusions whose members draft, and the fusion that writes the same text without drafts."""
        found = {}
        for name, entry in self.entries.items():
            if entry.method.id != "spec-ensemble":
                continue
            options = entry.settings.options
            rule = (options.get("rule", "gac"), options.get("rule_options", {}), entry.settings.members)
            for other, plain in self.entries.items():
                if (plain.settings.method, plain.settings.options, plain.settings.members) == rule:
                    found[name] = other
        return found

    def only(self, names: Collection[str]) -> Lineup:
        """With the fusions of these names alone, and their members; the first two engines stay. Raises
        `SettingsError`."""
        if unknown := set(names) - self.entries.keys():
            raise SettingsError(f"No fusion {sorted(unknown)}; there are: {', '.join(self.entries)}.")
        entries = {name: entry for name, entry in self.entries.items() if name in names}
        kept = {*list(self.engines)[:2], *(m for entry in entries.values() for m in entry.spec.members)}
        return replace(
            self, engines={n: spec for n, spec in self.engines.items() if n in kept}, entries=entries
        )


def lineup(dtype: str | None = None, config: Path = CONFIG) -> Lineup:
    """Everybody of `config`, engines in `dtype` where it is given; fetches weights that are not there yet."""
    settings, absent = _placed(load_settings(config))
    engines = {spec.name: replace(spec, dtype=dtype or spec.dtype) for spec in engine_specs(settings)}
    wanted = _fusions(settings)
    for name, fuse in _shipped(settings).items():
        if not any(_same(fuse, other) for other in wanted.values()):
            wanted[name if name not in wanted else f"{name} (shipped)"] = fuse
    pair = dict.fromkeys(list(engines)[:2], 0.5)
    named = {find_method(fuse.method, *CONTRACTS).id for fuse in wanted.values()}
    for method in _registered():
        if method.id not in named and "artefact" in method.needs:
            absent[method.id] = "it needs an artefact, and no config names one"
        elif method.id not in named:
            wanted[method.id] = Fusion(method=method.id, members=pair)
    entries = {}
    for name, fuse in wanted.items():
        try:
            if missing := fuse.members.keys() - engines.keys():
                raise SettingsError(f"it needs {', '.join(sorted(missing))}")
            entries[name] = Entry(fuse, find_method(fuse.method, *CONTRACTS), fusion_spec(name, fuse))
        except SettingsError as error:
            absent[name] = str(error)
    return Lineup(engines, entries, absent)


def _fusions(settings: Settings) -> dict[str, Fusion]:
    return {name: s.fuse for name, s in settings.strategies.items() if s.fuse is not None}


def _shipped(settings: Settings) -> dict[str, Fusion]:
    """The fusions of all configs in config/ whose members are models of `settings`."""
    found: dict[str, Fusion] = {}
    for path in sorted((CONFIG.parents[1] / "config").glob("*.yaml")):
        try:
            shipped = load_settings(path)
        except SettingsError:
            continue  # it wants keys of providers from the environment
        found |= {
            n: fuse for n, fuse in _fusions(shipped).items() if fuse.members.keys() <= settings.models.keys()
        }
    return found


def _same(one: Fusion, other: Fusion) -> bool:
    told = {"method", "members", "main", "artefacts", "options"}
    return one.model_dump(include=told) == other.model_dump(include=told)


def _registered() -> Iterator[Method]:
    for contract in CONTRACTS:
        yield from methods(contract)


def _placed(settings: Settings) -> tuple[Settings, dict[str, str]]:
    """The settings with partners' folders below CHORUS_HOME, without those that are not there."""
    home, models, absent = Home.from_environ(), {}, {}
    for name, model in settings.models.items():
        if model.engine is not None and model.engine.weights.startswith("partners/"):
            folder = home.root / model.engine.weights
            if not folder.is_dir():
                absent[name] = f"`python -m engines.partners {folder.name}` makes it"
                continue
            engine = model.engine.model_copy(update={"weights": str(folder)})
            model = model.model_copy(update={"engine": engine})
        models[name] = model
    return settings.model_copy(update={"models": models}), absent
