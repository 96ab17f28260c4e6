"""The settings' strategies as `Strategy` objects.

Each kind is imported when a config names it: a gateway without a router loads no numpy. A fusion is not among
them, for its strategy runs in the engine host, and here it is a model of that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway.local_weights import weights_folder
from protocol.errors import MethodError, SettingsError
from protocol.run import Strategy
from protocol.settings import Aggregate, Cascade, Routing, Settings

__all__ = ["make_strategies"]


def make_strategies(settings: Settings) -> dict[str, Strategy]:
    """Every strategy of `settings` that runs in the gateway, by name; their artefacts are loaded.

    Raises `SettingsError` with the strategy's path in the config when one of them cannot work.
    """
    strategies: dict[str, Strategy] = {}
    for name, section in settings.strategies.items():
        with _blamed_on(f"strategies.{name}"):
            if section.route:
                strategies[name] = _route(section.route, settings)
            elif section.cascade:
                strategies[name] = _cascade(section.cascade)
            elif section.aggregate:
                strategies[name] = _aggregate(name, section.aggregate)
    return strategies


def _route(section: Routing, settings: Settings) -> Strategy:
    from routers.strategy import load_routed

    answering = [name for name, model in settings.models.items() if not model.embedder]
    return load_routed(
        section,
        answering=[*answering, *settings.strategies],
        embedder_id=_embedder_id(section.embedder, settings),
    )


def _cascade(section: Cascade) -> Strategy:
    from cascades.strategy import CascadeStrategy

    return CascadeStrategy.from_settings(section)


def _aggregate(name: str, section: Aggregate) -> Strategy:
    from ensembles.answers.strategy import AnswerEnsemble

    return AnswerEnsemble.from_settings(name, section)


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
    except (MethodError, OSError) as error:
        raise SettingsError(
            f"{where}: {error} Make it anew (`chorus train`, `chorus calibrate`), or remove {where}."
        ) from error
