"""The Avengers: A Simple Recipe for Uniting Smaller Language Models. Zhang et al., 2025. arXiv 2505.19797; successor
Avengers-Pro, arXiv 2508.12631.

    d_k = 1 − centre_k·e(q);  w = softmax(−β·d) over the nearest clusters;  score(m) = Σ_k w_k / (rank_k(m) + 0.1)

`e` is the unit-length embedding, centres are those of k-means and are not scaled; rank_k(m) is the model's place by
accuracy in cluster k, 0 the best. The pool is the models that are first in most clusters. `variant="pro"` has
score(m) = Σ_k w_k·(α·minmax_k(accuracy) + (1 − α)·(1 − cost/max cost)) instead, over all models.

Needs: embeddings; an artefact (centres and a value a cluster and model); labels.
Returns: quality = 0.1·score(m), which is 1 for a model first in all clusters that count (pro: the score), and
0 outside the pool, shape (n_queries, n_models), in [0, 1]; each model's mean cost in US dollars.

Differs from the paper:
- Routing only; its self-consistency vote over ten samples is the aggregator `agent-forest`.
- Models of equal accuracy share the mean of their places instead of going by insertion order. K is at most a
  twentieth of the training queries, for in tiny clusters ranks are noise.
- The embedder is the deployment's, not gte-Qwen2-7B. k-means is Lloyd's, best of four starts.

Laws: K = 1 is the best single model; with one nearest cluster β does not matter; ranks are over all models, so
pruning the pool changes no remaining score.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.groups import group_means, kmeans, nearest_groups
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="avengers",
    title="The Avengers: A Simple Recipe for Uniting Smaller Language Models to Challenge Proprietary Giants",
    year=2025,
    paper="arXiv 2505.19797",
    taxonomy="a2",
    contract="router",
    implementation="Avengers",
    needs=frozenset({"embedding", "artefact", "labels"}),
    aliases=("avengers-pro",),
    evidence=(
        Evidence(
            "exact equivalence",
            "K = 1 is the best single model; with one nearest cluster β is irrelevant",
            "tests/routers/test_avengers.py::test_limits",
        ),
        Evidence(
            "exact equivalence",
            "scores equal the formula worked out by hand on a toy centroid file",
            "tests/routers/test_avengers.py::test_score_is_the_formula",
        ),
        Evidence(
            "reproduced figure",
            "RouterDC tables: macro average ≥ 56 in distribution on TF-IDF features, flat over K from 16 to 64",
            "tests/routers/test_avengers.py::test_routerdc_figure",
        ),
    ),
    unverified="",
)


class Avengers:
    """Clusters, each with its local winners. `clusters` K, `beta` β, `nearest` clusters that count, `pool`
    size (0: all), `variant`: rank or pro, `alpha` of pro, `seed` of k-means."""

    def __init__(
        self,
        *,
        clusters: int = 64,
        beta: float = 6.0,
        nearest: int = 3,
        pool: int = 10,
        variant: str = "rank",
        alpha: float = 1.0,
        seed: int = 42,
    ) -> None:
        if variant not in ("rank", "pro"):
            raise MethodError(f"variant is rank or pro, not {variant!r}")
        self.clusters, self.beta, self.nearest, self.pool = clusters, beta, nearest, pool
        self.variant, self.alpha, self.seed = variant, alpha, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Cluster the training queries and rank the models in every cluster. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        k = min(self.clusters, max(1, len(learn) // 20))
        centres = kmeans(learn.vectors, k, seed=self.seed)
        members = nearest_groups(learn.vectors, centres, 1, self.beta)
        accuracy = group_means(members, learn.score)
        if self.variant == "pro":
            value = self._trade_off(accuracy, group_means(members, learn.cost_usd))
        else:
            ranks = _ranks(accuracy)
            value = np.where(_frequent(ranks, self.pool or len(learn.models)), 0.1 / (ranks + 0.1), 0.0)
        self._keep(learn.models, centres, learn.listed(value), learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Scores by the nearest clusters. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.centres_.shape[1], METHOD.id)
        quality = nearest_groups(vectors, self.centres_, self.nearest, self.beta) @ self.value_
        return Estimate(self.models_, np.clip(quality, 0.0, 1.0), constant_costs(self.costs_, len(vectors)))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("clusters", "beta", "nearest", "pool", "variant", "alpha", "seed")
        parameters = {name: getattr(self, name) for name in names}
        tensors = {"centres": self.centres_, "value": self.value_, "cost_usd": self.costs_}
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        centres = tensor(tensors, "centres", (None, None))
        value = tensor(tensors, "value", (len(centres), m))
        router._keep(manifest.models, centres, value, tensor(tensors, "cost_usd", (m,), finite=False))
        return router

    def _keep(self, models: tuple[str, ...], centres: Floats, value: Floats, costs: Floats) -> None:
        self.models_, self.centres_, self.value_, self.costs_ = models, centres, value, costs

    def _trade_off(self, accuracy: Floats, cost: Floats) -> Floats:
        """Pro's value of every model in every cluster; unknown costs count as the dearest."""
        accuracy = np.nan_to_num(accuracy, nan=0.0)
        low, high = (f(accuracy, axis=1, keepdims=True) for f in (np.min, np.max))
        scaled = np.where(high > low, (accuracy - low) / np.where(high > low, high - low, 1.0), 1.0)
        known = np.where(np.isnan(cost), -np.inf, cost)
        dearest = np.maximum(known.max(axis=1, keepdims=True), 0.0)
        share = np.where(np.isnan(cost) | (dearest <= 0), 1.0, cost / np.where(dearest > 0, dearest, 1.0))
        return np.asarray(self.alpha * scaled + (1 - self.alpha) * (1 - share), dtype=np.float64)


def _ranks(accuracy: Floats) -> Floats:
    """Places by accuracy in each cluster, 0 the best, equals sharing the mean of theirs; models without any outcome
    last. Shape (n_clusters, n_models)."""
    known = np.nan_to_num(accuracy, nan=-1.0)
    better = (known[:, None, :] > known[:, :, None] + 1e-12).sum(axis=2)
    equal = (np.abs(known[:, None, :] - known[:, :, None]) <= 1e-12).sum(axis=2)
    return np.asarray(better + (equal - 1) / 2, dtype=np.float64)


def _frequent(ranks: Floats, size: int) -> NDArray[np.bool_]:
    """The `size` models most often first, half a point for each second place, shape (n_models,). Of equal ones those
    of better mean rank, then by name."""
    points = (ranks < 1).sum(axis=0) + 0.5 * ((ranks >= 1) & (ranks < 2)).sum(axis=0)
    order = np.lexsort((np.arange(len(points)), ranks.mean(axis=0), -points))
    chosen = np.zeros(len(points), dtype=np.bool_)
    chosen[order[:size]] = True
    return chosen
