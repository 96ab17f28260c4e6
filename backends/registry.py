"""The settings' models, and the fusions beside them, as `Model`s by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backends.model import Model
from backends.openai_http import Deployment
from protocol.settings import Endpoint, ModelSettings, OpenAIModel, Settings

__all__ = ["Sockets", "make_models"]

SERVED: Mapping[str, frozenset[Endpoint]] = {
    "engines": frozenset({"chat", "completions"}),
    "embedder": frozenset({"embeddings"}),
}
"""What our own processes serve."""

Sockets = Mapping[str, Path]
"""Our own processes ("engines", "embedder") → the Unix socket each serves on."""


def make_models(settings: Settings, sockets: Sockets) -> dict[str, Model]:
    """One `Model` for each configured model and fusion. Nothing is connected before it is asked.

    The engine host serves its engine models and fusions, and the embedder process its models, under their own
    names.
    """
    prices = {name: model.price.price for name, model in settings.models.items() if model.price}

    def local(name: str, process: str, members: tuple[str, ...] = ()) -> Model:
        upstream = OpenAIModel(
            base_url=f"unix://{sockets[process]}",
            model=name,
            timeout_s=settings.server.deadline_s + 1,
            endpoints=SERVED[process],
        )
        return Model(name, [Deployment(name, upstream)], members=members, prices=prices, local=process)

    def model(name: str, section: ModelSettings) -> Model:
        if section.engine:
            return local(name, "engines")
        if section.embedder:
            return local(name, "embedder")
        return Model(name, [Deployment(name, upstream) for upstream in section.openai or ()], prices=prices)

    models = {name: model(name, section) for name, section in settings.models.items()}
    for name, strategy in settings.strategies.items():
        if strategy.fuse:
            models[name] = local(name, "engines", tuple(strategy.fuse.members))
    return models
