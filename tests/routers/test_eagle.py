"""eagle: its limits, its bookkeeping, and what looking nearby is worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import load_router
from outcomes.battles import elo
from outcomes.learning_set import replay_order
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from routers.eagle import START, Eagle
from routers.policy import Utility
from tests.routers.recorded import random_table, realised, topical_table


def test_limits() -> None:
    """P = 1 is one order for all queries, the global ratings'; N = all with P = 0 from a constant start replays all
    feedback too, so it ranks models as the global Elo does, up to order."""
    table = random_table(300)
    fixed = Eagle(p=1.0).fit(table)
    quality = fixed.estimate(table.queries).quality
    assert np.allclose(quality, quality[0])
    assert np.array_equal(np.argsort(quality[0]), np.argsort(fixed.ratings_[1]))
    rng = np.random.default_rng(0)
    clear = random_table(400)
    clear.score[:] = (rng.random((400, 3)) < [0.1, 0.5, 0.9]).astype(float)
    everything = Eagle(p=0.0, n=400, local_start="constant").fit(clear)
    near = everything.rate(np.asarray(clear.queries.embeddings[:5], dtype=float))
    assert (np.argsort(near) == np.argsort(everything.ratings_[0])).all()


def test_more_feedback(tmp_path: Path) -> None:
    """The total is conserved, and an artefact that gets more feedback has the ratings of one replay of both parts."""
    first, second = random_table(120), random_table(80, seed=1)
    Eagle().fit(first).save(tmp_path)
    router = load_router(tmp_path)[1]
    assert isinstance(router, Eagle)
    router.more(second)
    order = [part.score[replay_order(part.queries.texts)] for part in (first, second)]
    assert np.allclose(router.ratings_[0], elo(np.full(3, START), np.concatenate(order), 32.0))
    assert np.allclose(router.ratings_.sum(axis=1), 3 * START)
    assert len(router.embeddings_) == 200
    with pytest.raises(MethodError, match="only"):
        router.more(random_table(10, 2))


def test_local_feedback_moves_the_ratings() -> None:
    """Among queries that one model wins it is rated higher than elsewhere."""
    train, test = topical_table(), topical_table(30, seed=1)
    router = Eagle().fit(train)
    ratings = router.rate(np.asarray(test.queries.embeddings, dtype=float))
    own = ratings[np.arange(30), np.arange(30) % 3]
    assert (own >= ratings.max(axis=1) - 1e-9).mean() > 0.8


def test_local_ratings_help(llmrouter: tuple[OutcomeTable, OutcomeTable]) -> None:
    """On held-out queries of fourteen tasks P = 0.5 scores above P = 1, which sends all to one model."""
    train, test = llmrouter
    mixed, fixed = (realised(Eagle(p=p).fit(train), test) for p in (0.5, 1.0))
    print(f"P = 0.5: {mixed:.3f}; P = 1: {fixed:.3f}")
    assert mixed > fixed


def test_starts_are_named() -> None:
    """Only the two that exist."""
    with pytest.raises(MethodError, match="global or constant"):
        Eagle(local_start="zero")
    assert len(set(Utility().choose(Eagle(p=1.0).fit(random_table()).estimate(random_table().queries)))) == 1
