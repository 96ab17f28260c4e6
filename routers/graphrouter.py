"""GraphRouter: A Graph-based Router for LLM Selections. Feng et al., 2024. arXiv 2410.03834.

    x_q = [W_t t ; W_q e(q)],  x_m = W_m d_m;   edge q → m:  a = ReLU(W_e [utility, cost, effect])
    conv: y_v = x_v S + agg_{q → v visible} (x_q G + a E);   H = BN(conv₂(ReLU(BN(conv₁(x)))))
    p(q, m) = σ(mean(x_q ⊙ H_m)),  binary cross entropy against "m is best for q" on the edges that are hidden

A graph of queries (with their task t) and models: an edge holds what a model did on a query. Two layers of convolution
gather what a model's visible edges say about it; the score compares that with the query before any convolution. As
edges lead to models only, H does not depend on the query asked: it is computed once and serving is one product.

Needs: embeddings; an artefact; labels, costs and categories (tasks).
Returns: quality = p, the chance of being the best (not an expected score), shape (n_queries, n_models), in [0, 1], and
each model's mean cost in US dollars.

Differs from the paper:
- d are embeddings of texts given to `chorus train --descriptions`; without them, the models' ids, and then a newcomer
  joins by its edges alone. t is the mean vector of a category's queries; a query asked is of the nearest category.
- Messages are averaged: as a sum (`faithful=True`, as released) they grow with the number of visible edges, which is
  another one at serving than in training. Statistics of BN are those of the whole graph, not running means.
- Models that tie for best are all right; a query on which all do says nothing. The released label is the first of them.
- p = 0 (performance first) by default: the policy weighs cost. Trained for a fixed number of epochs, one step each;
  decay and visible share are the best of 11 settings on an inner split of llmrouter's *training* queries.
- Not a difference, but worth knowing: a message adds who asked and how it went, it does not multiply them. So a model's
  edges tell how good it is, not at what; that has to come from its id or description.

Laws: the cached score is the whole graph's with the query in it; permuting models permutes scores; without edges H is a
function of d alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.attention import dense, dense_start
from outcomes.autograd import Tensor, concat, kept, log_sigmoid, mean, minimise, plain, relu, sqrt, total
from outcomes.groups import category_centres
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.networks import sigmoid
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Weights = Mapping[str, Tensor]
    Moments = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

METHOD = Method(
    id="graphrouter",
    title="GraphRouter: A Graph-based Router for LLM Selections",
    year=2024,
    paper="arXiv 2410.03834",
    taxonomy="a1",
    contract="router",
    implementation="GraphRouter",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the cached product is the whole graph's forward with the query in it, to 1e-9, summed or averaged",
            "tests/routers/test_graphrouter.py::test_the_cached_score_is_the_graphs",
        ),
        Evidence(
            "exact equivalence",
            "permuting models permutes scores; without visible edges a model's state is a function of its description",
            "tests/routers/test_graphrouter.py::test_models_are_told_apart_by_description_and_edges_alone",
        ),
        Evidence(
            "invariant",
            "a model that joins by its description and a few edges, without training, is asked for what it knows",
            "tests/routers/test_graphrouter.py::test_a_newcomer_joins_without_training",
        ),
    ),
    unverified="what PyG's GeneralConv does inside and the abstract's figures are recalled; no figure was reproduced",
)

BN_EPS = 1e-5
SCENARIOS = {"performance": 0.0, "balance": 0.5, "cost": 0.8}
"""Weight of cost in the utility of an edge, by the paper's scenario."""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """`query` (n, dimensions), `task` (n, dimensions) and `model` (m, columns) features; `edges` (n, m, 3): utility,
    cost, effect, 0 where unknown; `known` (n, m)."""

    query: Floats
    task: Floats
    model: Floats
    edges: Floats
    known: NDArray[np.bool_]


class GraphRouter:
    """Edge prediction between queries and models. `described`: vector of every described model; `scenario`:
    performance, balance or cost; `faithful`: messages are summed; `hidden` h; `visible`: share of edges seen in
    training; `maskings` a step; `epochs`, `rate`, `decay`, `seed` of training."""

    def __init__(
        self,
        *,
        described: Mapping[str, Floats] | None = None,
        scenario: str = "performance",
        faithful: bool = False,
        hidden: int = 32,
        visible: float = 0.3,
        maskings: int = 2,
        epochs: int = 100,
        rate: float = 1e-2,
        decay: float = 1.0,
        seed: int = 0,
    ) -> None:
        if scenario not in SCENARIOS:
            raise MethodError(f"scenario is one of {', '.join(SCENARIOS)}, not {scenario!r}")
        self.described, self.scenario, self.faithful, self.hidden = (
            described or {},
            scenario,
            faithful,
            hidden,
        )
        self.visible, self.maskings, self.epochs = visible, maskings, epochs
        self.rate, self.decay, self.seed = rate, decay, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Train on hidden edges, then let every edge be seen. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        names, centres = category_centres(learn.vectors, learn.categories)
        task = np.searchsorted(np.array(names), np.array(learn.categories))
        edges = edge_features(learn.score, learn.cost_usd, task, SCENARIOS[self.scenario])
        model = self._model_features(sorted(learn.models))
        graph = Graph(learn.vectors, centres[task], model, edges, ~np.isnan(learn.score))
        label, telling = best_of(edges[..., 0], graph.known)
        rng = np.random.default_rng(self.seed)

        def loss(w: Weights, step: int) -> Tensor:
            terms = []
            for _ in range(self.maskings):
                seen = graph.known & (rng.random(graph.known.shape) < self.visible)
                asked = (graph.known & ~seen & telling).astype(np.float32)
                queries, states, _ = forward(w, single(graph), seen, summed=self.faithful)
                logits = queries @ states.swapaxes(0, 1) * (1 / states.shape[1])
                each = log_sigmoid(logits) * label + log_sigmoid(-logits) * (1 - label)
                terms.append(total(each * asked) * (-1 / max(1.0, float(asked.sum()))))
            return sum(terms[1:], terms[0]) * (1 / len(terms))

        start = self._start(learn.vectors.shape[1], model.shape[1])
        weights = minimise(start, loss, steps=self.epochs, rate=self.rate, decay=self.decay)
        _, states, moments = forward(weights, graph, graph.known, summed=self.faithful)
        costs = learn.model_costs()
        self._keep(learn.models, weights, np.array(moments), states[learn.columns], centres, costs)
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Chances of being best. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.centres_.shape[1], METHOD.id)
        # Rounded, so that a query halfway between two tasks is of the same one in any company.
        nearest = np.round(vectors @ self.centres_.T, 9).argmax(axis=1)
        features = query_features(self.weights_, vectors, self.centres_[nearest])
        quality = sigmoid(features @ self.states_.T / self.states_.shape[1])
        return Estimate(
            self.models_, np.asarray(quality, dtype=np.float64), constant_costs(self.costs_, len(vectors))
        )

    def join(self, name: str, outcomes: Outcomes) -> Self:
        """A router that has the model `name` too, by its description and its edges in `outcomes` (embedded, scored
        for `name`; whoever else is in it is compared with it), without training. Raises `MethodError`."""
        require_fitted(self, METHOD.id)
        learn = learning_set(outcomes, METHOD.id)
        if name not in learn.models or name in self.models_:
            raise MethodError(f"{name} has no outcomes to join by, or is there already.")
        column = sorted(learn.models).index(name)
        task = np.round(learn.vectors @ self.centres_.T, 9).argmax(axis=1)
        edges = edge_features(learn.score, learn.cost_usd, task, SCENARIOS[self.scenario])[:, [column]]
        known = ~np.isnan(learn.score[:, [column]])
        feature = np.zeros((1, len(self.weights_["model.weight"])))
        if name in self.described:
            feature[0] = self.described[name]
        graph = Graph(learn.vectors, self.centres_[task], feature, edges, known)
        _, state, _ = forward(self.weights_, graph, known, self.moments_, summed=self.faithful)
        cost = learn.model_costs()[learn.models.index(name)]
        larger = copy(self)
        larger.models_ = (*self.models_, name)
        larger.states_ = np.concatenate([self.states_, state])
        larger.costs_ = np.append(self.costs_, cost)
        return larger

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self._parameters())
        own = {
            "moments": self.moments_,
            "states": self.states_,
            "centres": self.centres_,
            "cost_usd": self.costs_,
        }
        save_artefact(folder, manifest, {**self.weights_, **own})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        centres = tensor(tensors, "centres", (None, None)).astype(np.float64)
        columns = tensor(tensors, "model.weight", (None, 2 * router.hidden)).shape[0]
        weights = kept(tensors, router._start(centres.shape[1], columns))
        states = tensor(tensors, "states", (m, 2 * router.hidden)).astype(np.float64)
        moments = tensor(tensors, "moments", (2, 2, 2 * router.hidden)).astype(np.float64)
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, weights, moments, states, centres, costs)
        return router

    def _parameters(self) -> dict[str, Any]:
        names = ("scenario", "faithful", "hidden", "visible", "maskings", "epochs", "rate", "decay", "seed")
        return {name: getattr(self, name) for name in names}

    def _model_features(self, names: list[str]) -> Floats:
        size = max((len(self.described[name]) for name in names if name in self.described), default=0)
        if not size:
            return np.eye(len(names))
        return np.array([self.described.get(name, np.zeros(size)) for name in names], dtype=np.float64)

    def _start(self, dimensions: int, columns: int) -> dict[str, NDArray[Any]]:
        rng, h = np.random.default_rng(self.seed), self.hidden
        layers = {
            "task": (dimensions, h),
            "query": (dimensions, h),
            "model": (columns, 2 * h),
            "edge": (3, 3),
        }
        for i in (0, 1):
            layers |= {f"self.{i}": (2 * h, 2 * h), f"message.{i}": (2 * h, 2 * h), f"hint.{i}": (3, 2 * h)}
        start: dict[str, NDArray[Any]] = {}
        for name, (inputs, outputs) in layers.items():
            start |= dense_start(rng, name, inputs, outputs)
        for i in (0, 1):
            start |= {f"norm.{i}.gain": np.ones(2 * h), f"norm.{i}.shift": np.zeros(2 * h)}
        return start

    def _keep(
        self,
        models: tuple[str, ...],
        weights: dict[str, Floats],
        moments: Floats,
        states: Floats,
        centres: Floats,
        costs: Floats,
    ) -> None:
        self.models_, self.weights_, self.moments_ = models, weights, moments
        self.states_, self.centres_, self.costs_ = states, centres, costs


def forward(
    w: Weights,
    graph: Graph,
    visible: NDArray[np.bool_],
    moments: Moments | Floats | None = None,
    *,
    summed: bool = False,
) -> tuple[Tensor, Tensor, Moments]:
    """Features of the queries before convolution (n, 2h), states H of the models (m, 2h), and both layers' mean and
    variance over all nodes: those given, or the graph's own."""
    queries = query_features(w, graph.query, graph.task)
    nodes, found = concat([queries, dense(w, "model", graph.model)], axis=0), []
    hint = relu(dense(w, "edge", graph.edges))
    seen = visible.astype(graph.query.dtype)
    # What reaches a model is the same for both layers but for what the queries have become.
    share = seen if summed else seen / np.maximum(seen.sum(axis=0), 1)
    hints = total(hint * share[:, :, None], 0)
    for i in (0, 1):
        n = len(seen)
        sent = share.T @ dense(w, f"message.{i}", nodes[:n]) + dense(w, f"hint.{i}", hints)
        nodes = dense(w, f"self.{i}", nodes)
        # A model without visible edges hears nothing, not the layers' constants.
        heard = sent * (seen.sum(axis=0) > 0).astype(seen.dtype)[:, None]
        nodes = concat([nodes[:n], nodes[n:] + heard], axis=0)
        centre, variance = moments[i] if moments is not None else _moments(nodes)
        found.append((plain(centre), plain(variance)))
        nodes = (nodes - centre) / sqrt(variance + BN_EPS) * w[f"norm.{i}.gain"] + w[f"norm.{i}.shift"]
        nodes = relu(nodes) if i == 0 else nodes
    return queries, nodes[n:], (found[0], found[1])


