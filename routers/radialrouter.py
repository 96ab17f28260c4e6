"""RadialRouter: Structured Representation for Efficient and Robust LLM Routing. 2025. arXiv 2506.03880.

    r⁰ = W e(q),  s_i⁰ = e_i;  for t = 1..T:
        s_iᵗ = LN(ReLU(MHA(s_iᵗ⁻¹, [s_iᵗ⁻¹ ; e_i ; rᵗ⁻¹])));   rᵗ = LN(ReLU(MHA(rᵗ⁻¹, [rᵗ⁻¹ ; s₁ᵗ .. s_nᵗ])))
    p = softmax_i(MLP(s_iᵀ));   loss = KL(softmax((s − α·c)/τ) ‖ p) + λ·L_query

A small transformer in the shape of a star: the query is the hub, models with learnt vectors e_i are the satellites,
which see the hub and never each other. L_query pulls a query's hub towards one of its cluster and away from others
(RouterDC's sample-sample loss). Route to argmax p.

Needs: embeddings; an artefact; labels (and costs where α > 0).
Returns: quality = p, the chance of being the one to ask (rows sum to 1; not an expected score), shape (n_queries,
n_models), and each model's mean cost in US dollars.

Differs from the paper:
- The hub starts from the frozen embedding by a learnt projection, not from a fine-tuned mDeBERTa; L_query acts on it.
- τ is not known, T, λ and sizes are recalled with low confidence; ours are the best of 9 settings on an inner split of
  llmrouter's *training* queries. α = 0 by default (performance first; 0.02 and 0.1 are the paper's others, per US
  dollar): the policy weighs cost.
- A query on which all known scores are the same says nothing about whom to ask and is left out.

Laws: permuting models permutes p; a model left out is gone from hub and softmax alike; only e grows with their number;
T = 0 scores no query differently; with one-hot targets KL is cross entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes import autograd as ad
from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.attention import attend, attention_start, dense, dense_start, layer_norm
from outcomes.autograd import Tensor
from outcomes.groups import kmeans, nearest_group
from outcomes.learning_set import constant_costs, known_means, learning_set, query_vectors, require_fitted
from outcomes.neighbours import in_blocks
from outcomes.networks import softmax
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Weights = Mapping[str, Tensor]

METHOD = Method(
    id="radialrouter",
    title="RadialRouter: Structured Representation for Efficient and Robust LLM Routing",
    year=2025,
    paper="arXiv 2506.03880",
    taxonomy="a1",
    contract="router",
    implementation="RadialRouter",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "permuting satellites permutes scores, and a model left out is gone from hub and softmax alike",
            "tests/routers/test_radialrouter.py::test_satellites_are_a_set",
        ),
        Evidence(
            "exact equivalence",
            "T = 0 gives every query the same scores; one-hot targets make KL cross entropy; only e grows with n",
            "tests/routers/test_radialrouter.py::test_limits",
        ),
        Evidence(
            "invariant",
            "it learns who knows what, and α makes choices cheaper",
            "tests/routers/test_radialrouter.py::test_it_learns_who_knows_what",
        ),
    ),
    unverified="read from the abstract and summaries: update order, LN(ReLU(·)) and every constant are recalled; no "
    "public code; its RouterBench gains were not reproduced",
)


class RadialRouter:
    """A star of query and models. `price` α; `temperature` τ; `contrast` λ; `layers` T; `size` of the vectors, split
    over `heads`; `clusters` and `apart` (negatives a query) of L_query; `epochs`, `batch`, `rate`, `decay`, `seed`."""

    def __init__(
        self,
        *,
        price: float = 0.0,
        temperature: float = 1.0,
        contrast: float = 0.1,
        layers: int = 2,
        size: int = 32,
        heads: int = 4,
        clusters: int = 5,
        apart: int = 3,
        epochs: int = 10,
        batch: int = 64,
        rate: float = 2e-3,
        decay: float = 1.0,
        seed: int = 0,
    ) -> None:
        if size % heads:
            raise MethodError(f"{heads} heads cannot share {size} dimensions")
        self.price, self.temperature, self.contrast, self.layers = price, temperature, contrast, layers
        self.size, self.heads, self.clusters, self.apart = size, heads, clusters, apart
        self.epochs, self.batch, self.rate, self.decay, self.seed = epochs, batch, rate, decay, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the star. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        target = targets(learn.score, learn.cost_usd, self.price, self.temperature)
        telling = np.flatnonzero(np.nanmax(learn.score, axis=1) > np.nanmin(learn.score, axis=1))
        if not len(telling):
            raise MethodError(f"{METHOD.id} found no query on which the models differ.")
        vectors, target = learn.vectors[telling].astype(np.float32), target[telling].astype(np.float32)
        known = ~np.isnan(learn.score[telling])
        centres = kmeans(learn.vectors, self.clusters, seed=self.seed)
        labels = nearest_group(learn.vectors[telling], centres)
        rng = np.random.default_rng(self.seed)
        batches = [
            rows
            for _ in range(self.epochs)
            for rows in np.array_split(rng.permutation(len(vectors)), -(-len(vectors) // self.batch))
        ]

        def loss(w: Weights, step: int) -> Tensor:
            rows = batches[step]
            hub = dense(w, "hub", vectors[rows])
            logits = radiate(w, hub, self.layers, self.heads)
            found = divergence(target[rows], logits, known[rows])
            return found + self.contrast * in_cluster(hub, labels[rows], self.apart, rng)

        start = self._start(vectors.shape[1], len(learn.models))
        weights = ad.minimise(start, loss, steps=len(batches), rate=self.rate, decay=self.decay)
        weights["satellites"] = weights["satellites"][learn.columns]
        self._keep(learn.models, weights, learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Chances p. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, len(self.weights_["hub.weight"]), METHOD.id)
        quality = in_blocks(
            lambda block: np.asarray(softmax(self.scores(block)), np.float64), vectors, len(self.models_)
        )
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(vectors)))

    def scores(self, vectors: NDArray[np.floating[Any]]) -> Floats:
        """Logits of every model for embedded queries, shape (n_queries, n_models)."""
        hub = dense(self.weights_, "hub", vectors)
        return np.asarray(radiate(self.weights_, hub, self.layers, self.heads), dtype=np.float64)

    def without(self, name: str) -> Self:
        """The same router with a model less: no satellite, no part in the softmax. Raises `MethodError`."""
        require_fitted(self, METHOD.id)
        if name not in self.models_ or len(self.models_) == 1:
            raise MethodError(f"{METHOD.id} cannot leave out {name!r} of {', '.join(self.models_)}.")
        rows = [i for i, kept in enumerate(self.models_) if kept != name]
        smaller = copy(self)
        weights = {**self.weights_, "satellites": self.weights_["satellites"][rows]}
        smaller._keep(tuple(self.models_[i] for i in rows), weights, self.costs_[rows])  # noqa: SLF001 -- its own kind
        return smaller

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        parameters = {name: getattr(self, name) for name in NAMES}
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=parameters)
        save_artefact(folder, manifest, {**self.weights_, "cost_usd": self.costs_})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        dimensions = tensor(tensors, "hub.weight", (None, router.size)).shape[0]
        weights = ad.kept(tensors, router._start(dimensions, m))
        router._keep(manifest.models, weights, tensor(tensors, "cost_usd", (m,), finite=False))
        return router

    def _start(self, dimensions: int, models: int) -> dict[str, NDArray[Any]]:
        rng, d = np.random.default_rng(self.seed), self.size
        start = dense_start(rng, "hub", dimensions, d) | {"satellites": rng.normal(size=(models, d))}
        for t in range(self.layers):
            start |= attention_start(rng, f"satellite.{t}", d) | attention_start(rng, f"relay.{t}", d)
        return start | dense_start(rng, "score.0", d, d) | dense_start(rng, "score.1", d, 1)

    def _keep(self, models: tuple[str, ...], weights: dict[str, Floats], costs: Floats) -> None:
        self.models_, self.weights_, self.costs_ = models, weights, costs


NAMES = (
    "price", "temperature", "contrast", "layers", "size", "heads", "clusters", "apart", "epochs", "batch", "rate",
    "decay", "seed",
)  # fmt: skip


def radiate(w: Weights, hub: Tensor, layers: int, heads: int) -> Tensor:
    """Scores of the models, shape (n, n_models), for hubs (n, size)."""
    n, d = hub.shape
    m = w["satellites"].shape[0]
    own = w["satellites"] + np.zeros((n, 1, 1), dtype=np.float32)
    states, relay = own, hub.reshape(n, 1, d)
    for t in range(layers):
        # A satellite's context is its own: itself, its vector, the hub. So there are n·m contexts of three.
        context = ad.stack([states, own, relay], axis=2).reshape(n * m, 3, d)
        heard = attend(w, f"satellite.{t}", states.reshape(n * m, 1, d), context, heads)
        states = layer_norm(w, f"satellite.{t}.norm", ad.relu(heard)).reshape(n, m, d)
        heard = attend(w, f"relay.{t}", relay, ad.concat([relay, states], axis=1), heads)
        relay = layer_norm(w, f"relay.{t}.norm", ad.relu(heard))
    return dense(w, "score.1", ad.relu(dense(w, "score.0", states))).reshape(n, m)


def targets(score: Floats, cost_usd: Floats, price: float, temperature: float) -> Floats:
    """Distribution softmax((s − α·c)/τ) over the models of known score; an unknown cost is a mean."""
    cost = np.where(np.isnan(cost_usd), known_means(cost_usd), cost_usd) if price else np.zeros_like(score)
    worth = score - price * np.nan_to_num(cost)
    return np.asarray(softmax(np.where(np.isnan(score), -np.inf, worth / temperature)), dtype=np.float64)


def divergence(target: Any, logits: Tensor, known: NDArray[np.bool_]) -> Tensor:
    """KL(target ‖ softmax(logits)) up to the target's own entropy, over the models that are `known`; mean over rows."""
    logits = logits + np.where(known, np.float32(0), np.float32(-1e9))
    return ad.total(ad.log_softmax(logits) * target) * (-1 / len(target))


def in_cluster(hub: Tensor, labels: NDArray[np.intp], apart: int, rng: np.random.Generator) -> Tensor:
    """Each query's hub against one other of its cluster and `apart` of other clusters, all of the batch: −log softmax
    of the cosines, mean over the queries that have both."""
    direction = hub / ad.sqrt(ad.total(hub * hub, 1, keepdims=True) + 1e-12)
    draw = rng.random((len(labels), len(labels)))
    alike = labels[:, None] == labels
    np.fill_diagonal(draw, -1)
    same, other = np.where(alike, draw, -1.0), np.where(alike, -1.0, draw)
    # The largest draws among those allowed are a uniform choice without putting back.
    picked = np.concatenate([same.argmax(axis=1)[:, None], np.argsort(-other, axis=1)[:, :apart]], axis=1)
    rows = np.flatnonzero((alike.sum(axis=1) > 1) & ((~alike).sum(axis=1) >= apart))
    if not len(rows):
        return ad.total(hub * 0)
    cosine = direction @ direction.swapaxes(0, 1)
    return -ad.mean(ad.log_softmax(cosine[rows[:, None], picked[rows]])[:, 0])
