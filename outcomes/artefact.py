"""Fitted artefacts: a folder with `manifest.json` and `tensors.safetensors`, never pickle.

The manifest says which method, for which models and embedder, learnt from which data, and how well it did.
Loading refuses what does not fit the deployment, and what is malformed or larger than any artefact of ours,
before using it.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from outcomes.assignment import Knob
from protocol.errors import ArtefactMismatch, MethodError
from protocol.methods import find_method, load_method
from protocol.routing import Router

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Tensors = Mapping[str, NDArray[Any]]

__all__ = [
    "Manifest",
    "annotate",
    "arguments",
    "load_artefact",
    "load_router",
    "read_manifest",
    "save_artefact",
    "tensor",
]

FORMAT = 1
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_TENSOR_BYTES = 2 * 1024**3
MAX_TENSORS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artefact is.

    `version` identifies its content; `embedder` the embedder id its vectors came from (empty: it needs
    none); `data` the hash of the outcome table; `metrics` the metrics card of its held-out queries;
    `created` UTC, ISO 8601; `parameters` the method's own values; `knob` the calibrated quality knob of a
    router.
    """

    method: str
    models: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    embedder: str = ""
    data: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    knob: Mapping[str, Any] | None = None
    format: int = FORMAT

    def require(self, *, models: Collection[str] | None = None, embedder: str | None = None) -> None:
        """Check the artefact against a deployment: all of its models must be among `models`, and its
        embedder must be `embedder`. None: not checked. Raises `ArtefactMismatch` naming both sides."""
        missing = [] if models is None else [name for name in self.models if name not in models]
        if models is not None and missing:
            raise ArtefactMismatch(
                f"The {self.method} artefact {self.version} was made for {', '.join(self.models)}, but the "
                f"config has {', '.join(sorted(models))}: {', '.join(missing)} cannot be asked here. "
                "Train anew or add the model."
            )
        if embedder is not None and self.embedder and self.embedder != embedder:
            raise ArtefactMismatch(
                f"The {self.method} artefact {self.version} was made with the embedder {self.embedder}, "
                f"but the config has {embedder}. Train anew or configure that embedder."
            )


def save_artefact(folder: Path, manifest: Manifest, tensors: Tensors) -> Manifest:
    """Write an artefact; the manifest, last and atomically. Returns it with its `version` filled in."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    (folder / "tensors.safetensors").write_bytes(data)
    return _write_manifest(folder, manifest)


def annotate(folder: Path, **changes: Any) -> Manifest:
    """Change fields of the manifest of an artefact (`embedder`, `data`, `metrics`, `created`, `knob`).
    Returns it."""
    _write_manifest(folder, replace(read_manifest(folder), **changes))
    return read_manifest(folder)


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json`. Raises `MethodError`."""
    path = folder / "manifest.json"
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise MethodError(
                f"{path} is larger than {MAX_MANIFEST_BYTES} bytes; that is no manifest of ours."
            )
        value = orjson.loads(path.read_bytes())
        manifest = Manifest(**{**value, "models": tuple(value["models"])})
        if manifest.knob is not None:
            Knob.parse(manifest.knob)
    except OSError as error:
        raise MethodError(f"No artefact at {folder} ({error.strerror}); `chorus train` writes one.") from None
    except (orjson.JSONDecodeError, TypeError, KeyError, ValueError) as error:
        raise MethodError(f"{path} is not a manifest: {error}.") from None
    if manifest.format != FORMAT:
        raise MethodError(f"{path} has format {manifest.format}, this Chorus reads {FORMAT}. Train anew.")
    texts = (
        manifest.method,
        manifest.version,
        manifest.embedder,
        manifest.data,
        manifest.created,
        *manifest.models,
    )
    if not all(isinstance(text, str) for text in texts):
        raise MethodError(
            f"{path} is not a manifest: method, version, embedder, data, created and models are strings."
        )
    return manifest


