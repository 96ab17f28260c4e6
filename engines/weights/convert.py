"""GGUF → Hugging Face folder, once: dequantised float32 tensors, a faithful tokenizer, generation settings.

Run as ``python -m engines.weights.convert MODEL.gguf FOLDER EOS_ID…`` in a process of its own, because it
needs torch and a few gigabytes for under a minute and `ensure` is called from processes that want neither.
Prints the facts for the manifest as JSON.

*Why float32.* A Q4 or Q5 weight is ``scale * q + offset`` with 16-bit scale and offset: up to 16 significant
bits, so bfloat16 (8 bits) and float16 (11 bits) would both round what the GGUF says. float32 keeps every
value exactly, so that a float32 run here and an independent one from the same GGUF are the same model, which
the equivalence tests of token-level methods rest on. It costs 1.6 GB of disk for both models instead of 0.8;
an engine that runs in bfloat16 rounds once, when it loads.

*Tokenizers.* transformers rebuilds one from the GGUF, with two gaps that are closed here. It does not know
the pre-tokenizer name in ``tokenizer.ggml.pre`` (SmolLM2's "smollm" splits off every digit first, which
changes how spaces and newlines before a digit are cut), and it drops ``add_bos_token`` (Gemma answers
nonsense without ``<bos>``). ``tokenizer_class`` is the generic one, so that every loader uses exactly what
``tokenizer.json`` says.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.weights.digest import tensors_sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["convert_gguf"]

# Texts that must survive encode → decode: whitespace runs, digits, code, several scripts, combining marks,
# emoji.
_ROUND_TRIP = (
    "The capital of France is Paris.",
    "a\n\n1. one\n   2. two\n\tthree 3000  40",
    "def f(x):\n    return x ** 2\n",
    "naïve café, 漢字かな, кот, עברית, हिन्दी, e\u0301, 👩\u200d👩\u200d👧 €",
    " leading and trailing ",
)


def convert_gguf(gguf: Path, folder: Path, eos_token_ids: Sequence[int]) -> dict[str, Any]:
    """Write config, generation config, tokenizer, chat template and ``model.safetensors`` for ``gguf`` into
    ``folder``.

    Args:
        gguf: a GGUF file of an architecture transformers reads.
        folder: an existing empty folder.
        eos_token_ids: ids that end an answer; the first is the tokenizer's own.

    Returns:
        The facts about a language model that ``weights.json`` states.

    Raises:
        ValueError: the file names a pre-tokenizer that is not known here, or the result fails its checks.
    """
    fields = _header(gguf)
    _write_model(gguf, folder)
    _write_tokenizer(gguf, folder, fields)
    _write_generation_config(folder, fields, eos_token_ids)
    _check(folder, fields, eos_token_ids)
    return {
        "kind": "causal-lm",
        "format": "huggingface",
        "digest": f"sha256:{tensors_sha256(folder / 'model.safetensors')}",
        "made_with": {
            name: importlib.metadata.version(name) for name in ("torch", "transformers", "gguf", "tokenizers")
        },
        "lm": {
            "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
            "eos_token_ids": list(eos_token_ids),
            "adds_bos": bool(fields.get("tokenizer.ggml.add_bos_token")),
            "has_chat_template": "tokenizer.chat_template" in fields,
            "context_length": fields[f"{fields['general.architecture']}.context_length"],
        },
    }


def _header(gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}


def _write_model(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    # One file: the catalogue's models are small, and one file is what the digests and tests read.
    model.save_pretrained(folder, max_shard_size="1TB")
    # safetensors writes for the owner only; an engine container may run as another user than the one who
    # pulled.
    (folder / "model.safetensors").chmod(0o644)


def _write_tokenizer(gguf: Path, folder: Path, fields: dict[str, Any]) -> None:
    from transformers import AutoTokenizer

    rebuilt = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer: Tokenizer = rebuilt.backend_tokenizer
    _split_like(tokenizer, fields["tokenizer.ggml.pre"])
    if fields.get("tokenizer.ggml.add_bos_token"):
        _add_bos(tokenizer, fields["tokenizer.ggml.bos_token_id"])
    tokenizer.save(str(folder / "tokenizer.json"))

    tokens = fields["tokenizer.ggml.tokens"]
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    config = {
        key: tokens[fields[f"tokenizer.ggml.{name}_token_id"]]
        for key, name in named.items()
        if f"tokenizer.ggml.{name}_token_id" in fields
    }
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token")),
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields[f"{fields['general.architecture']}.context_length"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    if template := fields.get("tokenizer.chat_template"):
        (folder / "chat_template.jinja").write_text(template)


def _split_like(tokenizer: Tokenizer, name: str) -> None:
    """Make the pre-tokenizer the one that ``tokenizer.ggml.pre`` names."""
    from tokenizers import pre_tokenizers

    if name == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif name != "default":
        # A wrong split gives text that looks right and models that answer a little worse: better to stop.
        raise ValueError(f"unknown pre-tokenizer {name!r}; add its split to engines/weights/convert.py")


def _add_bos(tokenizer: Tokenizer, bos_id: int) -> None:
    from tokenizers import processors

    bos = tokenizer.id_to_token(bos_id)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, bos_id)]
    )


def _write_generation_config(folder: Path, fields: dict[str, Any], eos_token_ids: Sequence[int]) -> None:
    # Nothing but ids: engines take sampling defaults from this file, and a caller who sets none should get
    # the API's.
    config = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": list(eos_token_ids),
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _check(folder: Path, fields: dict[str, Any], eos_token_ids: Sequence[int]) -> None:
    """Raise ValueError unless the folder loads as it will be loaded, and says what the GGUF says."""
    import torch
    from safetensors import safe_open
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(folder)
    vocabulary = len(fields["tokenizer.ggml.tokens"])
    if raw.get_vocab_size() != vocabulary:
        raise ValueError(f"tokenizer has {raw.get_vocab_size()} tokens, the GGUF {vocabulary}")
    for text in _ROUND_TRIP:
        ids = raw.encode(text, add_special_tokens=False).ids
        if raw.decode(ids) != text:
            raise ValueError(f"{text!r} comes back from the tokenizer as {raw.decode(ids)!r}")
        if loaded(text).input_ids != raw.encode(text).ids:
            raise ValueError(f"transformers and tokenizers encode {text!r} differently")
    begins_with_bos = raw.encode("x").ids[0] == fields["tokenizer.ggml.bos_token_id"]
    if begins_with_bos != bool(fields.get("tokenizer.ggml.add_bos_token")):
        raise ValueError("the tokenizer's beginning-of-text token is not as the GGUF asks")
    if loaded.eos_token_id != eos_token_ids[0]:
        raise ValueError(f"the tokenizer ends a text with {loaded.eos_token_id}, not with {eos_token_ids[0]}")
    if "tokenizer.chat_template" in fields:
        turn = [{"role": "user", "content": "Hello"}]
        if "Hello" not in loaded.apply_chat_template(turn, tokenize=False, add_generation_prompt=True):
            raise ValueError("the chat template does not show the user's turn")
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 (a safetensors file is no mapping)
            tensor = tensors.get_tensor(name)
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"tensor {name} is not finite float32")


def _die_with_parent() -> None:
    """Ask Linux to end this process when the one that wants the result is gone, killed with SIGKILL
    included."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def main(argv: Sequence[str] | None = None) -> int:
    """Convert and print the facts; the last line of standard output is their JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m engines.weights.convert", description="GGUF to a Hugging Face folder"
    )
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("eos", type=int, nargs="+", metavar="EOS_ID")
    arguments = parser.parse_args(argv)
    _die_with_parent()
    print(json.dumps(convert_gguf(arguments.gguf, arguments.folder, arguments.eos)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
