"""FORC: Fly-Swat or Cannon? Cost-Effective Language Model Choice via Meta-Modeling. Šakota et al., 2023.
arXiv 2308.06077.

    P_ij = σ(meta-model("<model j>" query i));  ILP: max Σ P_ij·x_ij − λ Σ y_i,  Σ_j x_ij + y_i = 1,  Σ c_ij·x_ij ≤ B

One meta-model with a single logit reads the model's tag and the query, and is trained on all (query, model) rows by
binary cross entropy against the score in [0, 1]. Assignment is by policies that any router may use: single best
(`Utility(0)`), `CheapestAbove(θ)` for thresholding, and the programme, `outcomes.batch_assignment.integer_choice`:
cost-oriented (`budget_usd`), performance-oriented (`target_quality`) and unconstrained (`alpha`), each with or
without unanswered queries (`skip_penalty` λ).

Needs: embeddings; an artefact; labels.
Returns: quality P in [0, 1] and cost in US dollars, shape (n_queries, n_models). Cost is each model's mean over the
training queries.

Differs from the paper:
- The meta-model is a network with one hidden layer over the frozen embedding beside the model's tag (one-hot), not a
  fine-tuned DistilBERT that reads the tag in front of the text; so a query is embedded once, not once a model.
- Cost counts what the table recorded, prompts and all; the paper's estimate is (query tokens + mean output) × price.
- The paper's arrival-order greedy drops queries silently; here greedy is `outcomes.batch_assignment.upgrade_choice`.

Laws: without bound the programme is argmax P; B = 0 leaves all unanswered; the Lagrangian sandwich holds;
labels as P make thresholding the cheapest-right oracle; another tag gives another P for the same query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.network_router import NetworkRouter
from outcomes.networks import Network, sigmoid, tagged
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="forc",
    title="Fly-Swat or Cannon? Cost-Effective Language Model Choice via Meta-Modeling",
    year=2023,
    paper="arXiv 2308.06077",
    taxonomy="a1",
    contract="router",
    implementation="Forc",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the programme is argmax P without bound, all unanswered without money, and never overspends",
            "tests/routers/test_forc.py::test_budget_limits_and_monotonicity",
        ),
        Evidence(
            "exact equivalence",
            "Lagrangian sandwich: rule that just fits ≤ programme ≤ dual bound, all within one query",
            "tests/outcomes/test_batch_assignment.py::test_lagrangian_sandwich",
        ),
        Evidence(
            "invariant",
            "changing the model's tag changes P for the same query, and P learns who knows what",
            "tests/routers/test_forc.py::test_the_tag_decides",
        ),
    ),
    unverified="the paper's figures were not reproduced: its meta-model is a fine-tuned DistilBERT",
)


@dataclass(kw_only=True, eq=False)
class Forc(NetworkRouter):
    """One meta-model for all models; its knobs are those of `NetworkTraining`."""

    method = METHOD.id
    heads = 0

    batch: int = 32
    decay: float = 0.05

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the meta-model on every known (query, model). Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        known = ~np.isnan(learn.score)
        target = learn.score[known][:, None]
        tags = np.eye(len(learn.models))
        network = self.trained_on_pairs(
            learn.vectors, tags, known, lambda rows, out: sigmoid(out) - target[rows]
        )
        (weight, bias), *rest = network.layers
        d = learn.vectors.shape[1]
        listed = np.concatenate([weight[:d], weight[d:][learn.columns]])
        self._keep(learn.models, Network(((listed, bias), *rest)), learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """P of every query and model. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        m = len(self.models_)
        vectors = query_vectors(queries, self.network_.inputs - m, METHOD.id)
        quality = np.asarray(sigmoid(tagged(self.network_, vectors, np.eye(m))), dtype=np.float64)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(vectors)))
