"""graphrouter: its cached product against the whole graph, its symmetries, and newcomers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from outcomes.artefact import load_router
from outcomes.learning_set import learning_set
from outcomes.networks import sigmoid
from outcomes.table import OutcomeTable
from protocol.errors import MethodError
from routers.graphrouter import SCENARIOS, Graph, GraphRouter, best_of, edge_features, forward
from tests.routers.recorded import random_table, realised, topical_table


def graph_of(router: GraphRouter, table: OutcomeTable, summed: bool = False) -> tuple[Graph, tuple]:
    """The graph that a router was fitted on (models sorted by name), and the moments of its layers."""
    learn = learning_set(table, "graphrouter")
    task = np.round(learn.vectors @ router.centres_.T, 9).argmax(axis=1)
    edges = edge_features(learn.score, learn.cost_usd, task, 0.0)
    model = np.eye(len(learn.models))
    graph = Graph(learn.vectors, router.centres_[task], model, edges, ~np.isnan(learn.score))
    return graph, forward(router.weights_, graph, graph.known, summed=summed)[2]


@pytest.mark.parametrize("summed", [False, True])
def test_the_cached_score_is_the_graphs(summed: bool) -> None:
    """Scoring a query by one product equals putting it into the graph, without edges, and running the whole forward."""
    table, asked = topical_table(60), topical_table(7, seed=1)
    router = GraphRouter(faithful=summed, epochs=10).fit(table)
    graph, moments = graph_of(router, table, summed)
    vectors = np.asarray(asked.queries.embeddings, dtype=float)
    nearest = np.round(vectors @ router.centres_.T, 9).argmax(axis=1)
    with_query = Graph(
        np.concatenate([graph.query, vectors]),
        np.concatenate([graph.task, router.centres_[nearest]]),
        graph.model,
        np.concatenate([graph.edges, np.zeros((7, 3, 3))]),
        np.concatenate([graph.known, np.zeros((7, 3), dtype=bool)]),
    )
    queries, states, _ = forward(router.weights_, with_query, with_query.known, moments, summed=summed)
    whole = sigmoid((queries[-7:] * states[:, None]).mean(axis=2).T)
    assert np.allclose(router.estimate(asked.queries).quality, whole, atol=1e-9)


def test_models_are_told_apart_by_description_and_edges_alone() -> None:
    """Permuting the models' nodes and edges permutes their states; without visible edges, models described alike are
    alike, and nobody's edges matter."""
    table = random_table(40)
    router = GraphRouter(epochs=5).fit(table)
    graph, moments = graph_of(router, table)
    order = np.array([2, 0, 1])
    turned = replace(
        graph, model=graph.model[order], edges=graph.edges[:, order], known=graph.known[:, order]
    )
    states = forward(router.weights_, graph, graph.known)[1]
    assert np.allclose(forward(router.weights_, turned, turned.known)[1], states[order])
    alike = replace(graph, model=graph.model[[0, 0, 2]])
    nothing = np.zeros_like(graph.known)
    blind = forward(router.weights_, alike, nothing, moments)[1]
    assert np.allclose(blind[0], blind[1])
    assert not np.allclose(blind[0], blind[2])
    other = replace(alike, edges=graph.edges[::-1] + 1.0)
    assert np.allclose(forward(router.weights_, other, nothing, moments)[1], blind)


def test_visible_edges_move_averages_and_sums() -> None:
    """With a third of the edges visible an average stays where it was; a sum shrinks to a third: the shift between
    training and serving."""
    table = random_table(900)
    router = GraphRouter(epochs=5).fit(table)
    graph, moments = graph_of(router, table)
    some = np.random.default_rng(0).random(graph.known.shape) < 1 / 3

    def shift(summed: bool) -> float:
        given = forward(router.weights_, graph, graph.known, summed=summed)[2]
        states = [
            forward(router.weights_, graph, seen, given, summed=summed)[1] for seen in (graph.known, some)
        ]
        return float(np.abs(states[1] - states[0]).mean() / states[0].std())

    assert shift(summed=False) < 0.3 * shift(summed=True)
    assert moments[0][0].shape == (64,)