def query_features(w: Weights, query: Floats, task: Floats) -> Tensor:
    """x_q, shape (n, 2h)."""
    return concat([dense(w, "task", task), dense(w, "query", query)])


def edge_features(score: Floats, cost_usd: Floats, task: NDArray[np.intp], price: float) -> Floats:
    """Utility (1 − p)·effect − p·cost, cost on [0, 1] within each task, and effect of every edge, shape (n, m, 3);
    0 where unknown."""
    cost = np.zeros_like(cost_usd)
    for group in np.unique(task):
        rows = task == group
        known = cost_usd[rows][~np.isnan(cost_usd[rows])]
        if len(known) and np.ptp(known) > 0:
            cost[rows] = np.nan_to_num((cost_usd[rows] - known.min()) / np.ptp(known))
    utility = (1 - price) * score - price * cost
    return np.nan_to_num(np.stack([utility, cost, score], axis=2))


def best_of(utility: Floats, known: NDArray[np.bool_]) -> tuple[Floats, NDArray[np.bool_]]:
    """1 for the models of highest known utility on a query, else 0, shape (n, m); and the queries on which models
    differ, shape (n, 1)."""
    highest = np.where(known, utility, -np.inf).max(axis=1, keepdims=True)
    lowest = np.where(known, utility, np.inf).min(axis=1, keepdims=True)
    return ((utility >= highest) & known).astype(np.float32), highest > lowest


def single(graph: Graph) -> Graph:
    """The graph in single precision, in which training runs."""
    names = ("query", "task", "model", "edges")
    return replace(graph, **{name: getattr(graph, name).astype(np.float32) for name in names})


def _moments(nodes: Tensor) -> tuple[Tensor, Tensor]:
    centre = mean(nodes, 0, keepdims=True)
    return centre[0], mean((nodes - centre) * (nodes - centre), 0)
