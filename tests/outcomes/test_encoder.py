"""The encoder's numpy forward pass: torch's to rounding, one text at a time, and nothing malformed gets in."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import orjson
import pytest

from engines.weights import Home
from outcomes.encoder import Encoder, EncoderShape, TrainedEncoder, _gelu, starting_encoder
from outcomes.encoder_training import EncoderTraining
from protocol.errors import MethodError
from tests.encoders import tiny_encoder

TEXTS = ("river stone bridge number 12", "what is the sum of numbers", "a", "opposite of warm " * 20)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_encoder(tmp_path / "tiny", layers=2)


@pytest.mark.requires("torch")
def test_numpy_agrees_with_torch(tiny: Path) -> None:
    """Serving and training compute the same vectors, padded batches and single texts alike, to 1e-5."""
    encoder = Encoder.load(tiny, max_tokens=24)
    assert np.allclose(EncoderTraining().pooled(encoder, TEXTS), encoder.pooled(TEXTS), atol=1e-5)


@pytest.mark.requires("engines", "weights:all-minilm-l6-v2")
def test_real_weights_agree_with_transformers() -> None:
    """On all-MiniLM-L6-v2 the mean of the last hidden states is transformers' own, to 1e-4 of its size."""
    import torch
    from transformers import BertModel

    folder = Home.from_environ().weights / "all-minilm-l6-v2"
    encoder = starting_encoder(str(folder), max_tokens=64)
    reference = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    for text, found in zip(TEXTS, encoder.pooled(TEXTS), strict=True):
        with torch.no_grad():
            hidden = reference(torch.tensor(encoder.tokens([text]))).last_hidden_state[0]
        assert np.allclose(hidden.mean(dim=0).numpy(), found, atol=1e-4 * np.linalg.norm(found))


def test_gelu_is_exact_to_float32() -> None:
    """x·Φ(x) by the error function."""
    x = np.linspace(-8, 8, 4001)
    exact = np.array([value * 0.5 * (1 + math.erf(value / math.sqrt(2))) for value in x])
    assert np.abs(_gelu(x.astype(np.float32)) - exact).max() < 2e-6


def test_a_text_does_not_see_its_neighbours(tiny: Path) -> None:
    """A batch gives exactly what its texts give alone, and no texts give no rows."""
    encoder = Encoder.load(tiny, max_tokens=24)
    together = encoder.pooled(TEXTS)
    assert all(
        np.array_equal(encoder.pooled([text])[0], row) for text, row in zip(TEXTS, together, strict=True)
    )
    assert encoder.pooled([]).shape == (0, 16)


def test_truncation_keeps_the_side_that_was_asked_for(tiny: Path) -> None:
    """Of a long text `right` keeps the beginning and `left` the end, special tokens at both ends."""
    text = "river " * 20 + "stone"
    right, left = (
        Encoder.load(tiny, max_tokens=8, truncate=side).tokens([text])[0] for side in ("right", "left")
    )
    assert len(right) == len(left) == 8
    assert right[0] == left[0] == 2
    assert right[-1] == left[-1] == 3
    assert right[-2] != left[-2], "both kept the same end"


def test_tensors_hold_all_of_it(tiny: Path) -> None:
    """From its tensors and shape an encoder with its head is rebuilt, tokenizer included."""
    encoder = Encoder.load(tiny, max_tokens=24)
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(16, 3)).astype(np.float32), np.zeros(3, dtype=np.float32)
    for unit in (False, True):
        trained = TrainedEncoder(encoder, weight, bias, unit)
        again = TrainedEncoder.of(trained.tensors(), EncoderShape.parse(encoder.shape.wire()), 3, unit=unit)
        assert np.array_equal(again(TEXTS), trained(TEXTS))
        assert np.array_equal(trained.with_outputs(np.array([2, 0, 1]))(TEXTS), trained(TEXTS)[:, [2, 0, 1]])
    assert (
        np.abs(TrainedEncoder(encoder, weight / np.linalg.norm(weight, axis=0), bias, True)(TEXTS)).max() <= 1
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"head.weight": None}, "head.weight"),
        ({"tokenizer": np.frombuffer(b"{}", dtype=np.uint8)}, "tokenizer"),
        ({"encoder.layer.1.output.dense.weight": np.zeros((3, 3))}, "shape"),
        ({"embeddings.LayerNorm.bias": np.full(16, np.nan)}, "finite"),
        ({"embeddings.word_embeddings.weight": np.zeros((4, 16))}, "belong together"),
    ],
)
def test_malformed_tensors_are_refused(tiny: Path, change: dict, told: str) -> None:
    """A missing, misshapen, unfinished or foreign part is a `MethodError` that names it."""
    encoder = Encoder.load(tiny, max_tokens=24)
    trained = TrainedEncoder(encoder, np.zeros((16, 1), np.float32), np.zeros(1, np.float32))
    tensors = {name: value for name, value in (trained.tensors() | change).items() if value is not None}
    with pytest.raises(MethodError, match=told):
        TrainedEncoder.of(tensors, encoder.shape, 1)(["river"])


@pytest.mark.parametrize("value", [None, {}, {"heads": 0, "eps": 1e-12, "max_tokens": 8}, {"heads": 2, "eps": 1e-12,
                         "max_tokens": 8, "truncate": "middle"}, {"heads": 2, "size": 1}])  # fmt: skip
def test_malformed_shapes_are_refused(value: object) -> None:
    """A shape with parts missing, unknown or impossible is a `MethodError`."""
    with pytest.raises(MethodError, match="shape of an encoder"):
        EncoderShape.parse(value)


def test_only_what_can_be_computed_is_loaded(tiny: Path, tmp_path: Path) -> None:
    """Another architecture, another activation and an empty folder are refused by name."""
    with pytest.raises(MethodError, match="There is no encoder 'nowhere'"):
        starting_encoder("nowhere", max_tokens=8)
    with pytest.raises(MethodError, match="no encoder to start from"):
        starting_encoder(str(tmp_path), max_tokens=8)
    config = orjson.loads((tiny / "config.json").read_bytes())
    for change in ({"model_type": "deberta-v2"}, {"hidden_act": "relu"}):
        (tiny / "config.json").write_bytes(orjson.dumps(config | change))
        with pytest.raises(MethodError, match="encoders are BERT"):
            Encoder.load(tiny, max_tokens=8)
