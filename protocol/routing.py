"""Routing's vocabulary: queries, estimates of quality and cost, and the Protocols of those who make and use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Estimate",
    "Explaining",
    "Feedback",
    "OnlineRouter",
    "Outcomes",
    "Policy",
    "Queries",
    "Router",
    "Slow",
]


@dataclass(frozen=True, slots=True)
class Queries:
    """Texts to route, with their unit-length embeddings, shape (n_queries, dimensions), for methods that need
    them."""

    texts: Sequence[str]
    embeddings: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a router believes: `quality` in [0, 1] and `cost_usd` (US dollars a query), both (n_queries, n_models),
    columns in the order of `models`."""

    models: tuple[str, ...]
    quality: NDArray[np.float64]
    cost_usd: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Feedback:
    """What became of one routed query: `model` answered it, with `score` in [0, 1] at `cost_usd` US dollars in
    `latency_s` seconds. `queries` holds that one query. Unknown cost or latency is NaN."""

    queries: Queries
    model: str
    score: float
    cost_usd: float = float("nan")
    latency_s: float = float("nan")


class Outcomes(Protocol):
    """What learning runs on: graded answers of models to queries, as matrices with NaN where nothing was measured."""

    @property
    def models(self) -> tuple[str, ...]: ...

    @property
    def queries(self) -> Queries: ...

    @property
    def categories(self) -> Sequence[str]:
        """What each query belongs to (a benchmark, a task), '' where nobody said; one a query."""
        ...

    @property
    def score(self) -> NDArray[np.float64]:
        """Shape (n_queries, n_models), in [0, 1]."""
        ...

    @property
    def cost_usd(self) -> NDArray[np.float64]:
        """Shape (n_queries, n_models), US dollars."""
        ...


class Router(Protocol):
    """Estimates every model's quality and cost for a query.

    Laws: `fit` returns self and changes nothing else; `estimate` writes nothing, is the same for a batch as for its
    queries one by one, and permuting the models permutes its columns; `load(save(r))` estimates as `r` does.
    """

    def fit(self, outcomes: Outcomes) -> Self: ...

    def estimate(self, queries: Queries) -> Estimate: ...

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...


class OnlineRouter(Router, Protocol):
    """A router that goes on learning from what it caused. `observe` is the only thing that changes it after `fit`."""

    def observe(self, feedback: Feedback) -> None: ...


@runtime_checkable
class Explaining(Protocol):
    """A router that can say what an estimate rests on."""

    def reasons(self, queries: Queries) -> Mapping[str, Any]:
        """The facts behind the estimate of one query, as JSON values: ids, scores, weights; never a stored text."""
        ...


@runtime_checkable
class Slow(Protocol):
    """A router whose estimates may take tens of milliseconds, which are not the event loop's."""

    @property
    def slow(self) -> bool:
        """Whether those of this one, as it is set up, do."""
        ...


class Policy(Protocol):
    """Turns an estimate into a choice."""

    def choose(self, estimate: Estimate) -> NDArray[np.intp]:
        """Index into `estimate.models` for each query, shape (n_queries,)."""
        ...
