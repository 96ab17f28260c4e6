"""MetaLLM: A High-performant and Cost-efficient Dynamic Framework for Wrapping LLMs. Nguyen et al., 2024.
arXiv 2407.10834.

    A_k = λI + Σ x xᵀ;  b_k = Σ r_k(x)·x;  r_k(x) = a_k(x) − p·c_k
    choose argmax_k θ_kᵀx + α·√(xᵀA_k⁻¹x),  θ_k = A_k⁻¹b_k

`x` is the query's embedding, `a` is `Outcomes.score`, c_k the model's mean cost over that of the dearest.
`fit` is the offline mode (every arm sees every query), `observe` the online update of the chosen arm, A ← γA +
x xᵀ, b ← γb + r·x; `fit` and then `observe` is the hybrid mode.

Needs: embeddings; an artefact; labels, or online a score for the answer given.
Returns: quality = θ_kᵀx + α·width, cut to [0, 1], and each model's mean cost in US dollars, shape (n_queries,
n_models).

Differs from the paper:
- p = 0 by default: the estimate is of quality, and the policy's λ weighs cost (θ is affine in p, so nothing is lost).
- A⁻¹ is kept and updated by Sherman–Morrison; the reference inverts a 4096² matrix a query and arm.
- There is no intercept, as in the reference; `intercept=True` appends a constant, which makes the cost term a
  constant.

Laws: α = 0 is ridge regression without intercept; θ(p) = θ(0) − p·c_k·A⁻¹Σx; γ = 1 online over all data equals the
batch; mean price never rises with p.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.bandit import LinearArms
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Feedback, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="metallm",
    title="MetaLLM: A High-performant and Cost-efficient Dynamic Framework for Wrapping LLMs",
    year=2024,
    paper="arXiv 2407.10834",
    taxonomy="a1",
    contract="router",
    implementation="MetaLlm",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "α = 0 is scikit-learn's ridge without intercept, to 1e-6; θ is affine in p",
            "tests/routers/test_metallm.py::test_offline_is_ridge_and_affine_in_price",
        ),
        Evidence(
            "exact equivalence",
            "observing everything one by one with γ = 1 equals the batch",
            "tests/routers/test_metallm.py::test_online_equals_batch",
        ),
        Evidence(
            "invariant",
            "mean price never rises with p; a huge p takes the cheapest arm",
            "tests/routers/test_metallm.py::test_price_weight_lowers_price",
        ),
    ),
    unverified="the paper's embeddings and its α are from summaries; its accuracy gains were not reproduced",
)


class MetaLlm:
    """Contextual linear bandit, an arm a model. `penalty` λ, `alpha` exploration, `price` p, `forget` γ."""

    def __init__(
        self,
        *,
        penalty: float = 12.94,
        alpha: float = 0.0,
        price: float = 0.0,
        forget: float = 1.0,
        intercept: bool = False,
    ) -> None:
        self.penalty, self.alpha, self.price = penalty, alpha, price
        self.forget, self.intercept = forget, intercept

    def fit(self, outcomes: Outcomes) -> Self:
        """The offline mode. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        costs = learn.model_costs()
        rewards = learn.listed(learn.score) - self.price * _relative(costs)
        arms = LinearArms.of(self._x(learn.vectors), rewards, self.penalty, self.forget)
        self._keep(learn.models, arms, costs)
        return self

    def observe(self, feedback: Feedback) -> None:
        """Update the arm that answered. Raises `MethodError` for a model it does not have."""
        require_fitted(self, METHOD.id)
        if feedback.model not in self.models_:
            raise MethodError(
                f"{METHOD.id} has no model {feedback.model!r}; it has {', '.join(self.models_)}."
            )
        arm = self.models_.index(feedback.model)
        reward = feedback.score - self.price * float(_relative(self.costs_)[arm])
        vector = self._x(query_vectors(feedback.queries, self._dimensions, METHOD.id))[0]
        self.arms_.update(arm, vector, reward)
        self._theta = self.arms_.theta

    def estimate(self, queries: Queries) -> Estimate:
        """Expected reward of every arm. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        x = self._x(query_vectors(queries, self._dimensions, METHOD.id))
        value = x @ self._theta.T
        if self.alpha:
            value = value + self.alpha * self.arms_.width(x)
        return Estimate(self.models_, np.clip(value, 0.0, 1.0), constant_costs(self.costs_, len(x)))

    def save(self, folder: Path) -> None:
        """Write the artefact, the whole bandit state, so that it can go on learning."""
        names = ("penalty", "alpha", "price", "forget", "intercept")
        parameters = {name: getattr(self, name) for name in names}
        inverse = self.arms_.inverse
        # Arms that have seen the same queries share A: one copy then.
        shared = all(np.array_equal(inverse[0], other) for other in inverse[1:])
        tensors = {"inverse": inverse[:1] if shared else inverse, "b": self.arms_.b, "cost_usd": self.costs_}
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router = cls(**arguments(cls, manifest))
        m = len(manifest.models)
        b = tensor(tensors, "b", (m, None)).astype(np.float64)
        inverse = tensor(tensors, "inverse", (None, b.shape[1], b.shape[1])).astype(np.float64)
        if len(inverse) not in (1, m):
            raise MethodError(f"{folder} has {len(inverse)} arms for {m} models.")
        whole = np.repeat(inverse, m, axis=0) if len(inverse) < m else inverse
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, LinearArms(whole, b, router.forget), costs)
        return router

    def _keep(self, models: tuple[str, ...], arms: LinearArms, costs: Floats) -> None:
        self.models_, self.arms_, self.costs_ = models, arms, costs
        self._theta = arms.theta
        self._dimensions: int = arms.b.shape[1] - self.intercept

    def _x(self, vectors: Floats) -> Floats:
        return np.concatenate([vectors, np.ones((len(vectors), 1))], axis=1) if self.intercept else vectors


def _relative(costs: Floats) -> Floats:
    """Costs over the dearest known; unknown ones count as that."""
    dearest = float(np.nanmax(costs)) if np.isfinite(costs).any() else 0.0
    return np.nan_to_num(costs / dearest, nan=1.0) if dearest > 0 else np.zeros(len(costs))
