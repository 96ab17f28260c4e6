"""The union of vocabularies and the projection onto it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engines.byte_vocab import ByteVocab
from engines.union import Union
from tests.engines.test_byte_vocab import _tokenizer

A = ByteVocab.parse(_tokenizer({"<eos>": 0, "a": 1, "b": 2, "ab": 3}, "bytes", ("<eos>",)))
B = ByteVocab.parse(
    _tokenizer({"b": 0, "c": 1, "<end_of_turn>": 2, "<pad>": 3}, "bytes", ("<end_of_turn>", "<pad>"))
)


def test_equal_bytes_are_one_symbol() -> None:
    """Symbols come in the first vocabulary's order, ends are pooled into the last one, controls have none."""
    union = Union.of([A, B])
    assert union.symbols == (b"a", b"b", b"ab", b"c", b"")
    assert union.eos == 4
    assert union.maps[0].tolist() == [4, 0, 1, 2]
    assert union.maps[1].tolist() == [1, 3, 4, union.size]


def test_projection_keeps_all_mass_and_masks_controls() -> None:
    """Σ p_m A_m = 1 whatever a control's logit, and the logits stay as they were, padding rows ignored."""
    union = Union.of([A, B])
    logits = torch.tensor([0.0, 1.0, 2.0, 50.0, 99.0])
    before = logits.clone()
    q = union.project(1, logits)
    assert float(q.sum()) == pytest.approx(1)
    p = torch.tensor([0.0, 1.0, 2.0]).softmax(-1)
    assert q.tolist() == pytest.approx([0, float(p[0]), 0, float(p[1]), float(p[2])])
    assert torch.equal(logits, before)


def test_symbols_that_a_member_cannot_write_are_known() -> None:
    """`c` has no id and no bytes of its own in A, `a` none in B: neither can be fed back to both."""
    union = Union.of([A, B])
    assert union.feedable.tolist() == [False, True, False, False, True]


@pytest.mark.requires("weights:smollm2-135m-instruct", "weights:gemma3-270m")
def test_the_real_pair(weights: Callable[[str], Path]) -> None:
    """The project pair has 258,775 byte symbols and one end; all mass of either model is kept."""
    vocabs = [ByteVocab.load(weights(id)) for id in ("smollm2-135m-instruct", "gemma3-270m")]
    union = Union.of(vocabs)
    assert union.size == 258_775 + 1
    for m, vocab in enumerate(vocabs):
        logits = torch.randn(len(vocab), generator=torch.Generator().manual_seed(m)) * 4
        assert float(union.project(m, logits).sum()) == pytest.approx(1, abs=1e-4)
        writable = union.feedable.nonzero().flatten().tolist()[:: 997 + m]
        assert all(vocab.text_of(vocab.encode(union.symbols[u])) == union.symbols[u] for u in writable)


def test_reading_agrees_with_the_projection() -> None:
    """A symbol's logit less the log of all mass is its log-probability, ends and twins pooled, controls ignored."""
    twins = ByteVocab.parse(
        _tokenizer({"<0x61>": 0, "a": 1, "<eos>": 2, "<pad>": 3}, "sp", ("<eos>", "<pad>"))
    )
    union = Union.of([A, twins])
    everything = torch.arange(union.size)
    for m, logits in ((0, torch.tensor([0.0, 1.0, 2.0, -1.0])), (1, torch.tensor([1.0, 2.0, 0.5, 9.0]))):
        p = (union.read(m, logits, everything) - union.log_mass(m, logits)).exp()
        assert p.tolist() == pytest.approx(union.project(m, logits).tolist())
    assert union.read(1, torch.zeros(4), torch.tensor([-1, 1])).tolist() == [-torch.inf, -torch.inf]


def test_the_top_is_what_a_sort_says() -> None:
    """Symbols best first, controls never among them, twins once; what is left out is below the bound."""
    union = Union.of([A, B])
    symbols, bound = union.top(1, torch.tensor([1.0, 2.0, 0.0, 50.0]), 2)
    assert symbols.tolist() == [3, 1]
    assert 0.0 <= bound <= 1.0
    symbols, bound = union.top(1, torch.tensor([1.0, 2.0, 0.0, 50.0]), 9)
    assert (symbols.tolist(), bound) == ([3, 1, 4], -torch.inf)


def test_a_member_begins_a_symbol_with_its_own_first_token() -> None:
    """`ab` is `a`… for a vocabulary without it; bytes that cannot be written have no beginning."""
    letters = ByteVocab.parse(_tokenizer({"<eos>": 0, "a": 1, "b": 2}, "bytes", ("<eos>",)))
    union = Union.of([A, letters, B])
    assert union.symbols == (b"a", b"b", b"ab", b"c", b"")
    everything = torch.arange(union.size)
    assert union.begin(0, everything).tolist() == [0, 1, 2, -1, 4]
    assert union.begin(1, everything).tolist() == [0, 1, 0, -1, 4]
    assert union.begin(1, everything[1:3]).tolist() == [1, 0]
    assert union.shared(frozenset({0, 1})).tolist() == [0, 1, 4]
    assert union.shared(frozenset({0, 1, 2})).tolist() == [1, 4]
