"""How an encoder router is kept: the encoder, its head and tokenizer, the models' mean costs, and the method's own
tensors in one safetensors file; the encoder's shape beside the recipe in the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.encoder import EncoderShape, TrainedEncoder
from outcomes.encoder_training import EncoderTraining

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["EncoderRouter", "KeptEncoder", "load_encoder", "save_encoder"]


@dataclass(frozen=True, slots=True, eq=False)
class KeptEncoder:
    """What was read: the `manifest` without the encoder's shape, so that its parameters are the router's arguments;
    all `tensors`; the models' mean `costs` in US dollars, NaN where unknown."""

    manifest: Manifest
    shape: EncoderShape
    tensors: Mapping[str, NDArray[Any]]
    costs: NDArray[np.float64]

    def trained(self, outputs: int, *, unit: bool = False) -> TrainedEncoder:
        """The encoder with a head of `outputs`. Raises `MethodError`."""
        return TrainedEncoder.of(self.tensors, self.shape, outputs, unit=unit)


def save_encoder(
    folder: Path,
    manifest: Manifest,
    trained: TrainedEncoder,
    costs: NDArray[np.float64],
    own: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write the artefact; `own`: tensors of the method."""
    parameters = {**manifest.parameters, "encoder": trained.encoder.shape.wire()}
    tensors = {**trained.tensors(), "cost_usd": costs, **(own or {})}
    save_artefact(folder, replace(manifest, parameters=parameters), tensors)


def load_encoder(folder: Path, method: str) -> KeptEncoder:
    """Read what `save_encoder` wrote. Raises `MethodError`, `ArtefactMismatch`."""
    manifest, tensors = load_artefact(folder, method=method)
    parameters = dict(manifest.parameters)
    shape = EncoderShape.parse(parameters.pop("encoder", None))
    costs = tensor(tensors, "cost_usd", (len(manifest.models),), finite=False)
    return KeptEncoder(replace(manifest, parameters=parameters), shape, tensors, costs)


@dataclass(kw_only=True, eq=False)
class EncoderRouter(EncoderTraining):
    """A router that is one encoder with an output a model, and the models' mean costs. `method`: its id; `unit`: its
    outputs are cosines."""

    method: ClassVar[str]
    unit: ClassVar[bool] = False

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=self.method, models=self.models_, parameters=self.recipe())
        save_encoder(folder, manifest, self.encoder_, self.costs_)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        kept = load_encoder(folder, cls.method)
        router, models = cls(**arguments(cls, kept.manifest)), kept.manifest.models
        router._keep(models, kept.trained(len(models), unit=cls.unit), kept.costs)
        return router

    def _keep(self, models: tuple[str, ...], encoder: TrainedEncoder, costs: NDArray[np.float64]) -> None:
        self.models_, self.encoder_, self.costs_ = models, encoder, costs
