"""Features of wording and form."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from outcomes.text_features import FORM, TextFeatures, _leading, form

TEXTS = [f"What is the sum of {i} and {i + 2}?" for i in range(20)] + [
    f"Translate into French: the river number {i} is wide." for i in range(20)
]


def test_like_wording_is_near() -> None:
    """Questions of one kind lie nearer to each other than to the other kind; rows have unit length."""
    features = TextFeatures.of(TEXTS, rank=8)
    words = features.words(["What is the sum of 91 and 7?", "Translate into French: my river", *TEXTS])
    assert np.allclose(np.linalg.norm(words, axis=1), 1)
    near, far = words[0] @ words[2:22].T, words[0] @ words[22:].T
    assert near.min() > far.max()
    assert (words[1] @ words[22:].T).mean() > (words[1] @ words[2:22].T).mean()


def test_features_are_those_of_the_text_alone() -> None:
    """Alone or in a batch, now or learnt again: the same; a text of unknown words, or none, is all 0."""
    features, again = TextFeatures.of(TEXTS, rank=8), TextFeatures.of(TEXTS, rank=8)
    batch = features.words(TEXTS)
    assert np.array_equal(batch, again.words(TEXTS))
    assert np.allclose(batch[3], features.words([TEXTS[3]])[0])
    assert not features.words(["", "zzz"]).any()
    assert features.measures([]).shape == (0, FORM)


def test_directions_are_the_singular_vectors() -> None:
    """The randomised iteration finds LAPACK's singular vectors, up to sign, where the spectrum falls."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(n, 20)))[0] for n in (80, 50))
    matrix = csr_matrix(left * 0.7 ** np.arange(20) @ right.T)
    found = _leading(matrix, 5)
    exact = np.linalg.svd(matrix.toarray())[2][:5]
    assert np.allclose(np.abs(exact @ found), np.eye(5), atol=1e-3)


def test_form_tells_kinds_apart() -> None:
    """Digits, options, code, formulas and scripts leave their mark; no text breaks it."""
    plain = np.array(form("Name a river in France"))
    for text in (
        "1 + 22 + 333",
        "A) yes\nB) no",
        "def f(x):\n return x == 1",
        "$x^2$",
        "日本語の質問",
        "Is it?",
    ):
        assert not np.allclose(plain, form(text))
    assert all(np.isfinite(form(text)).all() for text in ("", "\ud800", "\0", "x" * 100_000))


def test_texts_without_a_common_word() -> None:
    """No directions, which is kept in an artefact's tensors as it is; measures of form all the same."""
    found = TextFeatures.of(["alpha", "bravo", "charlie"], rank=4)
    again = TextFeatures.read(found.tensors())
    assert (found.rank, again.words(["alpha", "delta"]).shape) == (0, (2, 0))
    assert np.isfinite(again.measures(["alpha", "delta"])).all()
