"""Settings made into what a gateway runs on: models, strategies, and the catalogue of their names."""

from __future__ import annotations

from backends.registry import Sockets, make_models
from gateway.abilities import make_lacks
from gateway.catalogue import Catalogue
from gateway.strategies import make_strategies
from protocol.methods import find_method
from protocol.settings import Settings

__all__ = ["make_catalogue"]


def make_catalogue(settings: Settings, sockets: Sockets, before: Catalogue | None = None) -> Catalogue:
    """Nothing is connected yet, but artefacts are loaded. What did not change since `before` is taken over. Raises
    `SettingsError`."""
    made = make_strategies(settings, before.made if before else None)
    return Catalogue(
        make_models(settings, sockets, before.models if before else None),
        {name: each.strategy for name, each in made.items()},
        fusions=frozenset(name for name, strategy in settings.strategies.items() if strategy.fuse),
        embedding=frozenset(name for name, model in settings.models.items() if model.embedder),
        lacks=make_lacks(settings),
        thresholds=_thresholds(settings),
        made=made,
    )


def _thresholds(settings: Settings) -> dict[str, str]:
    """Strategies with a threshold, by their own name, their method's id, and what RouteLLM calls it; of several of one
    method the first."""
    found: dict[str, str] = {}
    routes = {
        name: strategy.route
        for name, strategy in settings.strategies.items()
        if strategy.route and strategy.route.policy and strategy.route.policy.threshold
    }
    for name, route in routes.items():
        method = find_method(route.method, "router")
        for called in (method.id, *method.aliases):
            found.setdefault(called, name)
    return found | {name: name for name in routes}
