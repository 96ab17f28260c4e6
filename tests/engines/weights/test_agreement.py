"""The stored test that admits the int8 ONNX runtime of the embedder beside fp32 torch.

Prompts are in ``agreement_sentences.txt``, written before anything was measured; ``agreement_oddities.txt``
has texts that are short or odd on purpose. Each is embedded alone. A backslash-n in the files stands for a
newline.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import numpy as np

    Embed = Callable[[list[str]], np.ndarray]

pytestmark = pytest.mark.models

FP32, INT8 = "all-minilm-l6-v2", "all-minilm-l6-v2-int8"


def read(name: str) -> list[str]:
    lines = (Path(__file__).parent / name).read_text().splitlines()
    return [line.replace("\\n", "\n") for line in lines]


@pytest.fixture(scope="module")
def embed_int8(weights: Callable[[str], Path]) -> Embed:
    """The ONNX file run by what its weights.json says, and nothing else known about it."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    facts = json.loads((weights(INT8) / "weights.json").read_text())["embedding"]
    session = onnxruntime.InferenceSession(weights(INT8) / "model.onnx")
    tokenizer = Tokenizer.from_file(str(weights(INT8) / "tokenizer.json"))
    tokenizer.enable_padding()
    fields = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}

    def embed(texts: list[str]) -> np.ndarray:
        encoded = tokenizer.encode_batch(texts)
        feed = {n: np.array([getattr(e, fields[n]) for e in encoded], np.int64) for n in facts["inputs"]}
        (states,) = session.run([facts["output"]], feed)
        return pooled(states, feed["attention_mask"])

    return embed


@pytest.fixture(scope="module")
def embed_fp32(weights: Callable[[str], Path]) -> Embed:
    """The sentence-transformers folder run by plain transformers."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(weights(FP32), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights(FP32))

    def embed(texts: list[str]) -> np.ndarray:
        feed = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            states = model(**feed).last_hidden_state
        return pooled(states.numpy(), feed["attention_mask"].numpy())

    return embed


def pooled(states: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the real tokens, scaled to length 1; shape (n, dimensions)."""
    import numpy as np

    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def cosines(texts: list[str], first: Embed, second: Embed) -> np.ndarray:
    import numpy as np

    return np.array([(first([text]) * second([text])).sum() for text in texts])


def test_int8_is_admitted(embed_int8: Embed, embed_fp32: Embed, weights: Callable[[str], Path]) -> None:
    """int8 keeps to fp32 as closely as asked, and the catalogue states what is measured."""
    stated = json.loads((weights(INT8) / "weights.json").read_text())["embedding"]["agreement"]
    prompts = cosines(read("agreement_sentences.txt"), embed_int8, embed_fp32)
    oddities = cosines(read("agreement_oddities.txt"), embed_int8, embed_fp32)

    assert stated["against"] == FP32
    assert len(prompts) == stated["sentences"]
    assert prompts.mean() >= stated["required_mean"]
    assert min(prompts.min(), oddities.min()) >= stated["required_min"]
    # int8 kernels differ between CPUs, in the fourth digit.
    assert prompts.mean() == pytest.approx(stated["mean_cosine"], abs=5e-4)
    assert prompts.min() == pytest.approx(stated["min_cosine"], abs=1e-3)
    assert (prompts >= 0.999).mean() == pytest.approx(stated["share_above"], abs=0.05)
    assert oddities.min() == pytest.approx(stated["oddities_min_cosine"], abs=1e-3)


def test_batching_changes_no_vector(embed_int8: Embed) -> None:
    """A text's vector does not depend on the texts it is embedded with, so it may be batched and cached."""
    import numpy as np

    texts = read("agreement_sentences.txt")[:8] + read("agreement_oddities.txt")
    alone = np.vstack([embed_int8([text]) for text in texts])
    np.testing.assert_allclose(embed_int8(texts), alone, atol=1e-6)


def test_one_identity(weights: Callable[[str], Path]) -> None:
    """Both runtimes carry the embedder id of the fp32 weights, so artefacts of one serve the other."""
    ids = {json.loads((weights(id) / "weights.json").read_text())["embedder_id"] for id in (FP32, INT8)}
    assert len(ids) == 1
    assert ids.pop().startswith("all-minilm-l6-v2@sha256:")


def test_long_texts_are_cut(embed_int8: Embed, embed_fp32: Embed) -> None:
    """What lies beyond 256 tokens does not count, in either runtime."""
    import numpy as np

    start = "The harvest was late and the river high. " * 40
    for embed in (embed_int8, embed_fp32):
        one, other = embed([start + "apples"]), embed([start + "Tell me about tax law."])
        np.testing.assert_allclose(one, other, atol=1e-6)
