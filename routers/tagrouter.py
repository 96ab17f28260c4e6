"""TagRouter: Learning Route to LLMs through Tags for Open-Domain Text Generation Tasks. Chen et al., 2025.
arXiv 2506.12473.

    score(M, t) = w_t·Σ_{r ∈ win, tie, loss} count_{t,M}(r)·s_r;   total(M, q) = Σ_{t ∈ tags(q)} score(M, t)
    take argmax total; if it is the reference, fall back to the best cheaper model unless its lead exceeds θ

Every model is compared with one reference, the strongest of the training queries (by mean score; of equal ones the
dearer): higher score wins, equal scores tie. s_win = 1, s_tie = 0.15, s_loss = −1.

Needs: embeddings; an artefact (tag centres and the table of scores); labels.
Returns: quality = (total over the number of tags + 1)/2, in [0, 1]; each model's mean cost in US dollars, shape
(n_queries, n_models). `decide` applies θ.

Differs from the paper:
- Tags come from a fine-tuned tagger there. Here they are clusters of the training queries and the table's
  categories, a query's tags being its `top` nearest of each kind; an index query has its own category.
- w_t is not published; 1/(count of the tag) here, which keeps frequent tags from outweighing rare ones.
- s_win and s_loss are presumed. A model ties with itself, so the reference scores s_tie on every tag.

Laws: another model leaves the other rows as they are; one universal tag is the best model by win rate; cost
never rises with θ.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.assignment import utility_choice
from outcomes.groups import category_centres, group_means, kmeans
from outcomes.learning_set import constant_costs, known_means, learning_set, query_vectors, require_fitted
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="tagrouter",
    title="TagRouter: Learning Route to LLMs through Tags for Open-Domain Text Generation Tasks",
    year=2025,
    paper="arXiv 2506.12473",
    taxonomy="a1",
    contract="router",
    implementation="TagRouter",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "adding a model leaves the rows of the others unchanged",
            "tests/routers/test_tagrouter.py::test_adding_a_model_changes_no_other_row",
        ),
        Evidence(
            "exact equivalence",
            "one universal tag is the best model by win rate against the reference",
            "tests/routers/test_tagrouter.py::test_universal_tag_is_the_best_by_win_rate",
        ),
        Evidence(
            "invariant",
            "cost never rises with θ",
            "tests/routers/test_tagrouter.py::test_cost_falls_with_theta",
        ),
    ),
    unverified="all from a third party's note: w_t, s_win and s_loss are unknown; categories and clusters stand in "
    "for the tagger; no figure of the paper was reproduced",
)

WIN, LOSS = 1.0, -1.0


class TagRouter:
    """A table of models × tags. `tie` s_tie; `tags`: clusters; `top` tags of each kind a query has; `support`:
    pseudo- comparisons of the overall mean a tag holds; `theta` of `decide`; `seed` of the clusters."""

    def __init__(
        self,
        *,
        tie: float = 0.15,
        tags: int = 64,
        top: int = 2,
        support: float = 5.0,
        theta: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.tie, self.tags, self.top = tie, tags, top
        self.support, self.theta, self.seed = support, theta, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Tag the training queries and count wins, ties and losses. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        names, categories = category_centres(learn.vectors, learn.categories)
        clusters = kmeans(learn.vectors, min(self.tags, max(1, len(learn) // 20)), seed=self.seed)
        own = np.searchsorted(np.array(names), np.array(learn.categories))
        tagged = np.zeros((len(learn), len(names) + len(clusters)))
        tagged[np.arange(len(learn)), own] = 1
        np.put_along_axis(tagged, _nearest(learn.vectors, clusters, self.top) + len(names), 1.0, axis=1)
        mean, cost = known_means(learn.score), known_means(learn.cost_usd)
        reference = int(np.lexsort((np.nan_to_num(cost), np.nan_to_num(mean, nan=-1.0)))[-1])
        table = group_means(tagged, compared(learn.score, reference, self.tie), prior=self.support)
        costs = learn.model_costs()
        at = int(np.argsort(learn.columns)[reference])
        table = np.nan_to_num(learn.listed(table), nan=LOSS)
        self._keep(learn.models, categories, clusters, table, costs, at)
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Totals of every query. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.categories_.shape[1], METHOD.id)
        found = _nearest(vectors, self.categories_, self.top)
        also = _nearest(vectors, self.clusters_, self.top) + len(self.categories_)
        tags = np.concatenate([found, also], axis=1)
        total = self.table_[tags].mean(axis=1)
        quality = np.clip((total - LOSS) / (WIN - LOSS), 0.0, 1.0)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(vectors)))

    def decide(self, queries: Queries, theta: float | None = None) -> NDArray[np.intp]:
        """TagDecider: the best model, but where that is the reference, the best cheaper one unless the
        reference leads by more than θ (in units of the total)."""
        estimate = self.estimate(queries)
        choice = utility_choice(estimate, 0.0)
        cheaper = ~(self.costs_ >= self.costs_[self.reference_])
        if not cheaper.any():
            return choice
        others = Estimate(self.models_, np.where(cheaper, estimate.quality, np.nan), estimate.cost_usd)
        best = utility_choice(others, 0.0)
        rows = np.arange(len(choice))
        lead = (WIN - LOSS) * (estimate.quality[:, self.reference_] - estimate.quality[rows, best])
        stays = lead > (self.theta if theta is None else theta)
        return np.where((choice == self.reference_) & ~stays, best, choice).astype(np.intp)

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("tie", "tags", "top", "support", "theta", "seed")
        parameters = {name: getattr(self, name) for name in names}
        tensors = {
            "categories": self.categories_,
            "clusters": self.clusters_,
            "table": self.table_,
            "cost_usd": self.costs_,
            "reference": np.array([self.reference_], dtype=np.int64),
        }
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        categories = tensor(tensors, "categories", (None, None))
        clusters = tensor(tensors, "clusters", (None, categories.shape[1]))
        table = tensor(tensors, "table", (len(categories) + len(clusters), m))
        reference = int(tensor(tensors, "reference", (1,))[0])
        if not 0 <= reference < m:
            raise MethodError(f"{folder}: there is no model {reference} to refer to.")
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, categories, clusters, table, costs, reference)
        return router

    def _keep(
        self,
        models: tuple[str, ...],
        categories: Floats,
        clusters: Floats,
        table: Floats,
        costs: Floats,
        reference: int,
    ) -> None:
        self.models_, self.categories_, self.clusters_ = models, categories, clusters
        self.table_, self.costs_, self.reference_ = table, costs, reference


def compared(score: Floats, reference: int, tie: float) -> Floats:
    """s_r of every model against the reference on every query, NaN where either score is unknown; shape of
    `score`."""
    against = score[:, [reference]]
    result = np.where(score > against, WIN, np.where(score == against, tie, LOSS))
    return np.where(np.isnan(score) | np.isnan(against), np.nan, result)


def _nearest(vectors: Floats, centres: Floats, top: int) -> NDArray[np.intp]:
    """The `top` nearest tags of every query, shape (n, min(top, n_tags))."""
    return np.argsort(-np.round(vectors @ centres.T, 9), axis=1, kind="stable")[:, : min(top, len(centres))]
