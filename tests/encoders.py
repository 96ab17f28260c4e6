"""A tiny BERT for tests that train one: random weights, a vocabulary of the words it will meet, seconds to train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
from safetensors.numpy import save_file

from outcomes.encoder import weight_names

WORDS = """
river stone bridge sum of numbers french word for opposite warm number question topic alpha beta gamma easy hard
history algebra poem code what is the a in noise one two three four five
""".split()  # noqa: SIM905 -- a list of forty words reads worse

QUICK = {"epochs": 12, "rate": 3e-3, "head_rate": 3e-2}
"""Settings with which a tiny encoder learns what one word tells, within a second or two."""


def tiny_encoder(
    folder: Path, *, dimensions: int = 16, layers: int = 1, heads: int = 2, positions: int = 32, seed: int = 0
) -> Path:
    """Write a tiny BERT folder. Words outside the vocabulary are read digit by digit or as unknown."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(WORDS)]
    pieces += [f"{mark}{digit}" for mark in ("", "##") for digit in range(10)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    special = [{"id": i, "content": pieces[i], "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for i in range(4)]  # fmt: skip
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocabulary},
    }  # fmt: skip
    (folder / "tokenizer.json").write_bytes(orjson.dumps(tokenizer))
    wide = 2 * dimensions
    config = {
        "model_type": "bert", "hidden_act": "gelu", "num_attention_heads": heads, "layer_norm_eps": 1e-12,
        "max_position_embeddings": positions, "hidden_size": dimensions, "num_hidden_layers": layers,
        "intermediate_size": wide, "vocab_size": len(vocabulary), "type_vocab_size": 2,
    }  # fmt: skip
    (folder / "config.json").write_bytes(orjson.dumps(config))
    rng = np.random.default_rng(seed)
    widths = {f"encoder.layer.{i}.intermediate.dense.bias": np.zeros(wide) for i in range(layers)}
    sizes = {"word": len(vocabulary), "position": positions, "token_type": 2}
    tensors = {}
    for name, shape in weight_names(widths, dimensions).items():
        table = name.removeprefix("embeddings.").removesuffix("_embeddings.weight")
        full = tuple(sizes[table] if size is None else size for size in shape)
        if "LayerNorm" in name or name.endswith("bias"):
            tensors[name] = np.full(full, float(name.endswith("LayerNorm.weight")), dtype=np.float32)
        else:
            spread = 1.0 if table == "word" else 0.1 if table in sizes else dimensions**-0.5
            tensors[name] = (spread * rng.normal(size=full)).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    return folder
