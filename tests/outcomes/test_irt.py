"""Item response: binarised scores, identities that tell models apart, and late comers."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.irt import binarised, fit_identity, fit_responses, response_logits
from outcomes.networks import sigmoid
from tests.routers.recorded import topical_table

HOW = {"identity": 8, "hidden": 32, "epochs": 30, "batch": 64, "rate": 5e-3, "decay": 0.01, "seed": 0}


def test_as_many_are_right_as_the_mean_says() -> None:
    """Real scores get 1 for the highest, whose share is the mean; 0 and 1 stay; unknown stays unknown; 0 is never
    right."""
    score = np.array([[0.9, 0.1], [0.8, np.nan], [0.15, 0.05]])
    assert np.array_equal(binarised(score), [[1, 0], [1, np.nan], [0, 0]], equal_nan=True)
    plain = (np.random.default_rng(0).random((30, 4)) < 0.3).astype(float)
    assert np.array_equal(binarised(plain), plain)
    assert not binarised(np.zeros((3, 2))).any()


def test_responses_know_topics_and_who_beats_whom() -> None:
    """On held-out queries p̂ is near each model's chance, and g ranks the topic's expert first."""
    train, test = topical_table(600), topical_table(300, seed=1)
    w = fit_responses(np.asarray(train.queries.embeddings, dtype=float), train.score, **HOW)
    vectors = np.asarray(test.queries.embeddings, dtype=float)
    right = sigmoid(response_logits(w, vectors, w["mean"]))
    own = np.arange(300)[:, None] % 3 == np.arange(3)
    assert right[own].mean() == pytest.approx(0.9, abs=0.1)
    assert right[~own].mean() == pytest.approx(0.3, abs=0.1)
    beats = response_logits(w, vectors, w["mean"], "beats")
    assert (beats.argmax(axis=1) == np.arange(300) % 3).mean() > 0.95


def test_a_late_comer_gets_an_identity() -> None:
    """Among four experts of each of three topics, one more that was met on 60 queries is told to be of its topic; the
    network is left as it was."""
    rng = np.random.default_rng(0)
    table, test = topical_table(600), topical_table(300, seed=1)
    vectors, asked = (np.asarray(each.queries.embeddings, dtype=float) for each in (table, test))
    topic = np.arange(600)[:, None] % 3
    score = (rng.random((600, 13)) < np.where(topic == np.arange(13) % 3, 0.9, 0.3)).astype(float)
    w = fit_responses(vectors, score[:, :12], **HOW)
    before = {name: value.copy() for name, value in w.items()}
    few = rng.permutation(600)[:60]
    identity = fit_identity(w, vectors[few], score[few, 12], steps=200, rate=0.05, seed=0)
    right = sigmoid(response_logits(w, asked, identity[None]))[:, 0]
    own = np.arange(300) % 3 == 0
    assert right[own].mean() > right[~own].mean() + 0.3
    assert all(np.array_equal(before[name], w[name]) for name in w)
