"""Similarity of texts."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensembles.answers.similarity import bleu, cumulative, first_best, grams, token_f1

# Computed with sacreBLEU 2.6.0, `sentence_bleu(hypothesis, [reference], lowercase=True)`, on texts that its
# tokenizer and ours split alike.
GOLDEN = [
    ("The cat sat on the mat.", "the cat sat on the mat.", 100.0),
    ("The cat sat on a mat.", "The cat is on the mat.", 19.64073254502566),
    ("the cat is on the mat", "the cat sat on a mat today, I think", 9.911450612811139),
    ("Paris", "Paris, France", 13.533528323661276),
    ("hello world", "goodbye moon", 0.0),
    (
        "The answer is 42, of course: 3.5 apples (or 1,000).",
        "The answer: 42 apples; 3.5 or 1,000 pears.",
        9.103526405546068,
    ),
    ("a b c d e f g h", "a b c d e f g h i j k l", 60.653065971263366),
]

TEXTS = st.text(st.sampled_from("ab c.1"), max_size=30)


@pytest.mark.parametrize(("hypothesis", "reference", "percent"), GOLDEN)
def test_bleu_is_sacrebleus(hypothesis: str, reference: str, percent: float) -> None:
    """Sentence BLEU equals sacreBLEU's."""
    assert 100 * bleu(grams(hypothesis), grams(reference)) == pytest.approx(percent, rel=1e-9)


def test_bleu_is_directed() -> None:
    """Hypothesis and reference are not interchangeable."""
    short, long = grams("the cat"), grams("the cat sat on the mat")
    assert bleu(short, long) != bleu(long, short)


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_similarities_are_bounded(one: str, other: str) -> None:
    """Similarities lie in [0, 1]; a text is like itself; token F1 is symmetric."""
    a, b = grams(one), grams(other)
    for similarity in (bleu, token_f1):
        assert -1e-12 <= similarity(a, b) <= 1 + 1e-12
        assert similarity(a, a) == pytest.approx(1.0)
    assert token_f1(a, b) == token_f1(b, a)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_cumulative_is_the_plain_sum(texts: list[str]) -> None:
    """V(i) is the sum of i's similarity to every other text, duplicates included."""
    plain = [
        math.fsum(bleu(grams(mine), grams(theirs)) for j, theirs in enumerate(texts) if j != i)
        for i, mine in enumerate(texts)
    ]
    assert cumulative(texts, bleu) == plain


def test_long_texts_are_compared_by_their_beginning() -> None:
    """Answers that run away are cut, so that comparing them stays cheap."""
    assert grams("word " * 5000)[0].total() == 2000


def test_first_best() -> None:
    """The first of the highest is taken, None is no score, and without scores there is none."""
    assert first_best([None, 1.0, 2.0, 2.0]) == 2
    assert first_best([None, None]) is None
    assert first_best([]) is None
