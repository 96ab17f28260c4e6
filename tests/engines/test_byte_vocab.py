"""Byte vocabularies of both families: small ones built here, and the tables of the two real tokenizers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from engines.byte_vocab import ByteVocab, Kind, Unencodable

SAMPLES = (
    "plain words, numbers 0123456789 and 3.14159",
    "tabs\t\tand\nnewlines\n\n\n\r\n   spaces    ",
    "Ça va? Größe, naïve, Żółć, ÄÖÜ ±µ",
    "東京 こんにちは 안녕하세요 مرحبا नमस्ते Ελλάδα Привет",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u200b\ufeff",
    "def f(x):\n\treturn {'a': [x] * 2}  # <b>bold</b> <table>",
    "<bos><|im_start|>user<|im_end|><0x41>▁Ġ<unused7>",
)


def _tokenizer(vocab: dict[str, int], kind: str, special: tuple[str, ...] = ()) -> str:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    fallback = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    added = [
        {
            "id": vocab[token],
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for token in special
    ]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": added,
            "normalizer": None if kind == "bytes" else space,
            "pre_tokenizer": byte_level if kind == "bytes" else None,
            "decoder": byte_level if kind == "bytes" else fallback,
            "model": {"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": kind != "bytes"},
        }
    )


def test_byte_level_tokens_are_their_bytes() -> None:
    """`Ġ` is a space and `Ä` the byte 0xC4, not the letter; a control token emits nothing."""
    vocab = ByteVocab.parse(
        _tokenizer({"<eos>": 0, "<pad>": 1, "Ġa": 2, "Ä": 3, "Ċ": 4}, "bytes", ("<eos>", "<pad>"))
    )
    assert vocab.emits == (b"", b"", b" a", b"\xc4", b"\n")
    assert vocab.kind == (Kind.EOS, Kind.CONTROL, Kind.TEXT, Kind.TEXT, Kind.TEXT)
    assert vocab.eos == {0}


def test_sentencepiece_tokens_are_their_bytes() -> None:
    """Every `▁` is a space, `<0xHH>` a byte; the literal twin of a byte comes first when ids are fed back."""
    vocab = ByteVocab.parse(
        _tokenizer({"<bos>": 0, "<0x41>": 1, "A": 2, "▁a▁b": 3, "<0xC4>": 4}, "pieces", ("<bos>",)), bos=0
    )
    assert vocab.emits == (b"", b"A", b"A", b" a b", b"\xc4")
    assert vocab.ids[b"A"] == (2, 1)
    assert vocab.encode(b"A") == [2]
    assert vocab.encode_prompt("A") == [0, 2]


def test_bytes_without_an_id_are_refused() -> None:
    """Feeding back bytes that no id emits raises, naming the byte."""
    vocab = ByteVocab.parse(_tokenizer({"a": 0, "b": 1}, "bytes"))
    assert vocab.encode(b"ab") == [0, 1]
    with pytest.raises(Unencodable, match="0x63"):
        vocab.encode(b"abc")


@pytest.fixture(scope="module")
def real(weights: Callable[[str], Path]) -> dict[str, ByteVocab]:
    """The tables of both real tokenizers."""
    return {id: ByteVocab.load(weights(id)) for id in ("smollm2-135m-instruct", "gemma3-270m")}


@pytest.mark.requires("weights:smollm2-135m-instruct", "weights:gemma3-270m")
class TestRealTables:
    def test_sizes_and_kinds(self, real: dict[str, ByteVocab]) -> None:
        """The counts measured from the models' own metadata."""
        smol, gemma = real["smollm2-135m-instruct"], real["gemma3-270m"]
        assert len(smol) == 49152
        assert sum(map(bool, smol.emits)) == 49135
        assert smol.eos == {0, 2}
        assert smol.bos is None
        assert len(smol.missing_bytes) == 256 - 235
        assert len(gemma) == 262144
        assert sum(map(bool, gemma.emits)) == 255895
        assert gemma.eos == {1, 106}
        assert gemma.bos == 2
        assert not gemma.missing_bytes
        assert sum(len(ids) > 1 for ids in gemma.ids.values()) == 110
        assert len(smol.ids.keys() & gemma.ids.keys()) == 46145

    def test_text_round_trips_as_its_own_tokenizer_says(
        self, real: dict[str, ByteVocab], weights: Callable[[str], Path]
    ) -> None:
        """The bytes of a text's own ids are the text, in every script; control strings inside a text stay
        text."""
        for id, vocab in real.items():
            tokenizer = Tokenizer.from_file(str(weights(id) / "tokenizer.json"))
            for sample in SAMPLES:
                assert vocab.text_of(vocab.encode(sample.encode())) == sample.encode()
            for sample in SAMPLES[:-1]:
                ids = tokenizer.encode(sample, add_special_tokens=False).ids
                assert vocab.text_of(ids) == sample.encode()

    def test_ten_thousand_mixed_strings(self, real: dict[str, ByteVocab]) -> None:
        """Random pieces of mixed scripts, cut anywhere, even inside characters: what is encoded is what is
        emitted."""
        chance = random.Random(7)
        alphabet = "".join(SAMPLES)
        vocabs = list(real.values())
        for _ in range(10_000):
            data = "".join(chance.choices(alphabet, k=chance.randint(1, 12))).encode()
            cut = data[chance.randint(0, 2) : len(data) - chance.randint(0, 2)]
            for vocab in vocabs:
                assert vocab.text_of(vocab.encode(cut)) == cut
