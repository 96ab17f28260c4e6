"""How a language-model router is kept: what it learnt (adapter, extra tensors), the models' mean costs and the loss
curve in one safetensors file; name and digest of the base model beside the recipe in the manifest.

The base itself stays where it is: `$CHORUS_HOME/weights/<name>`. Loading refuses another one of that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from outcomes.artefact import Manifest, load_artefact, read_manifest, save_artefact, tensor
from outcomes.causal_lm import CausalLm
from outcomes.causal_training import TrainedLm
from protocol.errors import ArtefactMismatch, MethodError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ABOUT_OTHERS = ("weights.json", "model.safetensors.index.json")
"""Files of a base folder that describe its own weights file."""

__all__ = ["KeptLm", "export_lm", "load_lm", "save_lm"]


@dataclass(frozen=True, slots=True, eq=False)
class KeptLm:
    """What was read: the `manifest` without the base model, so that its parameters are the router's arguments; all
    `tensors`; the models' mean `costs` in US dollars, NaN where unknown; the base model."""

    manifest: Manifest
    tensors: Mapping[str, NDArray[Any]]
    costs: NDArray[np.float64]
    base: CausalLm

    def trained(self, prefix: str = "") -> TrainedLm:
        """The language model that the tensors under `prefix` adapt. Raises `MethodError`."""
        own = {name[len(prefix) :]: value for name, value in self.tensors.items() if name.startswith(prefix)}
        names = [
            name[len("lora.") : -len(".a")]
            for name in own
            if name.startswith("lora.") and name.endswith(".a")
        ]
        adapter = {
            name: (
                tensor(own, f"lora.{name}.a", (None, None)).astype(np.float32),
                tensor(own, f"lora.{name}.b", (None, None)).astype(np.float32),
            )
            for name in names
        }
        extra = {
            name.removeprefix("extra."): np.asarray(value, dtype=np.float32)
            for name, value in own.items()
            if name.startswith("extra.") and np.isfinite(value).all()
        }
        losses = tensor(own, "losses", (None,)).astype(np.float32)
        return TrainedLm(self.base.adapted(adapter), extra, losses)


def save_lm(
    folder: Path,
    manifest: Manifest,
    trained: TrainedLm | Sequence[TrainedLm],
    costs: NDArray[np.float64],
    own: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write the artefact: of one trained model, or of several under the prefixes `0.`, `1.`, …; `own`: tensors of the
    method."""
    several = (
        [("", trained)] if isinstance(trained, TrainedLm) else [(f"{i}.", lm) for i, lm in enumerate(trained)]
    )
    tensors: dict[str, NDArray[Any]] = {"cost_usd": costs, **(own or {})}
    for prefix, lm in several:
        for name, (a, b) in lm.lm.adapter.items():
            tensors |= {f"{prefix}lora.{name}.a": a, f"{prefix}lora.{name}.b": b}
        tensors |= {f"{prefix}extra.{name}": value for name, value in lm.extra.items()}
        tensors[f"{prefix}losses"] = lm.losses
    base = several[0][1].lm
    parameters = {**manifest.parameters, "base": {"name": base.name, "digest": base.digest}}
    save_artefact(folder, replace(manifest, parameters=parameters), tensors)


def load_lm(folder: Path, method: str) -> KeptLm:
    """Read what `save_lm` wrote. Raises `MethodError`, `ArtefactMismatch`."""
    manifest, tensors = load_artefact(folder, method=method)
    parameters = dict(manifest.parameters)
    told = parameters.pop("base", None)
    if (
        not isinstance(told, dict)
        or not isinstance(told.get("name"), str)
        or Path(told["name"]).name != told["name"]
    ):
        raise MethodError(f"{folder} does not say which language model it adapts.")
    base = CausalLm.load(told["name"])
    if base.digest != told.get("digest"):
        raise ArtefactMismatch(
            f"The {method} artefact {manifest.version} adapts {told['name']} {told.get('digest')}, but "
            f"{base.folder} holds {base.digest}. Train anew or put that model there."
        )
    costs = tensor(tensors, "cost_usd", (len(manifest.models),), finite=False)
    return KeptLm(replace(manifest, parameters=parameters), tensors, costs, base)


def export_lm(artefact: Path, out: Path, *, agent: int | None = None) -> None:
    """Write the language model of an artefact, adapter merged, as a Hugging Face folder that the engine host, vLLM or
    transformers serve. `agent`: which one of several. Raises `MethodError`, for a method whose model is more than a
    language model too."""
    import shutil

    from safetensors.numpy import save_file

    kept = load_lm(artefact, read_manifest(artefact).method)
    prefix = "" if agent is None else f"{agent}."
    if f"{prefix}losses" not in kept.tensors:
        raise MethodError(f"{artefact} has no language model{'' if agent is None else f' number {agent}'}.")
    trained = kept.trained(prefix)
    if trained.extra:
        raise MethodError(
            f"{kept.manifest.method} adds {', '.join(trained.extra)} to its language model; that is no text."
        )
    tensors = {}
    for name, value in trained.lm.weights.items():
        product = trained.lm.adapter.get(name.removesuffix(".weight"))
        merged = value if product is None else value + product[1] @ product[0]
        full = name if name.startswith("lm_head") else f"model.{name}"
        tensors[full] = np.ascontiguousarray(merged, dtype=np.float32)
    out.mkdir(parents=True, exist_ok=True)
    for path in trained.lm.folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja") and path.name not in ABOUT_OTHERS:
            shutil.copyfile(path, out / path.name)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