def load_artefact(folder: Path, *, method: str) -> tuple[Manifest, dict[str, NDArray[Any]]]:
    """The manifest and tensors of an artefact of `method`. Raises `ArtefactMismatch` for another method's,
    `MethodError` for one that is missing, malformed or too large."""
    from safetensors import SafetensorError, safe_open

    manifest = read_manifest(folder)
    if manifest.method != method:
        raise ArtefactMismatch(
            f"{folder} holds an artefact of {manifest.method}, but {method} was configured."
        )
    path = folder / "tensors.safetensors"
    try:
        if path.stat().st_size > MAX_TENSOR_BYTES:
            raise MethodError(f"{path} is larger than {MAX_TENSOR_BYTES} bytes; that is no artefact of ours.")
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            if len(names) > MAX_TENSORS:
                raise MethodError(f"{path} has {len(names)} tensors, at most {MAX_TENSORS} are read.")
            return manifest, {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise MethodError(f"{path} cannot be read: {error}.") from None
    except SafetensorError as error:
        raise MethodError(f"{path} is not a safetensors file: {error}.") from None


def tensor(
    tensors: Tensors, name: str, shape: tuple[int | None, ...], *, finite: bool = True
) -> NDArray[Any]:
    """A tensor that is there, of that shape (None: any size), of floats without NaN or infinity. Raises
    `MethodError`."""
    value = tensors.get(name)
    if value is None:
        raise MethodError(f"The artefact has no tensor {name!r}; it has {', '.join(tensors) or 'none'}.")
    fits = len(value.shape) == len(shape) and all(
        wanted in (None, size) for wanted, size in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise MethodError(f"The artefact's tensor {name!r} has shape {value.shape}, expected {shape}.")
    if finite and not np.isfinite(value).all():
        raise MethodError(f"The artefact's tensor {name!r} holds values that are not finite.")
    return value


def arguments(kind: type, manifest: Manifest) -> dict[str, Any]:
    """What `manifest.parameters` holds as keyword arguments for the constructor of `kind`. Raises `MethodError` for
    parameters it does not take, and for values of another type than its defaults."""
    return options_of(kind, manifest.parameters, f"The {manifest.method} artefact")


def options_of(kind: type, given: Mapping[str, Any], whose: str) -> dict[str, Any]:
    """`given` as keyword arguments for the constructor of `kind`. Raises `MethodError`, which begins with `whose` they
    are, for those it does not take, and for values of another type."""
    known = inspect.signature(kind).parameters
    for name, value in given.items():
        if name not in known:
            raise MethodError(f"{whose} has no option {name!r}; there are {', '.join(known)}.")
        if not _fits(value, known[name]):
            raise MethodError(f"{whose} has {name} of {value!r}; it is of type {known[name].annotation}.")
    return dict(given)


def _fits(value: Any, parameter: inspect.Parameter) -> bool:
    """Whether a parameter takes a value: by the type written down where that is a plain one, else by its default's."""
    written = str(parameter.annotation)
    if written.startswith("Literal["):
        return value in ast.literal_eval(f"({written[len('Literal[') : -1]},)")
    wanted = set(written.split(" | "))
    if not wanted <= {"int", "float", "str", "bool", "None"}:
        wanted = {type(parameter.default).__name__}
    found = "None" if value is None else type(value).__name__
    return found in wanted or (found == "int" and "float" in wanted)


def load_router(
    folder: Path, *, models: Collection[str] | None = None, embedder: str | None = None
) -> tuple[Manifest, Router]:
    """The router that an artefact holds, of whatever registered method, checked against a deployment (see
    `Manifest.require`). Raises `ArtefactMismatch`, `MethodError`."""
    manifest = read_manifest(folder)
    manifest.require(models=models, embedder=embedder)
    router: Router = load_method(find_method(manifest.method, "router")).load(folder)
    return manifest, router


def _write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the version that its content has: a digest of the tensors and of all fields
    but the time of making and the metrics, so that the same data and method give the same version."""
    hashed = hashlib.sha256((folder / "tensors.safetensors").read_bytes())
    content = {
        key: value for key, value in asdict(manifest).items() if key not in ("version", "created", "metrics")
    }
    hashed.update(orjson.dumps(content, option=orjson.OPT_SORT_KEYS))
    manifest = replace(manifest, version=hashed.hexdigest()[:12])
    draft = folder / "manifest.json.tmp"
    options = orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY
    draft.write_bytes(orjson.dumps(asdict(manifest), option=options) + b"\n")
    draft.replace(folder / "manifest.json")
    return manifest
