"""The settings' strategies as `Strategy` objects.

Each kind is imported when a config names it: a gateway without a router loads no numpy. A fusion is not among
them, for its strategy runs in the engine host, and here it is a model of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.fingerprint import digest
from gateway.local_weights import weights_folder
from protocol.errors import MethodError, SettingsError
from protocol.methods import FUSIONS, Contract, find_method, load_method
from protocol.run import Strategy
from protocol.settings import Aggregate, Cascade, Routing, Settings, StrategySettings, Talk

__all__ = ["Made", "check_methods", "make_strategies"]

_CONTRACTS: Mapping[str, tuple[Contract, ...]] = {
    "route": ("router",),
    "cascade": ("scorer",),
    "aggregate": ("aggregator",),
    "talk": ("router",),
    "fuse": FUSIONS,
}
"""Kind of strategy → which methods may decide in it."""


@dataclass(frozen=True, slots=True)
class Made:
    """A strategy, and what it was made of: another one made of equal things would do the same."""

    strategy: Strategy
    made_of: object


def check_methods(settings: Settings) -> None:
    """Raises `SettingsError` with the path of the first method that nobody knows; loads nothing but its record."""
    for name, section in settings.strategies.items():
        for kind, contracts in _CONTRACTS.items():
            if (part := getattr(section, kind)) is not None:
                find_method(part.method, *contracts, where=f"strategies.{name}.{kind}.method")


def make_strategies(settings: Settings, before: Mapping[str, Made] | None = None) -> dict[str, Made]:
    """Every strategy of `settings` that runs in the gateway, by name; their artefacts are loaded. One that was made
    `before` of the same section, artefact and names is taken over, with what it has learnt since.

    Raises `SettingsError` with the strategy's path in the config when one of them cannot work.
    """
    strategies: dict[str, Made] = {}
    for name, section in settings.strategies.items():
        if section.fuse:
            continue
        made_of = _ingredients(section, settings)
        old = (before or {}).get(name)
        if old is not None and old.made_of == made_of:
            strategies[name] = old
            continue
        with _blamed_on(f"strategies.{name}"):
            if section.route:
                strategies[name] = Made(_route(section.route, settings), made_of)
            elif section.cascade:
                strategies[name] = Made(_cascade(section.cascade), made_of)
            elif section.aggregate:
                strategies[name] = Made(_aggregate(name, section.aggregate), made_of)
            elif section.talk:
                strategies[name] = Made(_talk(section.talk), made_of)
    return strategies


def _ingredients(section: StrategySettings, settings: Settings) -> object:
    """What a strategy is made of; an artefact by what it holds."""
    reads = section.route or section.cascade
    named = section.route.embedder if section.route else None
    embedder = settings.models[named] if named is not None else None
    return section, digest(reads.artefact) if reads else None, _answering(settings), embedder


def _answering(settings: Settings) -> list[str]:
    answering = [name for name, model in settings.models.items() if not model.embedder]
    return [*answering, *settings.strategies]


def _route(section: Routing, settings: Settings) -> Strategy:
    from routers.strategy import load_routed

    return load_routed(
        section,
        answering=_answering(settings),
        embedder_id=_embedder_id(section.embedder, settings) if section.embedder else None,
    )


def _cascade(section: Cascade) -> Strategy:
    from cascades.strategy import CascadeStrategy

    return CascadeStrategy.from_settings(section)


def _aggregate(name: str, section: Aggregate) -> Strategy:
    from ensembles.answers.strategy import AnswerEnsemble

    return AnswerEnsemble.from_settings(name, section)


def _talk(section: Talk) -> Strategy:
    method = find_method(section.method, "router")
    talk = getattr(load_method(method), "talk", None)
    if talk is None:
        raise MethodError(f"{method.id} does not talk; router-r1 and disrouter do.")
    router = {} if section.router is None else {"router": section.router}
    try:
        strategy: Strategy = talk(section.members, **section.options, **router)
    except (TypeError, ValueError) as error:
        raise MethodError(f"{method.id} does not take this: {error}.") from None
    return strategy


def _embedder_id(name: str, settings: Settings) -> str:
    """The id an artefact names its embedder by; of a model behind an API we know no more than its name
    there."""
    from outcomes.embedder import embedder_id

    model = settings.models[name]
    if model.embedder:
        return embedder_id(weights_folder(model.embedder.weights))
    return model.deployments[0].model if model.deployments else name


@contextmanager
def _blamed_on(where: str) -> Iterator[None]:
    try:
        yield
    except SettingsError as error:
        if error.message.startswith(where):
            raise  # it names its path itself
        raise SettingsError(f"{where}: {error}") from error
    except (MethodError, OSError) as error:
        raise SettingsError(
            f"{where}: {error} Make it anew (`chorus train`, `chorus calibrate`), or remove {where}."
        ) from error
