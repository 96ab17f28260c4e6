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

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.networks import Network, fit_network, sigmoid, softmax
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


class Relm:
    """Evaluator and recommender on one encoder. `focus` φ; `entropy` η; `weight` of the recommender's loss;
    `recommend`: estimate by π; `hidden`, `epochs`, `rate`, `decay`, `seed` of training."""

    def __init__(
        self,
        *,
        focus: float = 0.5,
        entropy: float = 0.1,
        weight: float = 1.0,
        recommend: bool = False,
        hidden: int = 64,
        epochs: int = 10,
        rate: float = 1e-3,
        decay: float = 5.0,
        seed: int = 0,
    ) -> None:
        self.focus, self.entropy, self.weight, self.recommend = focus, entropy, weight, recommend
        self.hidden, self.epochs, self.rate, self.decay, self.seed = hidden, epochs, rate, decay, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Train both heads. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        m = len(learn.models)

        def gradient(rows: NDArray[np.intp], out: Array) -> Array:
            value, policy = sigmoid(out[:, :m]), softmax(out[:, m:])
            evaluated = evaluator_slope(value, learn.score[rows], policy, self.focus)
            recommended = self.weight * recommender_slope(policy, value, self.entropy)
            return np.concatenate([evaluated, recommended], axis=1)

        network = fit_network(
            learn.vectors,
            2 * m,
            gradient,
            hidden=(self.hidden,),
            seed=self.seed,
            epochs=self.epochs,
            rate=self.rate,
            decay=self.decay,
        )
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

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("focus", "entropy", "weight", "recommend", "hidden", "epochs", "rate", "decay", "seed")
        parameters = {name: getattr(self, name) for name in names}
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=parameters)
        save_artefact(folder, manifest, {**self.network_.tensors(), "cost_usd": self.costs_})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, Network.of(tensors, 2 * m), costs)
        return router

    def _keep(self, models: tuple[str, ...], network: Network, costs: Floats) -> None:
        self.models_, self.network_, self.costs_ = models, network, costs


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
