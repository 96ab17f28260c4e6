"""RouteLLM: Learning to Route LLMs with Preference Data — similarity-weighted ranking. Ong et al., 2024.
arXiv 2406.18665.

    ω_i = γ^(1 + s_i / max_j s_j);  R = argmax Σ_i ω_i · log P_BT(battle i | R)
    w = P(strong beats weak) = σ(R_strong − R_weak)

`s_i` is the cosine of the query with the prompt of battle i, γ = 10, R are Bradley–Terry ratings of tiers of models,
fitted anew for every query. Battles come from the outcome table: on a training query the higher score wins, equal
scores are a tie, half a win each. Tiers are contiguous groups of the global ranking with the least sum of rating
variances (dynamic programme).

Needs: embeddings; an artefact (embeddings and scores of the training queries); labels.
Returns: quality = mean chance of beating another model of the pool, shape (n_queries, n_models), in [0, 1], and each
model's mean cost in US dollars. Of two models the strong one's quality *is* w, and the lead that
`routers.policy.Threshold` compares is 2w − 1.

Differs from the paper:
- Battles of outcome tables instead of Arena votes; the embedder is the deployment's, not text-embedding-3-small.
- Sufficient statistics (weighted wins between tiers) replace the list of battles; the fit is the same, by Newton.
- Battles within a tier say nothing. The reference writes +ln 10 and then −ln 10 into the same cell, which leaves
  −ln 10: a game against a player held at rating 1000. `faithful=True` reproduces that.
- A penalty of 1e-4 of a player's games keeps tiers that won everything finite.

With thousands of training queries the far ones, at a tenth of the nearest one's weight, outweigh the near ones
together: argmax is then the best single model (llmrouter: on every query). What the method orders are queries, for a
threshold.

Laws: equal similarities give one w for all, the global Bradley–Terry one; two players have the closed form
400·log10(wins / losses); weighted ties are half wins; the tiers are the brute-force optimum.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.battles import bradley_terry, win_share, wins_of
from outcomes.groups import membership
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.neighbours import in_blocks
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="routellm-sw",
    title="RouteLLM: Learning to Route LLMs with Preference Data (similarity-weighted ranking)",
    year=2024,
    paper="arXiv 2406.18665",
    taxonomy="a1",
    contract="router",
    implementation="RouteLlmSw",
    needs=frozenset({"embedding", "artefact", "labels"}),
    aliases=("sw_ranking",),
    evidence=(
        Evidence(
            "exact equivalence",
            "equal similarities give the global Bradley–Terry win rate, closed form for two models",
            "tests/routers/test_routellm_sw.py::test_equal_similarities_are_the_global_rate",
        ),
        Evidence(
            "exact equivalence",
            "w equals a weighted logistic regression on doubled battles, ties once each way (scikit-learn)",
            "tests/routers/test_routellm_sw.py::test_a_query_is_a_weighted_logistic_regression",
        ),
        Evidence(
            "exact equivalence",
            "the dynamic programme's tiers are the brute-force optimum for up to eight models",
            "tests/routers/test_routellm_sw.py::test_tiers_are_the_brute_force_optimum",
        ),
    ),
    unverified="the paper's APGR figures are recalled; its Arena battles are not used here",
)


class RouteLlmSw:
    """A Bradley–Terry model a query, battles weighted by similarity.

    `tiers`: groups of models that share a rating, at most; `gamma`: how much more the nearest battle weighs than one
    at a right angle; `faithful`: the reference's treatment of battles within a tier.
    """

    def __init__(self, *, tiers: int = 10, gamma: float = 10.0, faithful: bool = False) -> None:
        self.tiers, self.gamma, self.faithful = tiers, gamma, faithful

    def fit(self, outcomes: Outcomes) -> Self:
        """Store the battles and tier the models. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        self._keep(learn.models, learn.vectors, learn.listed(learn.score), learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Ratings of every query, as chances of winning. Raises `MethodError` before `fit`, and for embeddings of
        another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.embeddings_.shape[1], METHOD.id)
        ratings = in_blocks(self._ratings, vectors, len(self.models_))
        return Estimate(self.models_, win_share(ratings), constant_costs(self.costs_, len(vectors)))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        parameters = {"tiers": self.tiers, "gamma": self.gamma, "faithful": self.faithful}
        tensors: dict[str, NDArray[Any]] = {
            "embeddings": self.embeddings_.astype(np.float32),
            "score": self.score_,
            "cost_usd": self.costs_,
        }
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router = cls(**arguments(cls, manifest))
        vectors = tensor(tensors, "embeddings", (None, None)).astype(np.float64)
        m = len(manifest.models)
        score = tensor(tensors, "score", (len(vectors), m), finite=False)
        router._keep(manifest.models, vectors, score, tensor(tensors, "cost_usd", (m,), finite=False))
        return router

    def _keep(self, models: tuple[str, ...], vectors: Floats, score: Floats, costs: Floats) -> None:
        self.models_, self.embeddings_, self.score_, self.costs_ = models, vectors, score, costs
        m = len(models)
        # Battles are listed by name, so that no order of columns says who is model A.
        by_name = np.argsort(np.array(models))
        wins = wins_of(score[:, by_name])
        ratings = bradley_terry(wins.sum(axis=0))
        tier = np.empty(m, dtype=np.intp)
        tier[by_name] = tiers(ratings, self.tiers)
        self.tier_ = tier
        groups = membership(tier[by_name], int(tier.max()) + 1)
        between = np.einsum("nij,it,ju->ntu", wins, groups, groups, optimize=True)
        count = groups.shape[1]
        # Of battles within a tier only the reference's slip makes use: A's wins, then B's.
        first = np.triu(np.ones((m, m)))
        same = np.stack(
            [
                np.einsum("nij,it,jt->nt", part, groups, groups, optimize=True)
                for part in (wins * first, wins * first.T)
            ],
            axis=1,
        )
        between[:, np.arange(count), np.arange(count)] = 0.0
        self._battles = np.concatenate([between.reshape(len(wins), -1), same.reshape(len(wins), -1)], axis=1)

    def _ratings(self, vectors: NDArray[np.floating]) -> Floats:
        """Bradley–Terry ratings of every model for every query, natural log-odds, shape (n, n_models)."""
        count = int(self.tier_.max()) + 1
        sums = self._weights(vectors) @ self._battles
        wins = sums[:, : count * count].reshape(-1, count, count)
        same = sums[:, count * count :].reshape(-1, 2, count)
        # P(A wins) = σ(−θ): model A's wins are the tier's losses against the player at 0.
        pinned = (same[:, 1], same[:, 0]) if self.faithful else None
        return np.asarray(bradley_terry(wins, against_zero=pinned)[:, self.tier_], dtype=np.float64)

    def _weights(self, vectors: NDArray[np.floating]) -> Floats:
        cosine = vectors @ self.embeddings_.T
        most = cosine.max(axis=1, keepdims=True)
        # With nothing on its side of the space, a query has no nearest battle: all weigh alike.
        share = np.where(most > 0, cosine / np.where(most > 0, most, 1.0), 0.0)
        return np.asarray(self.gamma ** (1 + share), dtype=np.float64)


def tiers(ratings: Floats, groups: int) -> NDArray[np.intp]:
    """The tier of each model, 0 the strongest, shape (n_models,): exactly min(`groups`, n_models) contiguous
    groups of the ranking with the least sum of population variances (a group of one has none)."""
    order = np.argsort(-ratings, kind="stable")
    ranked = ratings[order]
    n = len(ranked)
    groups = min(groups, n)

    @cache
    def best(start: int, left: int) -> tuple[float, int]:
        """The least cost of ranked[start:] in `left` groups, and where the first of them ends."""
        if left == 1:
            return float(ranked[start:].var()), n
        ends = range(start + 1, n - left + 2)
        return min((float(ranked[start:end].var()) + best(end, left - 1)[0], end) for end in ends)

    found = np.empty(n, dtype=np.intp)
    start = 0
    for tier in range(groups):
        end = best(start, groups - tier)[1]
        found[order[start:end]] = tier
        start = end
    return found
