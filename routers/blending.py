"""Blending Is All You Need: Cheaper, Better Alternative to Trillion-Parameters LLM. Lu et al., 2024. arXiv
2401.02994.

    for every turn draw m ~ Uniform(M);  generate r_k ~ P(r | u_1..k, r_1..k−1; m)

Earlier answers of the conversation may come from other models; that is what blends. No query features, no score. The
request carries the whole conversation verbatim, so a strategy that relays it (`route`) gives each model the others'
answers, unmarked.

Needs: the text of the turn, to seed the draw.
Returns: quality = independent draws u(m) ~ Uniform(0, 1), of which the largest is the drawn model: argmax is a
uniform draw, and stays one when some models cannot be asked. It is *not* an estimate of quality. Each model's
mean cost in US dollars. Shape (n_queries, n_models). Serve it at `quality: 1`, for a λ above 0 tilts the draw
towards cheap models.

Differs from the paper:
- A draw is a hash of seed, turn's text and model, not of a running generator: a retry keeps its model, workers agree
  without shared state, and the same words asked twice get the same model.

Laws: draws of different turns are independent and uniform; one model is plain serving; the mean score over
single turns is the mean of the models, neither more nor less.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.learning_set import constant_costs, known_means, require_fitted
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="blending",
    title="Blending Is All You Need: Cheaper, Better Alternative to Trillion-Parameters LLM",
    year=2024,
    paper="arXiv 2401.02994",
    taxonomy="a2",
    contract="router",
    implementation="Blending",
    needs=frozenset({"text"}),
    evidence=(
        Evidence(
            "invariant",
            "draws are uniform and independent from turn to turn (chi-square), also among the models left",
            "tests/routers/test_blending.py::test_draws_are_uniform_and_independent",
        ),
        Evidence(
            "exact equivalence",
            "single-turn score on a table is the mean of the models within its standard error",
            "tests/routers/test_blending.py::test_score_is_the_mean_of_the_models",
        ),
    ),
    unverified="user engagement and retention, the paper's claim, cannot be measured here",
)


class Blending:
    """A uniform draw a turn. `seed`: another one draws otherwise."""

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Note the pool and what its models cost."""
        self._keep(tuple(outcomes.models), known_means(np.asarray(outcomes.cost_usd)))
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """The draws. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        rows = [[self._u(text, model) for model in self.models_] for text in queries.texts]
        draws = np.array(rows, dtype=np.float64).reshape(len(queries), len(self.models_))
        return Estimate(self.models_, draws, constant_costs(self.costs_, len(queries)))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters={"seed": self.seed})
        save_artefact(folder, manifest, {"cost_usd": self.costs_})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router = cls(**arguments(cls, manifest))
        router._keep(manifest.models, tensor(tensors, "cost_usd", (len(manifest.models),), finite=False))
        return router

    def _keep(self, models: tuple[str, ...], costs: Floats) -> None:
        self.models_, self.costs_ = models, costs

    def _u(self, text: str, model: str) -> float:
        mark = hashlib.sha256(f"{self.seed}\0{model}\0{text}".encode()).digest()
        return int.from_bytes(mark[:8], "big") / 2**64
