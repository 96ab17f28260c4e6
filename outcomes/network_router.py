"""What routers with a small network on frozen embeddings share: how it is trained and how it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.networks import Network, fit_network, fit_tagged
from protocol.errors import MethodError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outcomes.networks import Gradient

    Floats = NDArray[np.float64]

__all__ = ["NetworkRouter", "NetworkTraining"]


@dataclass(kw_only=True, eq=False)
class NetworkTraining:
    """How a network with one hidden layer is trained: `hidden` units, `epochs`, rows of a `batch`, `rate`, `decay`,
    `seed`."""

    hidden: int = 64
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    decay: float = 5.0
    seed: int = 0

    def recipe(self) -> dict[str, Any]:
        """The settings as parameters of an artefact; what a method takes that is none has `repr=False`."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.repr}

    def trained(self, inputs: NDArray[np.floating[Any]], outputs: int, gradient: Gradient) -> Network:
        """`outcomes.networks.fit_network` with these settings."""
        return fit_network(inputs, outputs, gradient, hidden=(self.hidden,), **self._pace())

    def trained_on_pairs(
        self, vectors: Floats, tags: Floats, known: NDArray[np.bool_], gradient: Gradient
    ) -> Network:
        """`outcomes.networks.fit_tagged` with these settings."""
        return fit_tagged(vectors, tags, known, gradient, hidden=self.hidden, **self._pace())

    def _pace(self) -> dict[str, Any]:
        names: Sequence[str] = ("epochs", "batch", "rate", "decay", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True, eq=False)
class NetworkRouter(NetworkTraining):
    """A router that is one network and the models' mean costs. `method`: its id; `heads`: outputs a model has, 0 when
    one output serves all."""

    method: ClassVar[str]
    heads: ClassVar[int] = 1

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=self.method, models=self.models_, parameters=self.recipe())
        save_artefact(folder, manifest, {**self.network_.tensors(), "cost_usd": self.costs_})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=cls.method)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        network = Network.of(tensors, cls.heads * m or 1)
        if len(network.layers) != 2 or (not cls.heads and network.inputs <= m):
            raise MethodError(f"{folder} does not hold a network of {cls.method} for {m} models.")
        router._keep(manifest.models, network, tensor(tensors, "cost_usd", (m,), finite=False))
        return router

    def _keep(self, models: tuple[str, ...], network: Network, costs: Floats) -> None:
        self.models_, self.network_, self.costs_ = models, network, costs
