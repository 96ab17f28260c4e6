"""TensorOpera Router: A Multi-Model Router for Efficient LLM Inference. Stripelis et al., 2024. arXiv 2408.12320.

    soft label y_m(x) = softmax_m(s(x, m) / T);  Z(x) = softmax(head(e(x)));  loss = −Σ_m y_m log Z_m

`s` is `Outcomes.score` (the paper: BERTSim to the reference answer), `e` the frozen embedding. Two of the
paper's heads: `head="mlp"` (default), and `head="knn"`: the share of the k nearest training queries whose best
expert is m, experts that tie sharing the vote. The encoder head belongs to the small-encoder trainer.

Needs: embeddings; an artefact; labels.
Returns: quality = Z, the probability that m is the best expert (not its expected score), shape (n_queries,
n_models), in [0, 1], and each model's mean cost in US dollars.

Differs from the paper:
- The score is whatever the table holds. The temperature is the real hyper-parameter and not known; 0.2 here.
- Epochs and decay of the MLP are the best of 15 settings on an inner split of llmrouter's *training* queries.
- A query on which every known score is the same says nothing about who is best and is left out.

Laws: k = n votes for the expert that is best most often; k = 1 at a training query is the optimal router; T →
0 is the hard label, T → ∞ the uniform one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.neighbours import KnownMeans, in_blocks, neighbour_weights
from outcomes.network_router import NetworkTraining
from outcomes.networks import Network, softmax
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="to-router",
    title="TensorOpera Router: A Multi-Model Router for Efficient LLM Inference",
    year=2024,
    paper="arXiv 2408.12320",
    taxonomy="a1",
    contract="router",
    implementation="ToRouter",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "k = n is the expert most often best; k = 1 at training queries is the optimal router",
            "tests/routers/test_to_router.py::test_neighbour_limits",
        ),
        Evidence(
            "exact equivalence",
            "the soft label tends to the hard one as T → 0 and to the uniform one as T → ∞",
            "tests/routers/test_to_router.py::test_soft_label_limits",
        ),
        Evidence(
            "invariant",
            "on a recorded table both heads score above the zero router (mean of the experts) and below the optimum",
            "tests/routers/test_to_router.py::test_between_zero_router_and_optimum",
        ),
    ),
    unverified="router internals and the ranking of heads are recalled; no constant is verified; no public code",
)


@dataclass(kw_only=True, eq=False)
class ToRouter(NetworkTraining):
    """Names the best expert. `head`: mlp or knn; `temperature` T of the labels; `k` of the kNN head; the other knobs
    are the MLP's."""

    head: str = "mlp"
    temperature: float = 0.2
    k: int = 100
    epochs: int = 20

    def __post_init__(self) -> None:
        if self.head not in ("mlp", "knn"):
            raise MethodError(f"head is mlp or knn, not {self.head!r}")

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the head. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        known = ~np.isnan(learn.score)
        telling = np.nanmax(learn.score, axis=1) > np.nanmin(learn.score, axis=1)
        vectors, score = learn.vectors[telling], learn.score[telling]
        costs = learn.model_costs()
        if self.head == "knn":
            self._keep_votes(learn.models, vectors, learn.listed(votes(score)), costs)
            return self
        target = soft_labels(score, self.temperature)
        held = known[telling]
        # Experts without an outcome are no candidates of that query: their logits get no gradient.
        network = self.trained(
            vectors,
            len(learn.models),
            lambda rows, out: softmax(np.where(held[rows], out, -np.inf)) - target[rows],
        )
        self._keep_network(learn.models, network.with_outputs(learn.columns), costs)
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Z of every query. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self._dimensions, METHOD.id)
        if self.head == "knn":
            quality = in_blocks(
                lambda block: self._known.of(neighbour_weights(block @ self.embeddings_.T, self.k)),
                vectors,
                len(self.models_),
            )
        else:
            quality = np.asarray(softmax(self.network_(vectors)), dtype=np.float64)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(vectors)))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        learnt: dict[str, NDArray[Any]] = (
            {"embeddings": self.embeddings_.astype(np.float32), "votes": self.votes_}
            if self.head == "knn"
            else {**self.network_.tensors()}
        )
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        save_artefact(folder, manifest, {**learnt, "cost_usd": self.costs_})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router = cls(**arguments(cls, manifest))
        m = len(manifest.models)
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        if router.head == "knn":
            vectors = tensor(tensors, "embeddings", (None, None)).astype(np.float64)
            shares = tensor(tensors, "votes", (len(vectors), m), finite=False)
            router._keep_votes(manifest.models, vectors, shares, costs)
        else:
            router._keep_network(manifest.models, Network.of(tensors, m), costs)
        return router

    def _keep_votes(self, models: tuple[str, ...], vectors: Floats, shares: Floats, costs: Floats) -> None:
        if not len(vectors):
            raise MethodError(f"{METHOD.id} found no query on which the experts differ.")
        self.models_, self.embeddings_, self.votes_, self.costs_ = models, vectors, shares, costs
        self._dimensions = vectors.shape[1]
        self._known = KnownMeans(shares)

    def _keep_network(self, models: tuple[str, ...], network: Network, costs: Floats) -> None:
        self.models_, self.network_, self.costs_ = models, network, costs
        self._dimensions = network.inputs


def soft_labels(score: Floats, temperature: float) -> Floats:
    """Softmax over experts of score/T, 0 where the score is unknown; shape of `score`."""
    return np.asarray(softmax(np.where(np.isnan(score), -np.inf, score / temperature)), dtype=np.float64)


def votes(score: Floats) -> Floats:
    """One vote a query, shared equally by its best experts; NaN where the score is unknown."""
    best = score >= np.nanmax(score, axis=1, keepdims=True)
    return np.where(np.isnan(score), np.nan, best / best.sum(axis=1, keepdims=True))
