"""What the benchmark of true difficulty and of a reader's features puts before a router."""

from __future__ import annotations

import numpy as np

from benchmarks.routers.difficulty import KEPT, STATISTICS, WEIGHT, _beside, _graded, _statistics
from outcomes.table import OutcomeTable


def table(score: list[list[float]]) -> OutcomeTable:
    texts = [f"question {i}" for i in range(len(score))]
    embeddings = np.eye(len(score), 3, dtype=np.float32)
    return OutcomeTable.of_matrices(
        ["a", "b"], texts, np.array(score), embeddings=embeddings, categories=["maths"] * len(score)
    )


def test_grades_cut_the_mean_score() -> None:
    assert _graded(table([[0, 0], [1, 0], [0, 1], [1, 1]]), 2).categories == (
        "maths, 0",
        "maths, 1",
        "maths, 1",
        "maths, 1",
    )


def test_held_out_queries_decide_no_scale_and_no_axis() -> None:
    rng = np.random.default_rng(0)
    reading = rng.normal(size=(80, STATISTICS + 2 * 40)).astype(np.float32)
    rest = np.arange(80) < 60
    other = np.where(rest[:, None], reading, 100 * reading).astype(np.float32)
    outcomes = table([[0.0, 1.0]] * 80)
    found, again = (_beside(outcomes, part, rest).queries.embeddings for part in (reading, other))
    assert found is not None
    assert again is not None
    assert found.shape == (80, 3 + STATISTICS + 2 * KEPT)
    np.testing.assert_array_equal(found[:60], again[:60])
    assert not np.allclose(found[60:], again[60:])
    np.testing.assert_allclose(found[:60, 3 : 3 + STATISTICS].std(axis=0), WEIGHT, rtol=0.05)


def test_statistics_of_a_reading() -> None:
    answer = np.log([0.5, 0.25, 0.25])
    found = _statistics(np.array([0.0, 2.0, 4.0, 6.0]), answer, 9)
    np.testing.assert_allclose(
        found, [3, np.sqrt(5), 5, 3, 5.4, 6, 1.5 * np.log(2), np.log(0.5), np.log(10)], rtol=1e-6
    )
    assert len(found) == STATISTICS
