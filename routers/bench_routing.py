"""Large Language Model Routing with Benchmark Datasets. Shnitzer et al., 2023. arXiv 2309.15789.

    g_m(x) = mean of y(x_j, m) over the k nearest inputs of all benchmarks;  ḡ_m(x) = 1[g_m(x) > t]
    S1(m) = mean g_m(x_i);  S2(m) = mean ḡ_m(x_i);  S3(m) = p(d′, m)·S2(m) + (1 − p(d′, m))·(1 − S2(m))

`y` is `Outcomes.score`, a benchmark d is a query category. `estimate` gives g, the paper's per-instance use. A whole
new task d′ is scored by `score_task`: p(d, m), the accuracy of ḡ_m on a benchmark it was not fitted on, is smoothed
over u(d), the mean distance of a benchmark's inputs to their κ nearest inputs in all others; and the best model of S3
is taken only if it beats m0, the best model on average over the benchmarks, with probability above η.

Needs: embeddings; an artefact; graded outcomes with categories, at least two for `score_task`.
Returns: quality g in [0, 1] and each model's mean cost in US dollars, shape (n_queries, n_models); `score_task` a
`TaskScores` of vectors over models.

Differs from the paper:
- The encoder is the deployment's, not all-mpnet-base-v2. Inputs tied at the k-th distance share the places left.
- The bandwidth h is chosen on leave-one-benchmark-out error of p̂; the paper's grid is recalled only, as are κ
  and the details of u, the smoothing and the guard.
- Ties of S3 go to m0, never to the first-listed model.

Laws: p ≡ 1 makes S3 equal S2; p ≡ ½ makes S3 ≡ ½ and returns m0; k = n makes g the pooled mean, so that S1 picks the
pooled best model; k = 1 at a training query returns its own labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.learning_set import constant_costs, known_means, learning_set, query_vectors, require_fitted
from outcomes.neighbours import KnownMeans, in_blocks, neighbour_weights
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="bench-routing",
    title="Large Language Model Routing with Benchmark Datasets",
    year=2023,
    paper="arXiv 2309.15789",
    taxonomy="a1",
    contract="router",
    implementation="BenchRouting",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "p ≡ 1 makes S3 equal S2; p ≡ ½ makes S3 ≡ ½ and the guard returns the best model on average",
            "tests/routers/test_bench_routing.py::test_reliability_limits",
        ),
        Evidence(
            "exact equivalence",
            "k = n makes S1 pick the pooled best; k = 1 at training queries is the per-query oracle",
            "tests/routers/test_bench_routing.py::test_neighbour_limits",
        ),
        Evidence(
            "invariant",
            "on a recorded table S3 tells accuracies on left-out tasks better with the true p than the estimated",
            "tests/routers/test_bench_routing.py::test_true_reliability_tells_accuracies_better",
        ),
    ),
    unverified="κ, the bandwidth's choice, and the details of u, smoothing and guard are recalled. That "
    "the true p *chooses* better than the estimated is not shown: on llmrouter's 14 left-out tasks the difference is "
    "-0.004 (standard error 0.058) on TF-IDF features, +0.020 (0.034) on MiniLM's",
)

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Candidate kernel widths, in standard deviations of u over the benchmarks."""


@dataclass(frozen=True, slots=True, eq=False)
class TaskScores:
    """What is believed of a task, each of shape (n_models,): the three scores, the reliability `p` they used, and
    `chosen`, the index of the model to take."""

    s1: Floats
    s2: Floats
    s3: Floats
    p: Floats
    chosen: int


