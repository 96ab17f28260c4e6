"""InferenceDynamics: Efficient Routing Across LLMs through Structured Capability and Knowledge Profiling. Shi et al.,
2025. arXiv 2505.16303.

    S(M_t, x_i, e_j) = (s_i^t − β·c_i^t)·α^(j−1) / Σ_{l=1..|list|} α^(l−1)
    P(M_t, e) = mean of S over the index queries that contain e
    route to argmax_t Σ_{e ∈ K_x} P(M_t, e) + Σ_{e ∈ C_x} P(M_t, e)

A query has a ranked list of knowledge areas K_x and one of capabilities C_x; e_j is the element in place j. `s` is
`Outcomes.score`, `c` is `Outcomes.cost_usd` over the mean cost of the dearest model.

Needs: embeddings; an artefact (element centres, profile); labels, and categories for the knowledge areas.
Returns: quality = the summed profile values over the number of elements, cut to [0, 1]; each model's mean cost in US
dollars, shape (n_queries, n_models). Profile values carry the rank weights, so quality is an order, not an accuracy.

Differs from the paper:
- A language model names the elements there. Here knowledge areas are the table's categories and capabilities are
  clusters, ranked by the cosine of the query with the element's centre, the `top` nearest: no call before the
  call. An index query's own category is its first knowledge area.
- `support` pseudo-queries of the overall mean shrink rare elements; 0 is the formula.
- How unseen knowledge strings are mapped is unknown; here every query has elements.

Laws: α = 0 uses the first element only, α = 1 weighs all alike; a query's weights sum to 1; with one universal
element it is the best single model of s − βc.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.groups import category_centres, group_means, kmeans
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Places = NDArray[np.intp]

METHOD = Method(
    id="inferencedynamics",
    title="InferenceDynamics: Efficient Routing Across LLMs through Structured Capability and Knowledge Profiling",
    year=2025,
    paper="arXiv 2505.16303",
    taxonomy="a1",
    contract="router",
    implementation="InferenceDynamics",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "α = 0 uses the first element only, α = 1 all alike; the weights of a query sum to 1",
            "tests/routers/test_inferencedynamics.py::test_rank_weights",
        ),
        Evidence(
            "exact equivalence",
            "one universal element routes to the best single model of s − βc",
            "tests/routers/test_inferencedynamics.py::test_universal_element_is_best_single",
        ),
        Evidence(
            "exact equivalence",
            "the profile equals the formula worked out query by query",
            "tests/routers/test_inferencedynamics.py::test_profile_is_the_formula",
        ),
    ),
    unverified="steps and headline are from a summary; α, β, the capability set and the fallback are unknown; "
    "categories and clusters stand in for an LLM's tags",
)


class InferenceDynamics:
    """Profiles of models over knowledge areas and capabilities. `alpha` α of places, `beta` β of cost; `top`
    elements of each kind a query has; `capabilities`: clusters; `support`: shrinkage; `seed` of the clusters."""

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        beta: float = 0.0,
        top: int = 3,
        capabilities: int = 16,
        support: float = 5.0,
        seed: int = 0,
    ) -> None:
        self.alpha, self.beta, self.top = alpha, beta, top
        self.capabilities, self.support, self.seed = capabilities, support, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Name the elements of the index queries and average the refined scores. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        names, knowledge = category_centres(learn.vectors, learn.categories)
        capability = kmeans(learn.vectors, min(self.capabilities, max(1, len(learn) // 20)), seed=self.seed)
        own = np.searchsorted(np.array(names), np.array(learn.categories))
        costs = learn.model_costs()
        dearest = float(np.nanmax(costs)) if np.isfinite(costs).any() else 1.0
        value = learn.score
        if self.beta:
            value = value - self.beta * learn.cost_usd / dearest
        profiles = [
            self.profile(places(learn.vectors, knowledge, self.top, own), value, len(knowledge)),
            self.profile(places(learn.vectors, capability, self.top), value, len(capability)),
        ]
        listed = learn.listed(np.concatenate(profiles))
        self._keep(learn.models, knowledge, capability, listed, costs)
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Summed profile of every query's elements. Raises `MethodError` before `fit`, and for embeddings of another
        size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.knowledge_.shape[1], METHOD.id)
        areas, skills = len(self.knowledge_), len(self.capability_)
        found = places(vectors, self.knowledge_, self.top)
        also = places(vectors, self.capability_, self.top) + areas
        elements = np.concatenate([found, also], axis=1)
        quality = self.profile_[elements].sum(axis=1) / (min(self.top, areas) + min(self.top, skills))
        return Estimate(self.models_, np.clip(quality, 0.0, 1.0), constant_costs(self.costs_, len(vectors)))

    def profile(self, elements: Places, value: Floats, count: int) -> Floats:
        """P of every element, shape (count, n_models): `elements` are each index query's, in order of rank."""
        weights = rank_weights(elements.shape[1], self.alpha)
        contains = np.zeros((len(elements), count))
        scale = np.zeros((len(elements), count))
        np.put_along_axis(contains, elements, 1.0, axis=1)
        np.put_along_axis(scale, elements, np.broadcast_to(weights, elements.shape), axis=1)
        # mean of value·weight over the queries that contain e; the weight differs by query, so it is not group_means
        # of the values alone.
        known = ~np.isnan(value)
        refined = scale.T @ np.where(known, value, 0.0)
        counts = contains.T @ known
        typical = (scale.T @ known) / np.maximum(counts, 1e-300)
        overall = group_means(np.ones((len(value), 1)), value)[0] * np.where(
            counts > 0, typical, weights.mean()
        )
        pulled = refined + self.support * overall
        total = counts + self.support
        return np.asarray(np.where(total > 0, pulled / np.maximum(total, 1e-300), overall), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("alpha", "beta", "top", "capabilities", "support", "seed")
        parameters = {name: getattr(self, name) for name in names}
        tensors = {
            "knowledge": self.knowledge_,
            "capability": self.capability_,
            "profile": self.profile_,
            "cost_usd": self.costs_,
        }
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        knowledge = tensor(tensors, "knowledge", (None, None))
        capability = tensor(tensors, "capability", (None, knowledge.shape[1]))
        profile = tensor(tensors, "profile", (len(knowledge) + len(capability), m))
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, knowledge, capability, profile, costs)
        return router

    def _keep(
        self, models: tuple[str, ...], knowledge: Floats, capability: Floats, profile: Floats, costs: Floats
    ) -> None:
        self.models_, self.knowledge_, self.capability_ = models, knowledge, capability
        self.profile_, self.costs_ = profile, costs


def rank_weights(count: int, alpha: float) -> Floats:
    """α^(j−1) / Σ α^(l−1) for places j = 1..count; 0⁰ is 1."""
    powers = np.power(alpha, np.arange(count))
    return np.asarray(powers / powers.sum(), dtype=np.float64)


def places(vectors: Floats, centres: Floats, top: int, first: Places | None = None) -> Places:
    """The `top` nearest elements of every query in order, shape (n, min(top, n_elements)); `first`: the one known to
    come first."""
    closeness = np.round(vectors @ centres.T, 9)
    if first is not None:
        closeness[np.arange(len(vectors)), first] = np.inf
    return np.argsort(-closeness, axis=1, kind="stable")[:, : min(top, len(centres))]