def test_it_learns_who_knows_what(tmp_path: Path) -> None:
    """Held-out queries go to the model that knows their topic, before and after a round trip."""
    train, test = topical_table(), topical_table(seed=1)
    router = GraphRouter().fit(train)
    assert realised(router, test) > test.score.mean(axis=0).max() + 0.2
    router.save(tmp_path)
    assert realised(load_router(tmp_path)[1], test) == realised(router, test)


def circle(n: int, seed: int, m: int = 12) -> OutcomeTable:
    """Queries and models are directions in a plane; a model knows what lies close to its own."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, n)
    score = (rng.random((n, m)) < np.where(close(angle, m), 0.9, 0.2)).astype(float)
    return OutcomeTable.of_matrices(
        [f"m{j:02}" for j in range(m)], [f"question {i} of {seed}" for i in range(n)], score, np.ones((n, m)),
        embeddings=np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32),
    )  # fmt: skip


def close(angle: np.ndarray, m: int = 12) -> np.ndarray:
    """Which queries lie close to which model."""
    return np.cos(angle[:, None] - 2 * np.pi * np.arange(m) / m) > 0.7


def test_a_newcomer_joins_without_training() -> None:
    """Trained on eleven of twelve models and their descriptions, a router tells what the twelfth knows by its
    description and 30 edges, and asks it there and nowhere else; the others' scores stay."""
    train, test = circle(600, 0), circle(400, 1)
    angles = 2 * np.pi * np.arange(12) / 12
    described = {f"m{j:02}": np.array([np.cos(angle), np.sin(angle)]) for j, angle in enumerate(angles)}
    newcomer = "m04"
    others = tuple(name for name in train.models if name != newcomer)
    router = GraphRouter(described=described).fit(train.only(others))
    few = train.take(np.random.default_rng(0).permutation(600)[:30])
    larger = router.join(newcomer, few)
    before, after = (found.estimate(test.queries).quality for found in (router, larger))
    assert np.array_equal(before, after[:, :-1])
    assert larger.models_ == (*others, newcomer)
    vectors = np.asarray(test.queries.embeddings, dtype=float)
    own = close(np.arctan2(vectors[:, 1], vectors[:, 0]))[:, 4]
    assert (after[own, -1][:, None] > after[~own, -1]).mean() > 0.95
    asked = after.argmax(axis=1) == 11
    assert asked[own].mean() > 0.1
    assert not asked[~own].any()
    with pytest.raises(MethodError, match="already"):
        larger.join(newcomer, few)


def test_edges_hold_utility_cost_and_effect() -> None:
    """Cost is on [0, 1] within each task; the scenario weighs it; unknown cells are 0 and no labels."""
    score = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, np.nan]])
    cost = np.array([[1.0, 3.0], [10.0, 30.0], [20.0, np.nan]])
    edges = edge_features(score, cost, np.array([0, 1, 1]), SCENARIOS["balance"])
    assert np.allclose(edges[..., 1], [[0, 1], [0, 1], [0.5, 0]])
    assert np.allclose(edges[..., 0], [[0.5, -0.5], [0.5, 0.0], [-0.25, 0]])
    assert np.allclose(edges[..., 2], [[1, 0], [1, 1], [0, 0]])
    known = ~np.isnan(score)
    labels, telling = best_of(score, known)
    assert labels.tolist() == [[1, 0], [1, 1], [1, 0]]
    assert telling[:, 0].tolist() == [True, False, False]
    with pytest.raises(MethodError, match="balance"):
        GraphRouter(scenario="luck")


def test_scenarios_save_money() -> None:
    """The more the scenario weighs cost, the less the router's choices cost."""
    table = random_table(300)
    spent = []
    for scenario in SCENARIOS:
        router = GraphRouter(scenario=scenario, epochs=30).fit(table)
        spent.append(float(router.costs_[router.estimate(table.queries).quality.argmax(axis=1)].mean()))
    assert spent == sorted(spent, reverse=True)
