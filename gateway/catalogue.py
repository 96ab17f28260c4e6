"""Every public name and what stands behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from backends.model import Model
from protocol.chat import ChatRequest
from protocol.errors import BadRequest, ModelNotFound, NotFound
from protocol.run import Event, Run, Strategy
from protocol.settings import Endpoint

__all__ = ["DIRECT", "Catalogue", "Direct", "Target"]

DIRECT = "direct"
"""The strategy of a plain model, as answers and metrics call it."""


class Direct:
    """Ask the model named in the request, and nobody else."""

    def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        return run.relay(request.model, request)


@dataclass(frozen=True, slots=True)
class Target:
    """What answers a request, and the strategy's name to tell the caller."""

    strategy: Strategy
    label: str


class Catalogue:
    """`models` and `strategies` by public name; a name of `fusions` is a model of the engine host and a
    strategy to the caller; `embedding` names models that only embed."""

    def __init__(
        self,
        models: Mapping[str, Model],
        strategies: Mapping[str, Strategy],
        *,
        fusions: frozenset[str] = frozenset(),
        embedding: frozenset[str] = frozenset(),
    ) -> None:
        self.models, self.strategies = models, strategies
        self.embedding = embedding
        self.names = (*(name for name in models if name not in fusions), *strategies, *sorted(fusions))
        direct = Direct()
        self._targets = {
            **{name: Target(direct, name if name in fusions else DIRECT) for name in models},
            **{name: Target(strategy, name) for name, strategy in strategies.items()},
        }

    def resolve(self, name: str, endpoint: Endpoint, path: str) -> Target:
        """Who answers `name` at the `endpoint`, which the caller knows as /v1`path`. Raises `ModelNotFound`;
        `BadRequest` where a strategy or an embedding model cannot serve; `NotFound` where the backend has no such
        endpoint."""
        target = self._targets.get(name)
        if target is None:
            raise ModelNotFound(name, self.names)
        if name in self.strategies:
            if endpoint != "chat":
                raise BadRequest(f"{name!r} is a strategy; /v1{path} serves models only.", param="model")
        elif name in self.embedding:
            if endpoint != "embeddings":
                raise BadRequest(
                    f"{name!r} is an embedding model; it serves /v1/embeddings only.", param="model"
                )
        elif endpoint not in self.models[name].endpoints:
            raise NotFound(f"The model {name!r} has no /v1{path} here.", param="model")
        return target

    def has(self, name: str, endpoint: Endpoint) -> bool:
        """Whether `name` is a plain model whose backend has the `endpoint`."""
        return name in self.models and endpoint in self.models[name].endpoints

    def first_with(self, endpoint: Endpoint, path: str) -> str:
        """The first configured model whose backend has the `endpoint`. Raises `NotFound`."""
        for name, model in self.models.items():
            if endpoint in model.endpoints:
                return name
        raise NotFound(f"No backend here has /v1{path}.")

    async def close(self) -> None:
        """Close the connections of every model."""
        for model in self.models.values():
            await model.close()