class BenchRouting:
    """kNN correctness predictors over benchmarks, and a task score that knows how unreliable they are.

    `k` neighbours, `threshold` t of a correct answer, `eta` η of the guard, `kappa` κ of the task descriptor.
    """

    def __init__(self, k: int = 5, *, threshold: float = 0.5, eta: float = 0.6, kappa: int = 19) -> None:
        self.k, self.threshold, self.eta, self.kappa = k, threshold, eta, kappa

    def fit(self, outcomes: Outcomes) -> Self:
        """Store the benchmarks; measure p(d, m) and u(d) by leaving each out. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        names, label = np.unique(np.array(learn.categories), return_inverse=True)
        score = learn.listed(learn.score)
        self._keep(learn.models, learn.vectors, score, label.astype(np.float64), learn.model_costs())
        several = len(names) > 1
        reliability = [self._left_out(label == d) for d in range(len(names))] if several else []
        self.reliability_ = np.array(reliability).reshape(len(reliability), len(learn.models))
        self.distance_ = np.array([self._distance(label == d) for d in range(len(names))] if several else [])
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """G of every query. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.embeddings_.shape[1], METHOD.id)
        return Estimate(self.models_, self._g(vectors), constant_costs(self.costs_, len(vectors)))

    def score_task(self, queries: Queries, *, reliability: Floats | None = None) -> TaskScores:
        """Score every model on the task that `queries` are a sample of, unlabelled. `reliability`: p(d′, m) if it is
        known, shape (n_models,). Raises `MethodError` without queries, or when fewer than two benchmarks were
        learnt from and no reliability is given."""
        g = self.estimate(queries).quality
        if not len(g):
            raise MethodError(f"{METHOD.id} scores a task by its queries; there are none.")
        vectors = query_vectors(queries, self.embeddings_.shape[1], METHOD.id)
        p = self._smoothed(self._descriptor(vectors, np.ones(len(self.embeddings_), dtype=np.bool_))) if (
            reliability is None
        ) else reliability  # fmt: skip
        s1, s2 = g.mean(axis=0), (g > self.threshold).mean(axis=0)
        s3 = p * s2 + (1 - p) * (1 - s2)
        return TaskScores(s1, s2, s3, p, self._guarded(s3, p, len(g)))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        parameters = {"k": self.k, "threshold": self.threshold, "eta": self.eta, "kappa": self.kappa}
        tensors: dict[str, NDArray[Any]] = {
            "embeddings": self.embeddings_.astype(np.float32),
            "score": self.score_,
            "benchmark": self.benchmark_,
            "reliability": self.reliability_,
            "distance": self.distance_,
            "cost_usd": self.costs_,
        }
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router = cls(**arguments(cls, manifest))
        vectors = tensor(tensors, "embeddings", (None, None)).astype(np.float64)
        n, m = len(vectors), len(manifest.models)
        score = tensor(tensors, "score", (n, m), finite=False)
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, vectors, score, tensor(tensors, "benchmark", (n,)), costs)
        router.distance_ = tensor(tensors, "distance", (None,))
        router.reliability_ = tensor(tensors, "reliability", (len(router.distance_), m), finite=False)
        return router

    def _keep(
        self, models: tuple[str, ...], vectors: Floats, score: Floats, benchmark: Floats, costs: Floats
    ) -> None:
        self.models_, self.embeddings_, self.score_, self.benchmark_ = models, vectors, score, benchmark
        self.costs_ = costs
        self._known = KnownMeans(score)

    def _g(self, vectors: Floats) -> Floats:
        return in_blocks(
            lambda block: self._known.of(neighbour_weights(block @ self.embeddings_.T, self.k)),
            vectors,
            len(self.models_),
        )

    def _left_out(self, held: NDArray[np.bool_]) -> Floats:
        """p(d, m): how often ḡ_m, fitted on the other benchmarks, says what is so on this one."""
        others = KnownMeans(self.score_[~held])
        g = in_blocks(
            lambda block: others.of(neighbour_weights(block @ self.embeddings_[~held].T, self.k)),
            self.embeddings_[held],
            len(self.models_),
        )
        right = (g > self.threshold) == (self.score_[held] > self.threshold)
        return known_means(np.where(np.isnan(self.score_[held]), np.nan, right))

    def _distance(self, held: NDArray[np.bool_]) -> float:
        return self._descriptor(self.embeddings_[held], ~held)

    def _descriptor(self, vectors: Floats, among: NDArray[np.bool_]) -> float:
        """u: mean cosine distance of `vectors` to the κ nearest of the stored inputs `among`."""
        pool = self.embeddings_[among]
        nearest = in_blocks(
            lambda block: np.sort(1 - block @ pool.T, axis=1)[:, : self.kappa].mean(axis=1, keepdims=True),
            vectors,
            1,
        )
        return float(nearest.mean())

    def _smoothed(self, u: float) -> Floats:
        """p̂(d′, m): the benchmarks' reliabilities, weighted by a Gaussian kernel over u."""
        if not len(self.distance_):
            raise MethodError(f"{METHOD.id} scores tasks after learning from at least two benchmarks.")
        return _kernel_mean(u, self.distance_, self.reliability_, self._bandwidth())

    def _bandwidth(self) -> float:
        """The candidate with the least squared error of p̂(d, m) from the other benchmarks."""
        scale = float(self.distance_.std()) or 1.0
        everyone = np.arange(len(self.distance_))

        def error(width: float) -> float:
            guesses = [
                _kernel_mean(
                    self.distance_[d], self.distance_[everyone != d], self.reliability_[everyone != d], width
                )
                for d in everyone
            ]
            return float(np.nanmean((np.array(guesses) - self.reliability_) ** 2))

        return min((width * scale for width in BANDWIDTHS), key=error)

    def _guarded(self, s3: Floats, p: Floats, n: int) -> int:
        """Argmax S3 if its accuracy exceeds that of m0 with probability above η, both normal with the variance of a
        mean of n Bernoulli draws of chance p or 1 − p; else m0."""
        per_benchmark = [known_means(self.score_[self.benchmark_ == d]) for d in np.unique(self.benchmark_)]
        m0 = int(np.nanargmax(known_means(np.array(per_benchmark))))
        m3 = int(np.nanargmax(s3))
        spread = math.sqrt((p[m3] * (1 - p[m3]) + p[m0] * (1 - p[m0])) / n)
        lead = float(s3[m3] - s3[m0])
        chance = 0.5 * (1 + math.erf(lead / spread / math.sqrt(2))) if spread > 0 else float(lead > 0)
        return m3 if chance > self.eta else m0


def _kernel_mean(u: float, at: Floats, values: Floats, width: float) -> Floats:
    """Σ K((u − u_d)/h)·values_d / Σ K, over the benchmarks that know a value. Distances are taken from the nearest
    one, so that a task far from all still has weights."""
    squared = ((u - at) / width) ** 2
    weights = np.exp(-0.5 * (squared - squared.min()))
    return np.asarray(KnownMeans(values).of(weights[None])[0], dtype=np.float64)
