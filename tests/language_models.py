"""A tiny Llama for tests that train one: random weights, a word a token, a few thousand parameters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save_file

from tests.encoders import WORDS

QUICK = {"epochs": 15, "rate": 1e-2, "layers": 2, "batch": 16, "precision": "float32"}
"""Settings with which a tiny language model learns what one word tells, within a few seconds."""

SPECIAL = ("<unk>", "<end>")


def tiny_lm(
    folder: Path,
    *,
    dimensions: int = 32,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    words: Iterable[str] = (),
    seed: int = 0,
) -> Path:
    """Write a tiny Llama folder; `words` are added to what it reads whole. Other words are read as unknown."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in range(33, 127)]
    pieces = list(dict.fromkeys([*SPECIAL, "\n", " ", *WORDS, *words, *letters]))
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": piece, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, piece in enumerate(SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[A-Za-z]+|[0-9]|[^A-Za-z0-9 ]| "},
                          "behavior": "Isolated", "invert": False},
        "post_processor": None, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {piece: i for i, piece in enumerate(pieces)}, "unk_token": "<unk>"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_bytes(orjson.dumps(tokenizer))
    wide, size = 2 * dimensions, dimensions // heads
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": dimensions,
        "intermediate_size": wide, "num_hidden_layers": layers, "num_attention_heads": heads, "head_dim": size,
        "num_key_value_heads": kv_heads, "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "tie_word_embeddings": True,
        "vocab_size": len(pieces), "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    (folder / "config.json").write_bytes(orjson.dumps(config))
    rng = np.random.default_rng(seed)
    shapes = {
        "self_attn.q_proj": (dimensions, dimensions), "self_attn.k_proj": (kv_heads * size, dimensions),
        "self_attn.v_proj": (kv_heads * size, dimensions), "self_attn.o_proj": (dimensions, dimensions),
        "mlp.gate_proj": (wide, dimensions), "mlp.up_proj": (wide, dimensions), "mlp.down_proj": (dimensions, wide),
    }  # fmt: skip
    tensors = {
        "model.embed_tokens.weight": rng.normal(size=(len(pieces), dimensions)),
        "model.norm.weight": np.ones(dimensions),
    }
    for i in range(layers):
        for name, shape in shapes.items():
            tensors[f"model.layers.{i}.{name}.weight"] = rng.normal(size=shape) * shape[1] ** -0.5
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{i}.{name}.weight"] = np.ones(dimensions)
    save_file(
        {name: value.astype(np.float32) for name, value in tensors.items()}, folder / "model.safetensors"
    )
    return folder
