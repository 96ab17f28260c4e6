"""Harnessing the Power of Multiple Minds: Lessons Learned from LLM Routing. Srivatsa, Maurya, Kochmar, 2024.
arXiv 2405.00467.

    clusters:    c(q) = nearest k-means centre of TF-IDF(q);  accuracy(m, c) = mean of y(x, m) over x of cluster c
                 members(q) = {m: accuracy(m, c) ≥ TH}, or the best one if there is none
    classifier:  confidence(q, m) = σ(encoder(q)_m), trained by binary cross entropy;  members(q) = {m: confidence ≥ TH}

The paper is largely a negative result: routing beats random and saves time, but not the best single model. `y` is
`Outcomes.score`. `router="clusters"` (default) or `"classifier"`, the multi-label one. `members` gives the set whose
samples the paper puts to the vote; `estimate` the accuracies or confidences, whose argmax is the cluster's best model
or the paper's ArgMax policy; `cautious_choice` is its Random policy.

Needs: the text of the query and an artefact (vocabulary, centres, accuracies; or encoder and head); labels, torch to
train the classifier. No embedder.
Returns: quality = accuracy in the query's cluster, or confidence, in [0, 1], and each model's mean cost in US
dollars, shape (n_queries, n_models).

Differs from the paper:
- Words instead of the LLM tokenizer's pieces; TF-IDF and k-means see the training queries only (there: test
  queries too).
- K is at most a twentieth of the training queries. A text without any known word goes to the cluster nearest
  to nothing, the one with the shortest centre.
- The classifier starts from all-MiniLM-L6-v2 with mean pooling (any BERT folder works), not RoBERTa-base; its variant
  with weighted labels is not here. ArgMax always answers (there: counts as wrong when no label is predicted).
- The policies Prediction and Sorted-prediction are not here: the one is argmax in disguise, the other mixes up two
  orders of the models (see its card).

Laws: K = 1 returns the best single model; TH = 0 returns all, TH above 1 the best one only; the Random policy is
ArgMax wherever a confidence is above 0.6, and one of the three surest elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.encoder import TrainedEncoder
from outcomes.encoder_artefact import load_encoder, save_encoder
from outcomes.encoder_losses import multi_label
from outcomes.encoder_training import EncoderTraining
from outcomes.groups import group_means, kmeans, membership, nearest_group
from outcomes.learning_set import constant_costs, learning_set, require_fitted
from outcomes.networks import sigmoid
from outcomes.word_features import WordFeatures
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="multiple-minds",
    title="Harnessing the Power of Multiple Minds: Lessons Learned from LLM Routing",
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
        Evidence(
            "invariant",
            "the classifier keeps the router contract and learns who can from words; policies agree where it is sure",
            "tests/routers/test_multiple_minds.py::test_the_classifier_learns_who_can",
        ),
    ),
    unverified="the paper's figures were not reproduced: its prediction tables are not public",
)


@dataclass(kw_only=True, eq=False)
class MultipleMinds(EncoderTraining):
    """Word clusters, each with its accuracies, or a multi-label classifier. `clusters` K; `threshold` TH of `members`;
    `min_df`, `max_df` of the words that count; `seed` of k-means or of the training."""

    router: Literal["clusters", "classifier"] = "clusters"
    clusters: int = 50
    threshold: float = 0.5
    min_df: float = 0.05
    max_df: float = 0.95
    seed: int = 10

    @property
    def slow(self) -> bool:
        """Whether an encoder reads every query (`protocol.routing.Slow`): counting words is no work."""
        return self.router == "classifier"

    def fit(self, outcomes: Outcomes) -> Self:
        """Cluster the training texts and measure accuracies, or train the classifier. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        self.models_, self.costs_ = learn.models, learn.model_costs()
        if self.router == "classifier":
            found = self.train(
                self.starting_encoder(),
                learn.texts,
                len(learn.models),
                lambda rows, out, _: multi_label(learn.score[rows], out),
            )
            self.learnt_: _Clusters | TrainedEncoder = found.with_outputs(learn.columns)
            return self
        words = WordFeatures.of(learn.texts, min_df=self.min_df, max_df=self.max_df)
        vectors = words(learn.texts)
        centres = kmeans(vectors, min(self.clusters, max(1, len(learn) // 20)), seed=self.seed)
        members = membership(nearest_group(vectors, centres), len(centres))
        self.learnt_ = _Clusters(words, centres, learn.listed(group_means(members, learn.score)))
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Accuracies in every query's cluster, or confidences. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        found = self.learnt_(queries.texts)
        quality = sigmoid(found) if self.router == "classifier" else found
        return Estimate(
            self.models_, np.asarray(quality, dtype=np.float64), constant_costs(self.costs_, len(queries))
        )

    def members(self, queries: Queries) -> NDArray[np.bool_]:
        """Who answers together, shape (n_queries, n_models), at least one a query."""
        accuracy = self.estimate(queries).quality
        enough = accuracy >= self.threshold
        best = accuracy >= accuracy.max(axis=1, keepdims=True)
        return np.asarray(np.where(enough.any(axis=1, keepdims=True), enough, best), dtype=np.bool_)

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        if isinstance(self.learnt_, TrainedEncoder):
            save_encoder(folder, manifest, self.learnt_, self.costs_)
            return
        parameters = {**manifest.parameters, "idf": dict(self.learnt_.words.idf)}
        own = {"centres": self.learnt_.centres, "accuracy": self.learnt_.accuracy, "cost_usd": self.costs_}
        save_artefact(folder, replace(manifest, parameters=parameters), own)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        models = manifest.models
        if manifest.parameters.get("router") == "classifier":
            kept = load_encoder(folder, METHOD.id)
            router = cls(**arguments(cls, kept.manifest))
            router.models_, router.costs_, router.learnt_ = models, kept.costs, kept.trained(len(models))
            return router
        parameters = dict(manifest.parameters)
        idf = parameters.pop("idf", None)
        if not isinstance(idf, dict) or not all(isinstance(value, float) for value in idf.values()):
            raise MethodError(f"{folder} has no vocabulary.")
        router = cls(**arguments(cls, replace(manifest, parameters=parameters)))
        centres = tensor(tensors, "centres", (None, len(idf)))
        accuracy = tensor(tensors, "accuracy", (len(centres), len(models)))
        router.models_, router.learnt_ = models, _Clusters(WordFeatures(idf), centres, accuracy)
        router.costs_ = tensor(tensors, "cost_usd", (len(models),), finite=False)
        return router


@dataclass(frozen=True, slots=True, eq=False)
class _Clusters:
    """Centres in the space of `words`, shape (n_clusters, n_words), and every model's `accuracy` in each."""

    words: WordFeatures
    centres: Floats
    accuracy: Floats

    def __call__(self, texts: Sequence[str]) -> Floats:
        return self.accuracy[nearest_group(self.words(texts), self.centres)]


def cautious_choice(confidence: Floats, *, seed: int = 0, sure: float = 0.6) -> NDArray[np.intp]:
    """The paper's Random policy over `confidence` (n_queries, n_models): the surest model where it is surer than
    `sure`, elsewhere one of the three surest at random. Shape (n_queries,)."""
    order = np.argsort(-confidence, axis=1, kind="stable")[:, :3]
    drawn = np.random.default_rng(seed).integers(0, order.shape[1], len(order))
    pick = np.where(confidence.max(axis=1) > sure, 0, drawn)
    return np.asarray(order[np.arange(len(order)), pick], dtype=np.intp)
