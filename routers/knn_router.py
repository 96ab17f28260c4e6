"""Rethinking Predictive LLM Routing: When Simple kNN Beats Complex Learned Routers. Li, 2025. arXiv
2505.12601.

    ŝ(q, m) = mean of s(x_j, m) over the k nearest training queries by cosine;  ĉ(q, m) likewise

`s` is `Outcomes.score`, `c` is `Outcomes.cost_usd`. Two protocols of the paper:

- *utility prediction* (default): `Estimate.quality` is ŝ; a policy chooses argmax_m ŝ − λ·ĉ and may sweep λ;
- *selection policy* (`protocol="selection"`): for a fixed λ (`lam`) each training query is labelled with
  its utility-best model, and `Estimate.quality` is each model's share of the neighbours' labels, so that
  argmax is the majority label.

Needs: an embedding of the query and the artefact (embeddings, scores and costs of the training queries; no
texts). Returns: quality in [0, 1] and cost in US dollars, shape (n_queries, n_models).

Differs from the paper:
- k, if not given, is the candidate with the best mean realised score in cross-validation over folds by text
  hash (so that copies of a question are never each other's neighbours); of equal ones the largest, because
  small k is much worse.
- Training queries tied at the k-th distance share the places left, so that neither the order of the rows
  nor rounding decides, and queries labelled with several equally good models give each an equal part of
  their vote: row and column order never favour the first-listed model (as in LLMRouter's `knnrouter`).
- A query where a model has no outcome does not count for that model.
- Beyond some thousands of training queries the search is approximate (`outcomes.index`; recall is measured there).

Laws: k = n_train is the best single model on the training queries; k = 1 at a training query gives its own
scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from outcomes.artefact import Manifest, load_artefact, save_artefact, tensor
from outcomes.index import NeighbourIndex
from outcomes.neighbours import BLOCK, TIE, KnownMeans, in_blocks, neighbour_weights
from outcomes.table import hash_folds, query_id
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="knn-router",
    title="Rethinking Predictive LLM Routing: When Simple kNN Beats Complex Learned Routers",
    year=2025,
    paper="arXiv 2505.12601",
    taxonomy="a1",
    contract="router",
    implementation="KnnRouter",
    needs=frozenset({"embedding", "artefact", "labels"}),
    aliases=("knn",),
    evidence=(
        Evidence(
            "exact equivalence",
            "k = n_train chooses the best single model on the training queries",
            "tests/routers/test_knn_router.py::test_all_neighbours_is_best_single",
        ),
        Evidence(
            "exact equivalence",
            "k = 1 with the query in the index reproduces its own label",
            "tests/routers/test_knn_router.py::test_one_neighbour_reproduces_its_label",
        ),
        Evidence(
            "reproduced figure",
            "RouterDC's seven models: macro average ≥ 58 in distribution at k = 100 on TF-IDF features",
            "tests/routers/test_knn_router.py::test_routerdc_figure",
        ),
        Evidence(
            "invariant",
            "rank correlation of two queries' score vectors falls as their embeddings move apart",
            "tests/routers/test_knn_router.py::test_scores_are_local",
        ),
    ),
    unverified="the grids of k and λ and the headline tables are recalled; the paper's code is not public",
)

CANDIDATES = (1, 5, 10, 20, 40, 70, 100, 150, 200)
FOLDS = 5
TOLD = 10
"""Neighbours that are told of, at most."""


class KnnRouter:
    """k-nearest-neighbour lookup over frozen query embeddings.

    `k`: neighbours, or None to tune it in `fit`; more than there are means all. `lam`: λ of the labels of
    the selection protocol, quality a US dollar is worth.
    """

    def __init__(
        self,
        k: int | None = None,
        *,
        protocol: Literal["utility", "selection"] = "utility",
        lam: float = 0.0,
        candidates: Sequence[int] = CANDIDATES,
    ) -> None:
        self.k = k
        self.protocol = protocol
        self.lam = lam
        self.candidates = tuple(candidates)

    def fit(self, outcomes: Outcomes) -> Self:
        """Store the training queries; tune k when it was not given. Raises `MethodError` without
        embeddings."""
        vectors = outcomes.queries.embeddings
        if vectors is None or not len(vectors):
            raise MethodError("knn-router learns from queries with embeddings; there are none.")
        score, cost = np.array(outcomes.score), np.array(outcomes.cost_usd)
        value = score if self.protocol == "utility" else _label_shares(score, cost, self.lam)
        self._keep(tuple(outcomes.models), np.array(vectors, dtype=np.float32), value, cost)
        self.ids_ = np.array([int(query_id(text), 16) for text in outcomes.queries.texts], dtype=np.uint64)
        self.k_ = self.k if self.k is not None else self._tune(outcomes)
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Estimates for embedded queries. Raises `MethodError` before `fit`, and for embeddings of another
        size."""
        if not hasattr(self, "k_"):
            raise MethodError("This knn-router is not fitted; call fit or load an artefact.")
        vectors = queries.embeddings
        if vectors is None or vectors.ndim != 2 or vectors.shape[1] != self.embeddings_.shape[1]:
            found = "none" if vectors is None else f"shape {vectors.shape}"
            raise MethodError(
                f"knn-router needs embeddings of {self.embeddings_.shape[1]} dimensions; got {found}."
            )
        means = in_blocks(self._means, vectors, 2 * len(self.models_))
        quality, cost = np.split(means, 2, axis=1)
        return Estimate(self.models_, quality, cost)

    def reasons(self, queries: Queries) -> dict[str, Any]:
        """The nearest of the neighbours that the estimate of one query is the mean of, nearest first: `id` is the one
        that its query has in the outcome table (`outcomes.table.query_id`), where the artefact knows it."""
        vectors = queries.embeddings
        assert vectors is not None
        rows, cosine = self.index_.near(vectors[0], self.k_)
        order = np.argsort(-cosine, kind="stable")[: min(self.k_, TOLD)]
        told = [
            {
                "id": f"{int(self.ids_[row]):016x}" if len(self.ids_) else str(row),
                "similarity": round(similarity, 4),
                "scores": {
                    name: round(value, 4)
                    for name, value in zip(self.models_, self.value_[row].tolist(), strict=True)
                    if value == value
                },
            }
            for row, similarity in zip(rows[order].tolist(), cosine[order].tolist(), strict=True)
        ]
        return {"k": self.k_, "neighbours": told}

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        parameters = {"k": self.k_, "protocol": self.protocol, "lam": self.lam}
        tensors: dict[str, NDArray[Any]] = {
            "embeddings": self.embeddings_,
            "value": self.value_,
            "cost_usd": self.cost_usd_,
            **({"ids": self.ids_} if len(self.ids_) else {}),
        }
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        vectors = tensor(tensors, "embeddings", (None, None))
        shape = (len(vectors), len(manifest.models))
        value, cost = (tensor(tensors, name, shape, finite=False) for name in ("value", "cost_usd"))
        parameters = dict(manifest.parameters)
        k, protocol = parameters.get("k"), parameters.get("protocol")
        if not isinstance(k, int) or k < 1 or protocol not in ("utility", "selection") or not len(vectors):
            raise MethodError(
                f"{folder} is not a knn-router: k {k!r}, protocol {protocol!r}, {len(vectors)} queries."
            )
        router = cls(k, protocol=protocol, lam=float(parameters.get("lam", 0.0)))
        router._keep(manifest.models, vectors, value, cost)
        if "ids" in tensors:  # artefacts of before know none
            router.ids_ = tensor(tensors, "ids", (len(vectors),), finite=False)
        router.k_ = k
        return router

    def _keep(
        self, models: tuple[str, ...], vectors: NDArray[np.float32], value: Floats, cost: Floats
    ) -> None:
        self.models_, self.embeddings_, self.value_, self.cost_usd_ = models, vectors, value, cost
        self._known = KnownMeans(np.concatenate([value, cost], axis=1))
        self.index_ = NeighbourIndex(vectors)
        self.ids_ = np.empty(0, dtype=np.uint64)

    def _means(self, vectors: NDArray[np.float32], k: int | None = None) -> Floats:
        """Neighbours' mean quality, then cost, of every model: shape (n, 2·n_models). Where no neighbour
        knows a quantity, its mean over all training queries."""
        if k is None and not self.index_.exact:
            return np.concatenate([self._nearby(vector) for vector in vectors])
        return self._known.of(neighbour_weights(vectors @ self.embeddings_.T, self.k_ if k is None else k))

    def _nearby(self, vector: NDArray[np.float32]) -> Floats:
        """The same for one query, from the stored queries that the index finds, shape (1, 2·n_models)."""
        rows, cosine = self.index_.near(vector, self.k_)
        if self.k_ < len(rows):
            # Of these only the nearest weigh anything, and whoever is tied with the last of them.
            least = np.partition(cosine, len(cosine) - self.k_)[len(cosine) - self.k_]
            close = cosine >= least - TIE
            rows, cosine = rows[close], cosine[close]
        return self._known.of(neighbour_weights(cosine[None], self.k_), rows)

    def _tune(self, outcomes: Outcomes) -> int:
        """The candidate k whose choices score best on held-out folds of the training queries."""
        texts, score = outcomes.queries.texts, np.array(outcomes.score)
        order = np.arange(len(texts))
        fold = hash_folds(texts, FOLDS, "knn-router fold")
        ks = sorted({min(k, len(texts)) for k in self.candidates}, reverse=True)
        realised = dict.fromkeys(ks, 0.0)
        for i in range(FOLDS):
            held, rest = order[fold == i], order[fold != i]
            if not len(held) or not len(rest):
                continue
            part = KnnRouter(1, protocol=self.protocol, lam=self.lam)
            part._keep(self.models_, self.embeddings_[rest], self.value_[rest], self.cost_usd_[rest])
            for start in range(0, len(held), BLOCK):
                block = held[start : start + BLOCK]
                for k in ks:
                    quality = part._means(self.embeddings_[block], k)[:, : len(self.models_)]
                    realised[k] += _expected_score(quality, score[block])
        return max(ks, key=lambda k: round(realised[k], 6))


def _label_shares(score: Floats, cost: Floats, lam: float) -> Floats:
    """One vote a training query, shared equally by its utility-best models; NaN where a model has no
    outcome."""
    utility = score - lam * cost if lam else score
    known = ~np.isnan(utility)
    filled = np.where(known, utility, -np.inf)
    best = known & (filled >= filled.max(axis=1, keepdims=True) - TIE)
    shares = best / np.maximum(best.sum(axis=1, keepdims=True), 1)
    return np.where(known, shares, np.nan)


def _expected_score(quality: Floats, score: Floats) -> float:
    """Summed score of the model of highest quality for each query; of equal ones, their mean."""
    filled = np.where(np.isnan(quality), -np.inf, quality)
    best = (filled >= filled.max(axis=1, keepdims=True) - TIE) & ~np.isnan(score)
    picked = np.where(best, score, 0.0).sum(axis=1) / np.maximum(best.sum(axis=1), 1)
    return float(picked.sum())
