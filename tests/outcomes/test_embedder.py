"""The in-process embedder, on the real int8 weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.weights import Home
from outcomes.embedder import Embedder, embedder_id
from protocol.errors import MethodError
from tests.conftest import requires


@pytest.fixture(scope="module")
def folder() -> Path:
    requires("weights:all-minilm-l6-v2-int8")
    return Home.from_environ().weights / "all-minilm-l6-v2-int8"


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder.load(folder)


def test_vectors_are_unit_length_float32(embedder: Embedder) -> None:
    """One row a text, unit length, in the order asked, whatever the lengths."""
    texts = ["a much longer text than the others, to be sorted last", "", "short", "¿Qué? 日本 🙂"]
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (4, embedder.dimensions) == (4, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    # int8 ranges are those of a batch, so that a text's neighbours move it a little.
    assert ((vectors * alone).sum(axis=1) > 0.99).all()


def test_meaning_is_near(embedder: Embedder) -> None:
    """A paraphrase is nearer than another question of the same form."""
    asked, paraphrase, other = embedder.embed(
        [
            "What is the capital of France?",
            "Which city is France's capital?",
            "What is the boiling point of water?",
        ]
    )
    assert asked @ paraphrase > 0.8 > 0.4 > asked @ other


def test_tokens_are_counted_and_long_texts_truncated(embedder: Embedder) -> None:
    """Counts include the two special tokens and stop at 256, beyond which text does not matter."""
    long = "word " * 1000
    vectors, counts = embedder.embed_counted(["hello", long, long + "and more"])
    assert counts.tolist() == [3, 256, 256]
    assert vectors[1] @ vectors[2] > 0.9999


def test_batches_give_what_one_batch_gives(folder: Path, embedder: Embedder) -> None:
    """Texts beyond `max_batch` are embedded in several runs, each row in its place."""
    texts = [f"question number {i} about topic {i % 3}" for i in range(10)]
    small = Embedder.load(folder, max_batch=3).embed(texts)
    assert ((small * embedder.embed(texts)).sum(axis=1) > 0.99).all()


def test_no_texts_give_no_rows(embedder: Embedder) -> None:
    """An empty request is an empty matrix."""
    vectors, counts = embedder.embed_counted([])
    assert vectors.shape == (0, 384)
    assert counts.shape == (0,)


def test_id_names_model_and_weights(folder: Path, embedder: Embedder) -> None:
    """The id is the model's name and a digest, read without loading the model."""
    assert embedder.id == embedder_id(folder)
    assert embedder.id.startswith("all-minilm-l6-v2@")


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_folders_that_do_not_say_what_they_are_are_refused(tmp_path: Path, content: str | None) -> None:
    """Without an id an artefact could not be checked against it."""
    if content is not None:
        (tmp_path / "weights.json").write_text(content)
    with pytest.raises(MethodError, match=r"weights\.json"):
        Embedder.load(tmp_path)


def test_a_folder_without_the_model_is_refused(tmp_path: Path) -> None:
    """A half-written folder names the file that is missing."""
    (tmp_path / "weights.json").write_text('{"embedder_id": "e@1"}')
    with pytest.raises(MethodError, match=r"model\.onnx"):
        Embedder.load(tmp_path)
