"""The static embedder: means of stored vectors, and how they are distilled from an encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from tokenizers import Tokenizer

from outcomes.distillation import distil
from outcomes.embedder import Embedder, embedder_id, load_embedder
from outcomes.static_embedder import MAX_TOKENS, StaticEmbedder
from protocol.errors import MethodError
from tests.encoders import WORDS, tiny_encoder

TEXTS = [f"{a} {b} {c}" for a in WORDS[:12] for b in WORDS[12:20] for c in WORDS[20:24]]


@dataclass(frozen=True)
class _Session:
    """An encoder whose hidden states are a fixed vector for each token, and nothing of the others."""

    table: np.ndarray

    def run(self, outputs: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.table[feeds["input_ids"]]]

    def get_outputs(self) -> list[Any]:
        return [type("Output", (), {"shape": ("batch", "sequence", self.table.shape[1])})]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """An encoder that is a bag of words itself, so that a static one can learn all of it."""
    tokenizer = Tokenizer.from_file(
        str(tiny_encoder(tmp_path_factory.mktemp("encoder") / "e") / "tokenizer.json")
    )
    tokenizer.no_padding()
    table = np.random.default_rng(0).normal(size=(tokenizer.get_vocab_size(), 24)).astype(np.float32)
    return Embedder("bag@1", _Session(table), tokenizer)


@pytest.fixture(scope="module")
def folder(teacher: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    distil(teacher, TEXTS, folder, dimensions=24)
    return folder


@pytest.fixture
def embedder(folder: Path) -> StaticEmbedder:
    found = load_embedder(folder)
    assert isinstance(found, StaticEmbedder)
    return found


def test_vectors_are_unit_length_and_no_text_depends_on_its_batch(embedder: StaticEmbedder) -> None:
    """One row a text, unit length, the same alone as among others, empty and unknown ones included."""
    texts = ["river stone", "", "zzzz ¿日本 🙂", "sum of numbers " * 30, "river"]
    vectors = embedder.embed(texts)
    assert vectors.dtype == np.float32
    assert vectors.shape == (5, embedder.dimensions) == (5, 24)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert np.array_equal(vectors, np.concatenate([embedder.embed([text]) for text in texts]))


def test_tokens_are_counted_and_long_texts_truncated(embedder: StaticEmbedder) -> None:
    """Special tokens are not read; beyond the limit text does not matter."""
    long = "stone " * MAX_TOKENS
    vectors, counts = embedder.embed_counted(["", "river stone", long, long + "river river"])
    assert counts.tolist() == [0, 2, MAX_TOKENS, MAX_TOKENS]
    assert np.array_equal(vectors[2], vectors[3])


def test_no_texts_give_no_rows(embedder: StaticEmbedder) -> None:
    """An empty request is an empty matrix."""
    assert embedder.embed([]).shape == (0, 24)


def test_words_unknown_to_it_are_all_alike(embedder: StaticEmbedder) -> None:
    """What the vocabulary cannot spell is one token, and not the empty text."""
    first, second, nothing = embedder.embed(["qqq", "xyz", ""])
    assert np.array_equal(first, second)
    assert not np.array_equal(first, nothing)


def test_it_learns_what_means_can_say(teacher: Embedder, embedder: StaticEmbedder) -> None:
    """Of an encoder that is a bag of words it finds nearly everything, on texts it was not fitted to as well; the order
    of words is lost to it."""
    unseen = [f"{a} {b}" for a in WORDS[1:9] for b in WORDS[14:22]]
    for texts in (TEXTS, unseen):
        assert (embedder.embed(texts) * teacher.embed(texts)).sum(axis=1).mean() > 0.9
    one, other = embedder.embed(["river stone", "stone river"])
    assert np.allclose(one, other)


def test_fewer_dimensions_keep_most(teacher: Embedder, embedder: StaticEmbedder, tmp_path: Path) -> None:
    """PCA keeps the directions in which texts differ: similarities stay close."""
    distil(teacher, TEXTS, tmp_path, dimensions=16)
    small = load_embedder(tmp_path)
    assert small.dimensions == 16
    whole, less = embedder.embed(TEXTS[::9]), small.embed(TEXTS[::9])
    assert np.corrcoef((whole @ whole.T).ravel(), (less @ less.T).ravel())[0, 1] > 0.95


def test_its_id_names_teacher_and_content(teacher: Embedder, folder: Path, tmp_path: Path) -> None:
    """Distilling again gives the same id; another teacher another one; it is read without loading the table."""
    assert distil(teacher, TEXTS, tmp_path, dimensions=24) == embedder_id(folder) == load_embedder(folder).id
    assert embedder_id(folder).startswith("static-bag@sha256:")
    other = replace(teacher, session=_Session(teacher.session.table[::-1]))
    assert distil(other, TEXTS, tmp_path, dimensions=24) != embedder_id(folder)


def test_progress_is_told_to_the_end(teacher: Embedder, tmp_path: Path) -> None:
    """Whoever waits hears how far it is, and that it is done."""
    heard: list[tuple[int, int]] = []
    distil(teacher, TEXTS, tmp_path, progress=lambda done, total: heard.append((done, total)))
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1] == teacher.tokenizer.get_vocab_size() + len(TEXTS)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_half_a_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    """A folder that lacks a file names it; a table that is no table is refused too."""
    for file in folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(MethodError, match=name):
        load_embedder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(MethodError, match="cannot be read"):
        load_embedder(tmp_path)


def test_a_folder_of_another_kind_is_not_taken_for_one(tmp_path: Path) -> None:
    """What does not say that it is static is looked at as an encoder."""
    (tmp_path / "weights.json").write_bytes(orjson.dumps({"embedder_id": "e@1", "format": "onnx"}))
    with pytest.raises(MethodError, match=r"model\.onnx"):
        load_embedder(tmp_path)
