"""HomoRouter: Query Routing for Homogeneous Tools. Mu et al., 2024. arXiv 2406.12429.

    ŝ(x) = head(e(x)), an output a tool;  loss = mean_j (ŝ_j − s_j)² + β·mean_{j<k} ((ŝ_j − ŝ_k) − (s_j − s_k))²
    choose: argmax ŝ | cheapest within a tolerance of the best | max Σ ŝ_ij x_ij, Σ_j x_ij = 1, Σ c_j x_ij ≤ B

`s` is `Outcomes.score`; tools are the models. They are alike, so what has to be learnt is how they differ on a query:
the second term counts only differences. The three assignments are policies: `Utility(0)`, `Margin(tolerance)` and
`Budget(usd_per_query, exact=True)`.

Needs: embeddings; an artefact; labels.
Returns: quality ŝ cut to [0, 1] and each model's mean cost in US dollars, shape (n_queries, n_models).

Differs from the paper:
- The shared encoder is the frozen embedder with one hidden layer on top, not fine-tuned.
- Epochs and decay are the best of 9 settings on an inner split of llmrouter's *training* queries.
- The form of the loss is recalled with low confidence; β is ours.

Laws: B = ∞ is argmax and B = n·c_min all-cheapest; for two tools of constant price the programme is a sorted prefix;
tolerance 0 is argmax, ∞ the cheapest, and cost never rises with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.network_router import NetworkRouter
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="homorouter",
    title="HomoRouter: Query Routing for Homogeneous Tools",
    year=2024,
    paper="arXiv 2406.12429",
    taxonomy="a1",
    contract="router",
    implementation="HomoRouter",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "budget ∞ is argmax, n·c_min all-cheapest; tolerance 0 and ∞ likewise, cost monotone between",
            "tests/routers/test_homorouter.py::test_assignment_limits",
        ),
        Evidence(
            "exact equivalence",
            "two tools of constant price: the programme upgrades a prefix of queries sorted by gain",
            "tests/outcomes/test_batch_assignment.py::test_two_models_of_constant_price_are_a_sorted_prefix",
        ),
        Evidence(
            "exact equivalence",
            "the gradient is the derivative of the loss above (central differences)",
            "tests/routers/test_homorouter.py::test_gradient_is_the_derivative",
        ),
        Evidence(
            "invariant",
            "where all tools share a query's difficulty, the pairwise term ranks tools better than MSE alone",
            "tests/routers/test_homorouter.py::test_differences_are_learnt",
        ),
    ),
    unverified="the predictor's loss is recalled with low confidence, no figure is verified; no public code",
)


@dataclass(kw_only=True, eq=False)
class HomoRouter(NetworkRouter):
    """A score an output, trained on scores and their differences. `beta`: weight of the differences."""

    method = METHOD.id

    beta: float = 1.0
    epochs: int = 5

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the predictor. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        network = self.trained(
            learn.vectors, len(learn.models), lambda rows, out: gradient(out, learn.score[rows], self.beta)
        )
        self._keep(learn.models, network.with_outputs(learn.columns), learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """ŝ of every query. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.network_.inputs, METHOD.id)
        quality = np.clip(np.asarray(self.network_(vectors), dtype=np.float64), 0.0, 1.0)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(vectors)))


def gradient(estimated: NDArray[np.floating[Any]], score: Floats, beta: float) -> Floats:
    """Derivative of each row's loss with respect to its estimates, shape (n, n_models); 0 for unknown scores."""
    known = ~np.isnan(score)
    error = np.where(known, estimated - np.where(known, score, 0.0), 0.0)
    count = known.sum(axis=1, keepdims=True)
    # Σ_k (e_j − e_k) over known k is count·e_j − Σ e: all pairs in one step.
    against = np.where(known, count * error - error.sum(axis=1, keepdims=True), 0.0)
    pairs = np.maximum(count * (count - 1) / 2, 1)
    return np.asarray(2 * error / np.maximum(count, 1) + beta * 2 * against / pairs, dtype=np.float64)
