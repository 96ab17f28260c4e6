"""The shared text: every member's ids emit it, whatever is appended."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.byte_vocab import ByteVocab, Unencodable
from engines.text_state import Feedback, TextState
from tests.engines.test_byte_vocab import _tokenizer

LETTERS = ByteVocab.parse(_tokenizer({"a": 0, "b": 1, "c": 2}, "bytes"))
MERGED = ByteVocab.parse(
    json.dumps(
        {
            **json.loads(_tokenizer({"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "bytes")),
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3}, "merges": [["a", "b"]]},
        }
    )
)
"""Letters that merge, and a space."""
PAIRS = ByteVocab.parse(_tokenizer({"a": 0, "b": 1, "ab": 2}, "bytes"))


def test_commits_append_and_wait_to_be_fed() -> None:
    """New ids are given out once, past ids never change."""
    state = TextState([LETTERS, PAIRS])
    state.commit(b"ab")
    assert [state.take_unfed(0), state.take_unfed(1)] == [[0, 1], [2]]
    state.commit(b"b")
    assert state.ids == ([0, 1, 1], [2, 1])
    assert [state.take_unfed(0), state.take_unfed(0), state.take_unfed(1)] == [[1], [], [1]]


def test_retokenising_writes_what_the_model_would() -> None:
    """`a` then `b` becomes the one token `ab`; a member that computed `a` already has to start anew."""
    state = TextState([LETTERS, MERGED], feedback="retokenise")
    state.commit(b"a")
    assert [state.take_unfed(0), state.take_unfed(1)] == [[0], [0]]
    state.commit(b"b")
    assert state.ids == ([0, 1], [2])
    assert state.stale == {1}
    assert [state.take_unfed(0), state.take_unfed(1)] == [[1], [2]]
    assert not state.stale


def test_who_rejoins_reads_one_text() -> None:
    """What a member has missed is encoded together when it is next wanted; what it was given stays as it is."""
    state = TextState([MERGED, LETTERS], feedback="rejoin")
    state.commit(b"a")
    assert state.take_unfed(1) == [0]
    state.commit(b"b")
    assert state.take_unfed(1) == [1]
    assert state.take_unfed(0) == [2]
    assert state.ids == ([2], [0, 1])
    for symbol in (b"a", b"b"):
        state.commit(symbol)
        assert state.take_unfed(0) == MERGED.encode(symbol)
    assert state.ids[0] == [2, 0, 1]
    assert not state.stale


def test_retailing_leaves_earlier_words_alone() -> None:
    """Only the last word, or the last four tokens, are encoded again; a member not fed yet is not stale."""
    state = TextState([MERGED], feedback="retail")
    state.ids[0][:] = [0, 1, 3, 0]  # "ab a", its first word as two tokens
    state.text += b"ab a"
    state.commit(b"b")
    assert state.ids == ([0, 1, 3, 2],)
    assert state.stale == {0}
    assert state.take_unfed(0) == [0, 1, 3, 2]
    waiting = TextState([MERGED], feedback="retail")
    waiting.commit(b"a")
    waiting.commit(b"b")
    assert (waiting.take_unfed(0), waiting.stale) == ([2], set())


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
@pytest.mark.parametrize(("feedback", "steps"), [("append", 200), ("retail", 200), ("retokenise", 30)])
def test_invariant_on_a_random_walk(weights: Callable[[str], Path], feedback: Feedback, steps: int) -> None:
    """bytes(generated_m) = B after each of thousands of commits of tokens of either real vocabulary."""
    vocabs = [ByteVocab.load(weights(id)) for id in ("smollm2-135m-instruct", "gemma3-270m")]
    chance = random.Random(3)
    texts = [[text for text in vocab.ids if not set(text) & set(vocabs[0].missing_bytes)] for vocab in vocabs]
    for _ in range(20):
        state = TextState(vocabs, feedback=feedback)
        for _ in range(steps):
            state.commit(chance.choice(chance.choice(texts)))
        for vocab, ids in zip(vocabs, state.ids, strict=True):
            assert vocab.text_of(ids) == bytes(state.text)
