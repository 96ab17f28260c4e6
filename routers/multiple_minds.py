"""Harnessing the Power of Multiple Minds: Lessons Learned from LLM Routing. Srivatsa, Maurya, Kochmar, 2024.
arXiv 2405.00467.

    c(q) = nearest k-means centre of TF-IDF(q);  accuracy(m, c) = mean of y(x, m) over training queries x of cluster c
    members(q) = {m: accuracy(m, c) ≥ TH}, or the best one if there is none

The clustering router of the paper, which is largely a negative result: routing beats random and saves time,
but not the best single model. `y` is `Outcomes.score`. `members` gives the set whose samples the paper puts to
the vote; `estimate` the accuracies, whose argmax is the cluster's best model.

Needs: the text of the query and an artefact (vocabulary, centres, accuracies); labels. No embedder.
Returns: quality = accuracy in the query's cluster, in [0, 1], and each model's mean cost in US dollars, shape
(n_queries, n_models).

Differs from the paper:
- Words instead of the LLM tokenizer's pieces; TF-IDF and k-means see the training queries only (there: test
  queries too).
- K is at most a twentieth of the training queries. A text without any known word goes to the cluster nearest
  to nothing, the one with the shortest centre.
- The multi-label classifier and its policies are not here: two of its three policies are argmax in disguise or mix up
  indices (see its card), and it needs a fine-tuned encoder.

Laws: K = 1 returns the best single model; TH = 0 returns all, TH above 1 the best one only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.groups import group_means, kmeans, membership
from outcomes.learning_set import constant_costs, learning_set, require_fitted
from outcomes.word_features import WordFeatures
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="multiple-minds",
    title="Harnessing the Power of Multiple Minds: Lessons Learned from LLM Routing (clustering router)",
    year=2024,
    paper="arXiv 2405.00467",
    taxonomy="a1",
    contract="router",
    implementation="MultipleMinds",
    needs=frozenset({"text", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "K = 1 is the best single model; TH = 0 keeps all members, TH above 1 the best",
            "tests/routers/test_multiple_minds.py::test_limits",
        ),
        Evidence(
            "invariant",
            "the paper's ordering on a recorded table: oracle far above best single, clusters above random",
            "tests/routers/test_multiple_minds.py::test_the_papers_ordering",
        ),
    ),
    unverified="the multi-label classifier half of the paper is not built; its prediction tables are not public",
)


class MultipleMinds:
    """Word clusters, each with its accuracies. `clusters` K; `threshold` TH of `members`; `seed` of k-means."""

    def __init__(
        self,
        *,
        clusters: int = 50,
        threshold: float = 0.5,
        min_df: float = 0.05,
        max_df: float = 0.95,
        seed: int = 10,
    ) -> None:
        self.clusters, self.threshold, self.seed = clusters, threshold, seed
        self.min_df, self.max_df = min_df, max_df

    def fit(self, outcomes: Outcomes) -> Self:
        """Cluster the training texts and measure accuracies. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        words = WordFeatures.of(learn.texts, min_df=self.min_df, max_df=self.max_df)
        vectors = words(learn.texts)
        k = min(self.clusters, max(1, len(learn) // 20))
        centres = kmeans(vectors, k, seed=self.seed)
        members = membership(_nearest(vectors, centres), len(centres))
        accuracy = learn.listed(group_means(members, learn.score))
        self._keep(learn.models, words, centres, accuracy, learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Accuracies in every query's cluster. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        quality = self.accuracy_[_nearest(self.words_(queries.texts), self.centres_)]
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def members(self, queries: Queries) -> NDArray[np.bool_]:
        """Who answers together, shape (n_queries, n_models), at least one a query."""
        accuracy = self.estimate(queries).quality
        enough = accuracy >= self.threshold
        best = accuracy >= accuracy.max(axis=1, keepdims=True)
        return np.asarray(np.where(enough.any(axis=1, keepdims=True), enough, best), dtype=np.bool_)

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("clusters", "threshold", "min_df", "max_df", "seed")
        parameters = {name: getattr(self, name) for name in names} | {"idf": dict(self.words_.idf)}
        tensors = {"centres": self.centres_, "accuracy": self.accuracy_, "cost_usd": self.costs_}
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        parameters = dict(manifest.parameters)
        idf = parameters.pop("idf", None)
        if not isinstance(idf, dict) or not all(isinstance(value, float) for value in idf.values()):
            raise MethodError(f"{folder} has no vocabulary.")
        bare = Manifest(method=manifest.method, models=manifest.models, parameters=parameters)
        router, m = cls(**arguments(cls, bare)), len(manifest.models)
        centres = tensor(tensors, "centres", (None, len(idf)))
        accuracy = tensor(tensors, "accuracy", (len(centres), m))
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, WordFeatures(idf), centres, accuracy, costs)
        return router

    def _keep(
        self, models: tuple[str, ...], words: WordFeatures, centres: Floats, accuracy: Floats, costs: Floats
    ) -> None:
        self.models_, self.words_, self.centres_ = models, words, centres
        self.accuracy_, self.costs_ = accuracy, costs


def _nearest(vectors: Floats, centres: Floats) -> NDArray[np.intp]:
    """The nearest centre by Euclidean distance; of those equally near up to rounding, the first."""
    distance = (centres**2).sum(axis=1) - 2 * vectors @ centres.T
    return np.asarray(np.round(distance, 9).argmin(axis=1), dtype=np.intp)
