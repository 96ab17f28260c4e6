"""Every public name and what stands behind it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from backends.model import Model
from backends.openai_http import Deployment
from gateway.abilities import Lacks
from gateway.strategies import Made
from protocol.chat import ChatRequest
from protocol.errors import BadRequest, ModelNotFound, NotFound
from protocol.run import Event, Run, Strategy
from protocol.settings import Endpoint

__all__ = ["DIRECT", "Catalogue", "Direct", "Target"]

DIRECT = "direct"
"""The strategy of a plain model, as answers and metrics call it."""

_ROUTELLM = re.compile(r"router-(?P<name>.{1,128})-(?P<threshold>[0-9]{1,4}|[0-9]{0,4}\.[0-9]{1,17})")
"""RouteLLM's names: a router and its threshold."""


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
    strategy to the caller; `embedding` names models that only embed; `lacks` tells what a name cannot do; `thresholds`
    maps a router as RouteLLM calls it (`mf`) to a strategy with a threshold."""

    def __init__(
        self,
        models: Mapping[str, Model],
        strategies: Mapping[str, Strategy],
        *,
        fusions: frozenset[str] = frozenset(),
        embedding: frozenset[str] = frozenset(),
        lacks: Lacks = lambda names, body: [None] * len(names),
        thresholds: Mapping[str, str] | None = None,
        made: Mapping[str, Made] | None = None,
    ) -> None:
        self.models, self.strategies = models, strategies
        self.embedding, self.lacks = embedding, lacks
        self._fusions, self._thresholds = fusions, thresholds or {}
        self.made = made or {}
        """The strategies with what they were made of, for the catalogue that takes this one's place."""
        self.names = (*(name for name in models if name not in fusions), *strategies, *sorted(fusions))
        direct = Direct()
        self._targets = {
            **{name: Target(direct, name if name in fusions else DIRECT) for name in models},
            **{name: Target(strategy, name) for name, strategy in strategies.items()},
        }

    def by_threshold(self, asked: ChatRequest) -> ChatRequest:
        """`asked`, of a strategy and a threshold where its model is called so in RouteLLM's way (`router-mf-0.116`).
        Raises `BadRequest` for a threshold above 1."""
        if not self._thresholds or asked.model in self._targets:
            return asked
        told = _ROUTELLM.fullmatch(asked.model)
        strategy = self._thresholds.get(told["name"]) if told else None
        if told is None or strategy is None:
            return asked
        threshold = float(told["threshold"])
        if threshold > 1:
            raise BadRequest(
                f"The threshold of {asked.model!r} lies between 0 and 1; {strategy!r} is the route by itself.",
                param="model",
            )
        body: dict[str, Any] = {**asked.body, "model": strategy}
        return ChatRequest(body, replace(asked.options, threshold=threshold))

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

    def sent(self, name: str, asked: ChatRequest) -> Mapping[str, Any]:
        """The body that the model `name` gets: the caller's, and for a fusion the weights he wants. Raises `BadRequest`
        where a model that has no members is to weigh them."""
        weights = asked.options.weights
        if weights is None:
            return asked.body
        if name not in self._fusions:
            raise BadRequest(f"{name!r} is no fusion: it has no members to weigh.", param="chorus.weights")
        return {**asked.body, "chorus": {"weights": weights}}

    def has(self, name: str, endpoint: Endpoint) -> bool:
        """Whether `name` is a plain model whose backend has the `endpoint`."""
        return name in self.models and endpoint in self.models[name].endpoints

    def first_with(self, endpoint: Endpoint, path: str) -> str:
        """The first configured model whose backend has the `endpoint`. Raises `NotFound`."""
        for name, model in self.models.items():
            if endpoint in model.endpoints:
                return name
        raise NotFound(f"No backend here has /v1{path}.")

    def deployments(self) -> set[Deployment]:
        """Those of every model. Another catalogue may have some of them too."""
        return {deployment for model in self.models.values() for deployment in model.deployments}

    async def close(self) -> None:
        """Close the connections of every model."""
        for deployment in self.deployments():
            await deployment.close()
