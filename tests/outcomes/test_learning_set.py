"""The canonical view: order never matters, gaps stay gaps, and the listed order comes back."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.learning_set import constant_costs, learning_set, query_vectors
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from protocol.routing import Queries
from tests.contracts.router_checks import MODELS, TRAIN


def test_order_of_rows_and_columns_does_not_matter() -> None:
    """Shuffled queries and models give the same matrices; `listed` restores the order of the models."""
    first = learning_set(TRAIN, "m")
    shuffled = TRAIN.take(np.random.default_rng(0).permutation(len(TRAIN))).only(MODELS[::-1])
    second = learning_set(shuffled, "m")
    for name in ("vectors", "score", "cost_usd"):
        assert np.array_equal(getattr(first, name), getattr(second, name), equal_nan=True)
    assert first.texts == second.texts
    assert first.categories == second.categories
    assert first.models == second.models[::-1]
    assert np.array_equal(first.model_costs(), second.model_costs()[::-1])
    original = dict(zip(TRAIN.queries.texts, TRAIN.score, strict=True))
    for text, row in zip(first.texts, first.listed(first.score), strict=True):
        assert np.array_equal(original[text], row, equal_nan=True)


def test_queries_without_any_score_are_left_out() -> None:
    """And a table with nothing else is refused, as is one without embeddings where they are needed."""
    score = np.array([[np.nan, np.nan], [1.0, np.nan]])
    table = OutcomeTable.of_matrices(["a", "b"], ["x", "y"], score)
    assert learning_set(table, "m", embedded=False).texts == ("y",)
    with pytest.raises(MethodError, match="embeddings"):
        learning_set(table, "m")
    with pytest.raises(MethodError, match="none"):
        learning_set(table.take([0]), "m", embedded=False)


def test_query_vectors_are_checked() -> None:
    """Missing embeddings and other sizes are refused, naming both."""
    with pytest.raises(MethodError, match="needs embeddings of 4 dimensions; got none"):
        query_vectors(Queries(["x"]), 4, "m")
    with pytest.raises(MethodError, match=r"got shape \(1, 3\)"):
        query_vectors(Queries(["x"], np.ones((1, 3), dtype=np.float32)), 4, "m")


def test_constant_costs_repeat() -> None:
    """One row a query, also for none."""
    assert constant_costs([1.0, 2.0], 3).tolist() == [[1, 2]] * 3
    assert constant_costs([1.0, 2.0], 0).shape == (0, 2)
