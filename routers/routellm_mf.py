"""RouteLLM: Learning to Route LLMs with Preference Data — matrix factorisation. Ong et al., 2024. arXiv 2406.18665.

    δ(m, q) = w2ᵀ[(P_m / ‖P_m‖) ⊙ (W1 e_q)];  w = P(strong beats weak) = σ(δ(strong, q) − δ(weak, q))

`P` are model embeddings (n_models, 128), `W1` projects the frozen query embedding e_q, `w2` weighs; no bias anywhere.
Trained on decisive battles by binary cross entropy of w2ᵀ[(v_win − v_loss) ⊙ W1(e_q + ε)] against 1, ε = α·N(0, I) on
the raw embedding, drawn anew at every step; Adam with weight decay in the gradient.

Needs: embeddings; an artefact (P, W1, w2); labels.
Returns: quality = mean chance of beating another model of the pool, shape (n_queries, n_models), in [0, 1], and each
model's mean cost in US dollars. Of two models the strong one's quality *is* w, and the lead that
`routers.policy.Threshold` compares is 2w − 1.

Differs from the paper:
- Battles come from outcome tables (higher score wins; ties are removed, as there) instead of Arena votes, and
  there is a row of P for each model of the pool, not 64; e_q is the deployment's embedding, not
  text-embedding-3-small.
- Unit-length embeddings of d dimensions have entries of about 1/√d, so noise of α = 0.1 an entry is longer than the
  embedding itself: `noise` is the expected *length* of ε, at α/√d an entry. `faithful=True` has α an entry, as
  released.
- Epochs are the paper's about 10, not the script's 100, and no more than `max_steps` steps are made.

Laws: w(a, b) = 1 − w(b, a); scaling a row of P changes nothing; for a fixed pair w is a logistic regression without
intercept, of coefficients W1ᵀ(w2 ⊙ (v_strong − v_weak)). Having no intercept, w is badly scaled: calibrate α, never
use 0.5.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.battles import decisive, win_share
from outcomes.groups import membership
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.networks import Adam, sigmoid
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="routellm-mf",
    title="RouteLLM: Learning to Route LLMs with Preference Data (matrix factorisation)",
    year=2024,
    paper="arXiv 2406.18665",
    taxonomy="a1",
    contract="router",
    implementation="RouteLlmMf",
    needs=frozenset({"embedding", "artefact", "labels"}),
    aliases=("mf",),
    evidence=(
        Evidence(
            "exact equivalence",
            "for a fixed pair w is a no-intercept logistic regression of the extracted coefficients, to 1e-6",
            "tests/routers/test_routellm_mf.py::test_a_pair_is_a_logistic_regression",
        ),
        Evidence(
            "invariant",
            "w(a, b) = 1 − w(b, a); scaling a row of P changes nothing; shapes are the reference's",
            "tests/routers/test_routellm_mf.py::test_antisymmetry_scale_and_shapes",
        ),
        Evidence(
            "invariant",
            "held-out RouteLLM tables: APGR above a random router's 0.5, on MMLU and on GSM8K",
            "tests/routers/test_routellm_mf.py::test_beats_random_on_the_published_tables",
        ),
    ),
    unverified="the paper's APGR figures and its number of epochs are recalled; its Arena battles are not used here",
)


class RouteLlmMf:
    """Bilinear model of battles. `dim`: of the model embeddings; `noise` α; `rate`, `decay`, `batch`,
    `epochs`, `seed` as in the reference; `max_steps` bounds training on large tables."""

    def __init__(
        self,
        *,
        dim: int = 128,
        batch: int = 64,
        rate: float = 3e-4,
        decay: float = 1e-5,
        noise: float = 0.1,
        epochs: int = 10,
        max_steps: int = 8000,
        seed: int = 42,
        faithful: bool = False,
    ) -> None:
        self.dim, self.batch, self.rate, self.decay, self.noise = dim, batch, rate, decay, noise
        self.epochs, self.max_steps, self.seed, self.faithful = epochs, max_steps, seed, faithful

    def fit(self, outcomes: Outcomes) -> Self:
        """Train on the decisive battles of the table. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        battles = decisive(learn.score)
        rng = np.random.default_rng(self.seed)
        d, m = learn.vectors.shape[1], len(learn.models)
        # torch's defaults: N(0, 1) embeddings, linear layers uniform within 1/√n_in.
        p = rng.normal(size=(m, self.dim)).astype(np.float32)
        w1 = rng.uniform(-1, 1, (self.dim, d)).astype(np.float32) / np.float32(np.sqrt(d))
        w2 = rng.uniform(-1, 1, self.dim).astype(np.float32) / np.float32(np.sqrt(self.dim))
        adam = Adam([p, w1, w2], self.rate, decay=self.decay)
        spread = self.noise if self.faithful else self.noise / np.sqrt(d)
        vectors = learn.vectors.astype(np.float32)
        n = len(battles[0])
        steps = min(self.max_steps, self.epochs * -(-n // self.batch))
        order = (
            np.concatenate([rng.permutation(n) for _ in range(self.epochs)]) if n else np.empty(0, np.intp)
        )
        for step in range(steps):
            rows = order[step * self.batch : (step + 1) * self.batch]
            query, winner, loser = (side[rows] for side in battles)
            e = vectors[query] + spread * rng.standard_normal((len(rows), d), dtype=np.float32)
            adam.step(_gradients(p, w1, w2, e, winner, loser))
        self._keep(learn.models, p[learn.columns], w1, w2, learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """δ of every query, as chances of winning. Raises `MethodError` before `fit`, and for embeddings of another
        size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.w1_.shape[1], METHOD.id)
        return Estimate(
            self.models_, win_share(vectors @ self._coefficients.T), constant_costs(self.costs_, len(vectors))
        )

    def coefficients(self, strong: str, weak: str) -> Floats:
        """The logistic regression that w of this pair is: W1ᵀ(w2 ⊙ (v_strong − v_weak)), shape (dimensions,)."""
        at = self.models_.index
        return np.asarray(self._coefficients[at(strong)] - self._coefficients[at(weak)], dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("dim", "batch", "rate", "decay", "noise", "epochs", "max_steps", "seed", "faithful")
        parameters = {name: getattr(self, name) for name in names}
        tensors: dict[str, NDArray[Any]] = {
            "P": self.p_,
            "W1": self.w1_,
            "w2": self.w2_,
            "cost_usd": self.costs_,
        }
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router = cls(**arguments(cls, manifest))
        m = len(manifest.models)
        router._keep(
            manifest.models,
            tensor(tensors, "P", (m, router.dim)),
            tensor(tensors, "W1", (router.dim, None)),
            tensor(tensors, "w2", (router.dim,)),
            tensor(tensors, "cost_usd", (m,), finite=False),
        )
        return router

    def _keep(
        self,
        models: tuple[str, ...],
        p: NDArray[np.float32],
        w1: NDArray[np.float32],
        w2: NDArray[np.float32],
        costs: Floats,
    ) -> None:
        self.models_, self.p_, self.w1_, self.w2_, self.costs_ = models, p, w1, w2, costs
        # δ is linear in the query: one vector a model is all that serving needs.
        units = p.astype(np.float64) / np.linalg.norm(p.astype(np.float64), axis=1, keepdims=True)
        self._coefficients: Floats = (units * w2.astype(np.float64)) @ w1.astype(np.float64)


def _gradients(
    p: NDArray[np.float32],
    w1: NDArray[np.float32],
    w2: NDArray[np.float32],
    e: NDArray[np.float32],
    winner: NDArray[np.intp],
    loser: NDArray[np.intp],
) -> list[NDArray[np.float32]]:
    """Of the mean loss over a batch of battles, with respect to P, W1 and w2."""
    lengths = np.linalg.norm(p, axis=1, keepdims=True)
    v = p / lengths
    lead = v[winner] - v[loser]
    projected = e @ w1.T
    slope = (sigmoid((lead * projected) @ w2) - 1)[:, None] / np.float32(len(e))
    of_w2 = (slope * lead * projected).sum(axis=0)
    of_w1 = (slope * lead * w2).T @ e
    of_lead = slope * projected * w2
    of_v = (membership(winner, len(p)) - membership(loser, len(p))).astype(np.float32).T @ of_lead
    # Through the normalisation only what is at a right angle to v passes.
    of_p = (of_v - v * (of_v * v).sum(axis=1, keepdims=True)) / lengths
    return [np.asarray(found, dtype=np.float32) for found in (of_p, of_w1, of_w2)]
