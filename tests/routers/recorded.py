"""Tables that router tests share: random ones for laws, published ones on quick TF-IDF features for figures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from outcomes.metrics import chosen
from outcomes.table import OutcomeTable, read_table, split
from protocol.routing import Router
from routers.policy import Utility

SAMPLED = ("gsm8k", "mbpp", "humaneval", "javascript")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_table(n: int = 200, m: int = 3, seed: int = 0, categories: int = 3) -> OutcomeTable:
    """Random scores on random embeddings: laws must hold without any structure to lean on."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(n, 8)))
    texts = [f"question {i} of {seed}" for i in range(n)]
    score = (rng.random((n, m)) < np.linspace(0.4, 0.6, m)).astype(float)
    cost = rng.uniform(0.9, 1.1, (n, m)) * np.geomspace(1e-6, 9e-6, m)
    return OutcomeTable.of_matrices(
        [f"m{j}" for j in range(m)], texts, score, cost,
        embeddings=vectors, categories=[f"c{i % categories}" for i in range(n)],
    )  # fmt: skip


def topical_table(n: int = 400, seed: int = 0, m: int = 3) -> OutcomeTable:
    """Each model knows its own topic: routing pays, and who looks at the query finds out."""
    rng = np.random.default_rng(seed)
    topic = np.arange(n) % m
    vectors = unit(np.random.default_rng(99).normal(size=(m, 16))[topic] + 0.4 * rng.normal(size=(n, 16)))
    score = (rng.random((n, m)) < np.where(topic[:, None] == np.arange(m), 0.9, 0.3)).astype(float)
    cost = np.tile(np.geomspace(1e-6, 9e-6, m), (n, 1))
    return OutcomeTable.of_matrices(
        [f"m{j}" for j in range(m)], [f"question {i} of {seed}" for i in range(n)], score, cost,
        embeddings=vectors, categories=[f"topic {t}" for t in topic],
    )  # fmt: skip


def realised(router: Router, table: OutcomeTable, lam: float = 0.0) -> float:
    """Mean score of the router's choices."""
    return float(np.nanmean(chosen(table.score, Utility(lam).choose(router.estimate(table.queries)))))


def tfidf(train: OutcomeTable, *tests: OutcomeTable, dimensions: int = 128) -> tuple[OutcomeTable, ...]:
    """The tables with character TF-IDF features reduced by an SVD that saw `train` only."""
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), max_features=60_000, sublinear_tf=True)
    reduce = TruncatedSVD(dimensions, random_state=0)
    first = train.embedded(unit(reduce.fit_transform(features.fit_transform(train.queries.texts))))
    others = [test.embedded(unit(reduce.transform(features.transform(test.queries.texts)))) for test in tests]
    return first, *others


def published(source: str) -> tuple[OutcomeTable, OutcomeTable]:
    """(train, held out) of a published source, split by query text, on TF-IDF features."""
    train, test = split(read_table(Path(os.environ["CHORUS_DATA"]) / source))
    found = tfidf(train, test)
    return found[0], found[1]


def accuracies(table: OutcomeTable) -> OutcomeTable:
    """RouterDC's scores as accuracies: multiple choice is scored there by the probability of the right option where it
    was on top, so above 0 is right."""
    sampled = np.isin(table.categories, SAMPLED)[:, None]
    return replace(table, score=np.where(sampled, table.score, table.score > 0))


def worded_table(n: int = 120, seed: int = 0) -> OutcomeTable:
    """Three models, each right on the questions that its own word is in, with noise: what encoders can read."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, 3, n)
    words, filler = (
        np.array(["history", "algebra", "poem"])[topic],
        np.array(["what is the", "question", "a noise"]),
    )
    texts = [
        f"{filler[rng.integers(3)]} {word} number {rng.integers(1000)} {i}" for i, word in enumerate(words)
    ]
    score = (rng.random((n, 3)) < np.where(topic[:, None] == np.arange(3), 0.95, 0.2)).astype(float)
    cost = np.tile(np.geomspace(1e-6, 9e-6, 3), (n, 1))
    return OutcomeTable.of_matrices(["m0", "m1", "m2"], texts, score, cost, categories=[*map(str, words)])
