"""What a router learns from, in one canonical order, so that the order of rows and columns never decides anything.

Seeded methods (k-means, networks, replays of feedback) see queries sorted by text and models sorted by name;
`LearningSet.listed` puts what they learnt about models back into the order the models were listed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from protocol.errors import MethodError
from protocol.routing import Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = [
    "LearningSet",
    "constant_costs",
    "known_means",
    "learning_set",
    "query_vectors",
    "replay_order",
    "require_fitted",
]


@dataclass(frozen=True, slots=True, eq=False)
class LearningSet:
    """Outcomes in canonical order. `vectors`: shape (n_queries, dimensions), float64, with no columns when the
    method needs none; `score` and `cost_usd`: (n_queries, n_models), models sorted by name, NaN where unknown.
    `models` is in the order listed by whoever trains."""

    models: tuple[str, ...]
    texts: tuple[str, ...]
    categories: tuple[str, ...]
    vectors: Floats
    score: Floats
    cost_usd: Floats
    columns: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.texts)

    def listed(self, values: NDArray[Any]) -> NDArray[Any]:
        """`values`, whose last axis runs over models sorted by name, with that axis in the order listed."""
        return np.ascontiguousarray(values[..., self.columns])

    def model_costs(self) -> Floats:
        """Mean known cost of each model in US dollars, in the order listed; NaN where none is known."""
        return self.listed(known_means(self.cost_usd))


def learning_set(outcomes: Outcomes, method: str, *, embedded: bool = True) -> LearningSet:
    """The canonical view of `outcomes` for `method`; leaves them as they are.

    Queries nobody has a score for are left out. Raises `MethodError` when nothing is left, or embeddings are
    missing though the method needs them (`embedded`).
    """
    score, cost = np.asarray(outcomes.score), np.asarray(outcomes.cost_usd)
    known = np.flatnonzero(~np.isnan(score).all(axis=1))
    if not len(known):
        raise MethodError(f"{method} learns from graded answers; there are none.")
    vectors = outcomes.queries.embeddings
    if embedded and vectors is None:
        raise MethodError(f"{method} learns from queries with embeddings; there are none.")
    models = tuple(outcomes.models)
    by_name = sorted(range(len(models)), key=models.__getitem__)
    # Copies of a question are told apart by their scores; copies of those too are alike in all that matters.
    texts = outcomes.queries.texts
    rows = sorted(
        known.tolist(), key=lambda i: (texts[i], np.nan_to_num(score[i, by_name], nan=-1.0).tolist())
    )
    used = np.zeros((len(texts), 0)) if vectors is None or not embedded else vectors
    return LearningSet(
        models,
        tuple(texts[i] for i in rows),
        tuple(outcomes.categories[i] for i in rows),
        np.asarray(used, dtype=np.float64)[rows],
        np.asarray(score[rows][:, by_name], dtype=np.float64),
        np.asarray(cost[rows][:, by_name], dtype=np.float64),
        np.argsort(by_name),
    )


def require_fitted(router: object, method: str) -> None:
    """Raises `MethodError` for a router that has not learnt anything: `fit` sets `models_`."""
    if not hasattr(router, "models_"):
        raise MethodError(f"This {method} is not fitted; call fit or load an artefact.")


def query_vectors(queries: Queries, dimensions: int, method: str) -> Floats:
    """The embeddings of `queries`, float64. Raises `MethodError` when they are missing or of another size."""
    vectors = queries.embeddings
    if vectors is None or vectors.ndim != 2 or vectors.shape[1] != dimensions:
        found = "none" if vectors is None else f"shape {vectors.shape}"
        raise MethodError(f"{method} needs embeddings of {dimensions} dimensions; got {found}.")
    return np.asarray(vectors, dtype=np.float64)


def replay_order(texts: Sequence[str]) -> NDArray[np.intp]:
    """An order to replay feedback in that no table decides: by hash of the text, so that neither topics nor time of
    collection come in blocks."""
    marks = [hashlib.sha256(text.encode()).digest() for text in texts]
    return np.array(sorted(range(len(marks)), key=marks.__getitem__), dtype=np.intp)


def known_means(values: Floats, axis: int = 0) -> Floats:
    """Means over the known values; NaN where there are none."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(
            np.where(known, values, 0.0).sum(axis=axis) / known.sum(axis=axis), dtype=np.float64
        )


def constant_costs(costs: Sequence[float] | Floats, n: int) -> Floats:
    """Each model's mean cost for each of `n` queries, shape (n, n_models)."""
    return np.tile(np.asarray(costs, dtype=np.float64), (n, 1))
