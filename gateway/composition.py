"""Settings made into what a gateway runs on: models, strategies, and the catalogue of their names."""

from __future__ import annotations

from backends.registry import Sockets, make_models
from gateway.catalogue import Catalogue
from gateway.strategies import make_strategies
from protocol.settings import Settings

__all__ = ["make_catalogue"]


def make_catalogue(settings: Settings, sockets: Sockets) -> Catalogue:
    """Nothing is connected yet, but artefacts are loaded. Raises `SettingsError`."""
    return Catalogue(
        make_models(settings, sockets),
        make_strategies(settings),
        fusions=frozenset(name for name, strategy in settings.strategies.items() if strategy.fuse),
        embedding=frozenset(name for name, model in settings.models.items() if model.embedder),
    )
