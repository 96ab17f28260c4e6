"""metallm: ridge regression offline, the same online, and what the price does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import load_router
from protocol.errors import MethodError
from protocol.routing import Feedback, Queries
from routers.metallm import MetaLlm
from routers.policy import Utility
from tests.routers.recorded import random_table


def test_offline_is_ridge_and_affine_in_price() -> None:
    """Coefficients are scikit-learn's ridge without intercept; θ(p) = θ(0) − p·c_k·A⁻¹Σx."""
    from sklearn.linear_model import Ridge

    table = random_table()
    vectors = np.asarray(table.queries.embeddings, dtype=float)
    free, priced = (MetaLlm(price=p).fit(table) for p in (0.0, 0.7))
    theirs = Ridge(12.94, fit_intercept=False).fit(vectors, table.score)
    assert np.allclose(free.arms_.theta, theirs.coef_, atol=1e-6)
    c = free.costs_ / free.costs_.max()
    shift = free.arms_.inverse[0] @ vectors.sum(axis=0)
    assert np.allclose(priced.arms_.theta, free.arms_.theta - 0.7 * c[:, None] * shift)


def test_online_equals_batch(tmp_path: Path) -> None:
    """An artefact of half the table that observes the other half one by one equals a fit on the whole."""
    table = random_table()
    MetaLlm(price=0.3).fit(table.take(slice(0, 100))).save(tmp_path)
    online = load_router(tmp_path)[1]
    assert isinstance(online, MetaLlm)
    # c_k are those of the first half, so the whole has to be told them too.
    whole = MetaLlm(price=0.3).fit(table)
    for i in range(100, 200):
        query = Queries([table.queries.texts[i]], table.queries.embeddings[i : i + 1])
        for j, name in enumerate(table.models):
            online.observe(Feedback(query, name, table.score[i, j]))
    c = online.costs_ / online.costs_.max() - whole.costs_ / whole.costs_.max()
    shift = whole.arms_.inverse[0] @ np.asarray(table.queries.embeddings, dtype=float).sum(axis=0)
    assert np.allclose(online.arms_.theta, whole.arms_.theta - 0.3 * c[:, None] * shift, atol=1e-5)


def test_price_weight_lowers_price() -> None:
    """Mean price of the choices never rises with p, and a huge p takes the cheapest. With an intercept, so that the
    price is a constant and not a function of the query."""
    table = random_table(400)
    spent = []
    for price in (0.0, 0.05, 0.2, 1.0, 20.0):
        router = MetaLlm(price=price, intercept=True, penalty=1.0).fit(table)
        value = router._x(np.asarray(table.queries.embeddings, dtype=float)) @ router.arms_.theta.T
        spent.append(float(router.costs_[value.argmax(axis=1)].mean()))
    assert spent == sorted(spent, reverse=True)
    assert spent[-1] == pytest.approx(router.costs_.min())


def test_exploration_favours_the_less_seen() -> None:
    """An arm observed on fewer queries is more uncertain about every query, and α makes it answer more often."""
    table = random_table()
    table.score[20:, 2] = np.nan
    router = MetaLlm(alpha=0.5).fit(table)
    width = router.arms_.width(np.asarray(table.queries.embeddings, dtype=float))
    assert (width[:, 2] > width[:, :2].max(axis=1)).all()
    curious, plain = (
        (Utility().choose(r.estimate(table.queries)) == 2).mean() for r in (router, MetaLlm().fit(table))
    )
    assert curious > plain


def test_feedback_for_a_stranger_is_refused() -> None:
    """Naming the models there are."""
    table = random_table()
    with pytest.raises(MethodError, match="m0, m1, m2"):
        MetaLlm().fit(table).observe(Feedback(table.take([0]).queries, "m9", 1.0))
