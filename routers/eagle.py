"""Eagle: Efficient Training-Free Router for Multi-LLM Inference. Zhao et al., 2024. arXiv 2409.15518.

    R_a += K(S − E_a), E_a = 1/(1 + 10^((R_b − R_a)/400));  Score(m) = P·Global(m) + (1 − P)·Local(m)

Global: all feedback replayed once. Local: the feedback on the N nearest past queries, replayed from the global
ratings. Feedback is pairwise and comes from the table: the higher score wins (S = 1), equal scores draw (S = ½).

Needs: embeddings; an artefact (embeddings and scores of past queries, and ratings); labels.
Returns: quality = the mean chance of beating another model of the pool at rating Score(m), shape (n_queries,
n_models), in [0, 1], in the order of Score(m); each model's mean cost in US dollars. The budget filter is the
policy's.

Differs from the paper:
- The replay's order is by hash of the query text, so that neither rows nor topics decide; nearest queries are
  replayed farthest first, the nearest counting most.
- Neighbours are the N nearest (`outcomes.index`: exactly, while there are some thousands); of those tied at the N-th
  place the ones replayed first.
- Averaging ratings along the trajectory is recalled and uncertain: `average=True` (default) reports the mean of the
  global ratings over the second half of the replay, which takes out most of Elo's dependence on order.

Laws: P = 1 does not depend on the query; the total of ratings is conserved; feedback added in two parts equals
the whole in the same order.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.battles import ELO_SCALE, elo, win_share
from outcomes.index import QUICK, NeighbourIndex
from outcomes.learning_set import (
    constant_costs,
    learning_set,
    query_vectors,
    replay_order,
    require_fitted,
)
from outcomes.neighbours import TIE, in_blocks
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="eagle",
    title="Eagle: Efficient Training-Free Router for Multi-LLM Inference",
    year=2024,
    paper="arXiv 2409.15518",
    taxonomy="a2",
    contract="router",
    implementation="Eagle",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "P = 1 is query-independent; N = all, P = 0 from a constant start is the global Elo up to order",
            "tests/routers/test_eagle.py::test_limits",
        ),
        Evidence(
            "exact equivalence",
            "the total is conserved; feedback in two parts equals the whole in the same order",
            "tests/routers/test_eagle.py::test_more_feedback",
        ),
        Evidence(
            "invariant",
            "on a recorded table with topics P = 0.5 scores above the query-independent P = 1",
            "tests/routers/test_eagle.py::test_local_ratings_help",
        ),
    ),
    unverified="that local replay starts from the global ratings, and trajectory averaging, are recalled",
)

START = 100.0


class Eagle:
    """Elo, globally and nearby. `p` P, `n` N, `k` K; `average`: mean of the global trajectory; `local_start`:
    start the local replay from the global ratings ("global") or from a constant ("constant", as one
    re-implementation)."""

    def __init__(
        self,
        *,
        p: float = 0.5,
        n: int = 20,
        k: float = 32.0,
        average: bool = True,
        local_start: str = "global",
    ) -> None:
        if local_start not in ("global", "constant"):
            raise MethodError(f"local_start is global or constant, not {local_start!r}")
        self.p, self.n, self.k, self.average, self.local_start = p, n, k, average, local_start

    def fit(self, outcomes: Outcomes) -> Self:
        """Replay all feedback from equal ratings. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        m = len(learn.models)
        order = replay_order(learn.texts)
        score = learn.score[order]
        half = len(score) // 2
        middle = elo(np.full(m, START), score[:half], self.k)
        last, mean = self._replay(middle, score[half:])
        self._keep(
            learn.models,
            learn.vectors[order],
            learn.listed(score),
            np.stack([learn.listed(last), learn.listed(mean)]),
            len(score) - half,
            learn.model_costs(),
        )
        return self

    def more(self, outcomes: Outcomes) -> Self:
        """Add feedback: ratings move on from where they are, and its queries join the past ones. Raises `MethodError`
        for other models or embeddings of another size."""
        require_fitted(self, METHOD.id)
        learn = learning_set(outcomes, METHOD.id)
        if (
            sorted(learn.models) != sorted(self.models_)
            or learn.vectors.shape[1] != self.embeddings_.shape[1]
        ):
            raise MethodError(f"{METHOD.id} adds feedback for {', '.join(self.models_)} only.")
        order = replay_order(learn.texts)
        score = learn.score[order]
        last, mean = self._replay(self.ratings_[0][self._by_name], score)
        total = self.averaged_ + len(score)
        mean = (self.ratings_[1][self._by_name] * self.averaged_ + mean * len(score)) / total
        vectors = np.concatenate([self.embeddings_, learn.vectors[order]])
        ratings = np.stack([last, mean])[:, self._back]
        self._keep(
            self.models_,
            vectors,
            np.concatenate([self.score_, score[:, self._back]]),
            ratings,
            total,
            self.costs_,
        )
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Ratings near every query, as chances of winning. Raises `MethodError` before `fit`, and for embeddings of
        another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.embeddings_.shape[1], METHOD.id)
        ratings = in_blocks(self.rate, vectors, len(self.models_))
        return Estimate(
            self.models_, win_share(ratings / ELO_SCALE), constant_costs(self.costs_, len(vectors))
        )

    def rate(self, vectors: NDArray[np.floating]) -> Floats:
        """Score(m) of every query, Elo points, shape (n, n_models)."""
        overall = self.ratings_[1 if self.average else 0]
        if self.p >= 1:
            return np.tile(overall, (len(vectors), 1))
        start = overall if self.local_start == "global" else np.full(len(overall), START)
        nearest = self._nearest(vectors)
        start = np.tile(start[self._by_name], (len(vectors), 1))
        local = elo(start, self.score_[nearest][:, :, self._by_name], self.k)
        return np.asarray(self.p * overall + (1 - self.p) * local[:, self._back], dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("p", "n", "k", "average", "local_start")
        parameters = {name: getattr(self, name) for name in names}
        tensors: dict[str, NDArray[Any]] = {
            "embeddings": self.embeddings_.astype(np.float32),
            "score": self.score_,
            "ratings": self.ratings_,
            "averaged": np.array([self.averaged_], dtype=np.int64),
            "cost_usd": self.costs_,
        }
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        vectors = tensor(tensors, "embeddings", (None, None)).astype(np.float64)
        router._keep(
            manifest.models,
            vectors,
            tensor(tensors, "score", (len(vectors), m), finite=False),
            tensor(tensors, "ratings", (2, m)),
            int(tensor(tensors, "averaged", (1,))[0]),
            tensor(tensors, "cost_usd", (m,), finite=False),
        )
        return router

    def _keep(
        self,
        models: tuple[str, ...],
        vectors: Floats,
        score: Floats,
        ratings: Floats,
        averaged: int,
        costs: Floats,
    ) -> None:
        self.models_, self.embeddings_, self.score_ = models, vectors, score
        self._by_name = np.argsort(np.array(models))
        self._back = np.argsort(self._by_name)
        self.index_ = NeighbourIndex(vectors.astype(np.float32))
        self.ratings_, self.averaged_, self.costs_ = ratings, averaged, costs

    def _replay(self, start: Floats, score: Floats) -> tuple[Floats, Floats]:
        """Ratings after the feedback, and their mean along the way."""
        ratings, total = start, np.zeros_like(start)
        for row in score:
            ratings = elo(ratings, row[None], self.k)
            total += ratings
        return ratings, total / max(len(score), 1)

    def _nearest(self, vectors: NDArray[np.floating]) -> NDArray[np.intp]:
        """The N nearest past queries, farthest first, shape (n, N). Rounding: cosines a billionth apart are equal, so
        that a query alone finds what it finds in a batch."""
        return np.stack([self._nearest_of(vector) for vector in vectors])[:, ::-1]

    def _nearest_of(self, vector: NDArray[np.floating]) -> NDArray[np.intp]:
        """Of one query, nearest first, shape (N,)."""
        rows, cosine = self.index_.near(np.asarray(vector, dtype=np.float32), self.n, QUICK)
        kept = min(self.n, len(rows))
        least = np.partition(cosine, len(cosine) - kept)[len(cosine) - kept]
        close = rows[cosine >= least - TIE]
        # What is close is compared again in double precision; of equal ones the one replayed first counts.
        close.sort()
        exact = np.round(self.embeddings_[close] @ vector, 9)
        return np.asarray(close[np.argsort(-exact, kind="stable")[:kept]], dtype=np.intp)
