"""The shared text: every member's ids emit it, whatever is appended."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.byte_vocab import ByteVocab, Unencodable
from engines.text_state import TextState
from tests.engines.test_byte_vocab import _tokenizer

LETTERS = ByteVocab.parse(_tokenizer({"a": 0, "b": 1, "c": 2}, "bytes"))
PAIRS = ByteVocab.parse(_tokenizer({"a": 0, "b": 1, "ab": 2}, "bytes"))


def test_commits_append_and_wait_to_be_fed() -> None:
    """New ids are given out once, past ids never change."""
    state = TextState([LETTERS, PAIRS])
    state.commit(b"ab")
    assert [state.take_unfed(0), state.take_unfed(1)] == [[0, 1], [2]]
    state.commit(b"b")
    assert state.ids == ([0, 1, 1], [2, 1])
    assert [state.take_unfed(0), state.take_unfed(0), state.take_unfed(1)] == [[1], [], [1]]


def test_a_symbol_is_cut_to_the_room_left() -> None:
    """The main member's tokens bound the text: a longer symbol is cut, for all members."""
    state = TextState([LETTERS, PAIRS])
    assert state.commit(b"ab", room=1) == b"a"
    assert bytes(state.text) == b"a"
    assert state.ids == ([0], [0])


def test_bytes_that_a_member_lacks_change_nothing() -> None:
    """A commit that one member cannot encode raises and leaves all of them as they were."""
    state = TextState([LETTERS, PAIRS])
    with pytest.raises(Unencodable):
        state.commit(b"c")
    assert (bytes(state.text), state.ids) == (b"", ([], []))


@pytest.mark.requires("weights:smollm2-135m-instruct", "weights:gemma3-270m")
def test_invariant_on_a_random_walk(weights: Callable[[str], Path]) -> None:
    """bytes(generated_m) = B after each of thousands of commits of tokens of either real vocabulary."""
    vocabs = [ByteVocab.load(weights(id)) for id in ("smollm2-135m-instruct", "gemma3-270m")]
    chance = random.Random(3)
    texts = [[text for text in vocab.ids if not set(text) & set(vocabs[0].missing_bytes)] for vocab in vocabs]
    for _ in range(20):
        state = TextState(vocabs)
        for _ in range(200):
            state.commit(chance.choice(chance.choice(texts)))
        for vocab, ids in zip(vocabs, state.ids, strict=True):
            assert vocab.text_of(ids) == bytes(state.text)
