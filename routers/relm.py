"""RELM: Co-optimizing Recommendation and Evaluation for LLM Selection. 2025. OpenReview gWi4ZcPQRl.

    h = ReLU(W e(q) + b);  V = σ(⟨h, g_m⟩);  π = softmax_m(⟨h, r_m⟩)
    evaluator: Σ_m w_m·BCE(V_m, s_m),  w = 1 − φ + φ·M·π;   recommender: −Σ_m π_m·V_m − η·H(π), V held fixed

A reconstruction from the paper's title: no text of it could be reached. A recommender π and an evaluator V share a
query encoder and are trained together, so that each improves the other: the recommender is paid what the evaluator
believes, the evaluator is most accurate where the recommender looks (w, whose mean over models is 1).

Needs: embeddings; an artefact; labels.
Returns: quality = V, or π with `recommend=True` (rows sum to 1), shape (n_queries, n_models), in [0, 1], and each
model's mean cost in US dollars.

Differs from the paper:
- Unknown. The split into π and V, both losses and every constant are ours.

Laws: with φ = 0 and the recommender's weight 0 the evaluator is plain regression of scores; paid the true scores, the
recommender finds the best model of every training query; its fixed point is softmax(V/η).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.network_router import NetworkRouter
from outcomes.networks import sigmoid, softmax
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Array = NDArray[np.floating[Any]]

METHOD = Method(
    id="relm",
    title="RELM: Co-optimizing Recommendation and Evaluation for LLM Selection",
    year=2025,
    paper="OpenReview gWi4ZcPQRl",
    taxonomy="a1",
    contract="router",
    implementation="Relm",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "without the recommender the evaluator is plain regression of scores, weight for weight",
            "tests/routers/test_relm.py::test_the_evaluator_alone_is_plain_regression",
        ),
        Evidence(
            "exact equivalence",
            "both gradients are derivatives of the losses above (central differences)",
            "tests/routers/test_relm.py::test_gradients_are_derivatives",
        ),
        Evidence(
            "invariant",
            "paid the true scores, the recommender finds the oracle's choice on its training queries",
            "tests/routers/test_relm.py::test_a_recommender_paid_the_truth_finds_the_oracle",
        ),
    ),
    unverified="the whole method: a reconstruction from the title, no text of the paper could be reached; it claims "
    "nothing about the paper's results",
)


@dataclass(kw_only=True, eq=False)
class Relm(NetworkRouter):
    """Evaluator and recommender on one encoder. `focus` φ; `entropy` η; `weight` of the recommender's loss;
    `recommend`: estimate by π."""

    method = METHOD.id
    heads = 2

    focus: float = 0.5
    entropy: float = 0.1
    weight: float = 1.0
    recommend: bool = False

    def fit(self, outcomes: Outcomes) -> Self:
        """Train both heads. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        m = len(learn.models)

        def gradient(rows: NDArray[np.intp], out: Array) -> Array:
            value, policy = sigmoid(out[:, :m]), softmax(out[:, m:])
            evaluated = evaluator_slope(value, learn.score[rows], policy, self.focus)
            recommended = self.weight * recommender_slope(policy, value, self.entropy)
            return np.concatenate([evaluated, recommended], axis=1)

        network = self.trained(learn.vectors, 2 * m, gradient)
        listed = network.with_outputs(np.concatenate([learn.columns, m + learn.columns]))
        self._keep(learn.models, listed, learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """V, or π, of every query. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        out = self.network_(query_vectors(queries, self.network_.inputs, METHOD.id))
        m = len(self.models_)
        quality = softmax(out[:, m:]) if self.recommend else sigmoid(out[:, :m])
        costs = constant_costs(self.costs_, len(out))
        return Estimate(self.models_, np.asarray(quality, dtype=np.float64), costs)


def evaluator_slope(value: Array, score: Floats, policy: Array, focus: float) -> Array:
    """Derivative of Σ w·BCE at the evaluator's logits, shape (n, n_models); w is held fixed, 0 for unknown scores."""
    known = ~np.isnan(score)
    share = 1 - focus + focus * score.shape[1] * policy
    return np.where(known, share * (value - np.where(known, score, 0.0)), 0.0)


def recommender_slope(policy: Array, value: Array, entropy: float) -> Array:
    """Derivative of −Σ π·V − η·H(π) at the recommender's logits, V held fixed, shape (n, n_models)."""
    log = np.log(np.maximum(policy, np.finfo(policy.dtype).tiny))
    paid = value - entropy * log
    return np.asarray(policy * ((policy * paid).sum(axis=1, keepdims=True) - paid))
