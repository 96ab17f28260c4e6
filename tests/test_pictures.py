"""Pictures that are drawn by a program are what it draws, and show what is so."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from engines.byte_vocab import ByteVocab

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def drawn() -> ModuleType:
    """docs/byte_alignment.py."""
    spec = importlib.util.spec_from_file_location("byte_alignment", DOCS / "byte_alignment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_current(drawn: ModuleType) -> None:
    """docs/byte-alignment.svg is what `python docs/byte_alignment.py` writes."""
    assert (DOCS / "byte-alignment.svg").read_text(encoding="utf-8") == drawn.picture()


@pytest.mark.models
def test_its_tokens_are_the_models_own(drawn: ModuleType, weights: Callable[[str], Path]) -> None:
    """Both tokenizers cut the texts of the picture as it shows, and lack the token that it says is lacking."""
    vocabs = [ByteVocab.load(weights(name)) for name in ("smollm2-135m-instruct", "gemma3-270m")]
    for vocab, cut, fed in zip(vocabs, drawn.CUTS.values(), drawn.FED.values(), strict=True):
        # The first word is a symbol of its own in the picture.
        rest = drawn.TEXT.removeprefix(cut[0]).encode()
        assert [vocab.emits[i].decode() for i in vocab.encode(rest)] == list(cut[1:])
        assert [vocab.emits[i].decode() for i in vocab.encode(drawn.CHOSEN.encode())] == list(fed)
    for symbol, *known in drawn.SYMBOLS:
        assert [symbol.encode() in vocab.ids for vocab in vocabs] == [p is not None for p in known]
