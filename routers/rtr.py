"""Route-To-Reason: Route to Reason: Adaptive Routing for LLM and Reasoning Strategy Selection. 2025. arXiv 2505.19435.

    x = [E(model m) ; E(strategy s) ; E(q) ; id_m ; id_s];  a = σ(MLP_a(x));  l = length(MLP_l(x))
    choose the pair argmax_{m,s} a − λ·l

Two networks read the query beside a pair of model and reasoning strategy (direct, chain of thought, …): one predicts
whether the answer will be right (binary cross entropy), the other how long it gets. A pair is a name of the pool,
`model::strategy`; a name without `::` is a model asked in one way only. The length predicted is the answer's cost,
which is its length at the model's price: so this router's costs depend on the query.

Needs: embeddings; an artefact; labels and costs of every pair.
Returns: quality a in [0, 1] and cost l in US dollars, shape (n_queries, n_pairs).

Differs from the paper:
- Length is the recorded cost over the pair's mean cost, log(1 + ·), by least squares, scaled back so that each pair's
  mean is right; raw length is ruled by the models that write the most. `faithful=True`: softplus and squared error of
  the raw cost, over the pool's mean cost so that it has a unit.
- One logit for two: the same model. The ids enter as one-hot columns: an embedding table before a linear layer is one.
- E of models and strategies is of texts given to `chorus train --descriptions`; without them only the ids speak, and
  with one strategy its columns, being constant, are left out.
- Trained for a fixed number of epochs (released: stopped early on the test split).

Laws: λ = 0 is argmax a, λ → ∞ the shortest; with one strategy and no descriptions it is a network a query and model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.learning_set import known_means, learning_set, query_vectors, require_fitted
from outcomes.network_router import NetworkTraining
from outcomes.networks import Network, sigmoid, tagged
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Array = NDArray[np.floating[Any]]

METHOD = Method(
    id="rtr",
    title="Route to Reason: Adaptive Routing for LLM and Reasoning Strategy Selection",
    year=2025,
    paper="arXiv 2505.19435",
    taxonomy="a1",
    contract="router",
    implementation="Rtr",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "λ = 0 is argmax a, λ = ∞ the shortest; one strategy and no descriptions: a is a network a model",
            "tests/routers/test_rtr.py::test_one_strategy_is_a_network_a_model",
        ),
        Evidence(
            "exact equivalence",
            "the input holds the query, both descriptions and both ids, and nothing else",
            "tests/routers/test_rtr.py::test_the_input_is_the_papers",
        ),
        Evidence(
            "invariant",
            "it learns which queries a strategy helps and which get long",
            "tests/routers/test_rtr.py::test_it_learns_when_reasoning_pays",
        ),
    ),
    unverified="the decision rule is from summaries (the released code ends at the table), as is how length is scaled "
    "in it; the paper's figures were not reproduced: no table of models × strategies is here",
)

BETWEEN = "::"


@dataclass(kw_only=True, eq=False)
class Rtr(NetworkTraining):
    """Right or wrong, and how long. `described`: vector of every described model and strategy; `faithful`: raw
    lengths."""

    described: Mapping[str, Floats] = field(default_factory=dict, repr=False)
    faithful: bool = False
    batch: int = 32
    decay: float = 0.05

    def fit(self, outcomes: Outcomes) -> Self:
        """Train both networks on every known (query, pair). Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        tags = pair_tags(sorted(learn.models), self.described)
        known = ~np.isnan(learn.score)
        right = learn.score[known][:, None]
        correct = self.trained_on_pairs(
            learn.vectors, tags, known, lambda rows, out: sigmoid(out) - right[rows]
        )
        unit = known_means(learn.cost_usd)
        if self.faithful:
            unit = np.full_like(unit, np.nanmean(learn.cost_usd) if np.isfinite(unit).any() else np.nan)
        # A pair without costs, or that costs nothing, has no length to learn from; its cost is its mean.
        length = np.where(unit > 0, learn.cost_usd / np.where(unit > 0, unit, 1.0), 1.0)
        known = ~np.isnan(length)
        wanted = (length if self.faithful else np.log1p(length))[known][:, None]
        slope = _softplus_slope if self.faithful else _square_slope
        network = self.trained_on_pairs(
            learn.vectors, tags, known, lambda rows, out: slope(out, wanted[rows])
        )
        estimated = self._lengths(tagged(network, learn.vectors, tags))
        scale = unit if self.faithful else unit / known_means(np.where(known, estimated, np.nan))
        self._keep(learn.models, correct, network, tags[learn.columns], learn.listed(scale))
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """The routing table of every query. Raises `MethodError` before `fit`, and for embeddings of another size."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, self.correct_.inputs - self.tags_.shape[1], METHOD.id)
        quality = np.asarray(sigmoid(tagged(self.correct_, vectors, self.tags_)), dtype=np.float64)
        cost = self._lengths(tagged(self.length_, vectors, self.tags_)) * self.scale_
        return Estimate(self.models_, quality, np.asarray(cost, dtype=np.float64))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        length = {f"length.{name}": value for name, value in self.length_.tensors().items()}
        own: dict[str, NDArray[Any]] = {"tags": self.tags_, "cost_usd": self.scale_}
        tensors = {**self.correct_.tensors(), **length, **own}
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        save_artefact(folder, manifest, tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        tags = tensor(tensors, "tags", (m, None)).astype(np.float64)
        of_length = {
            name.removeprefix("length."): value
            for name, value in tensors.items()
            if name.startswith("length.")
        }
        correct, length = Network.of(tensors, 1), Network.of(of_length, 1)
        if {len(correct.layers), len(length.layers)} != {2} or correct.inputs != length.inputs:
            raise MethodError(f"{folder} does not hold two networks of one shape.")
        scale = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, correct, length, tags, scale)
        return router

    def _lengths(self, out: Array) -> Array:
        """Lengths, in units of the mean, of the second network's outputs."""
        return np.asarray(np.logaddexp(0, out) if self.faithful else np.expm1(np.maximum(out, 1e-3)))

    def _keep(
        self, models: tuple[str, ...], correct: Network, length: Network, tags: Floats, scale: Floats
    ) -> None:
        self.models_, self.correct_, self.length_ = models, correct, length
        self.tags_, self.scale_ = tags, scale


def pair_tags(pairs: Sequence[str], described: Mapping[str, Floats]) -> Floats:
    """What stands beside the query for every pair: descriptions of model and strategy, where there are any, and their
    ids. Shape (n_pairs, n_columns)."""
    models, strategies = zip(*(pair.partition(BETWEEN)[::2] for pair in pairs), strict=True)
    columns = []
    for names in (models, strategies):
        known = sorted(set(names))
        if names is strategies and len(known) == 1:
            continue
        size = max((len(described[name]) for name in known if name in described), default=0)
        texts = [described.get(name, np.zeros(size)) for name in names]
        columns += [np.array(texts).reshape(len(names), size), np.array(names)[:, None] == np.array(known)]
    return np.asarray(np.concatenate(columns, axis=1), dtype=np.float64)


def _square_slope(out: Array, wanted: Floats) -> Array:
    return 2 * (out - wanted)


def _softplus_slope(out: Array, wanted: Floats) -> Array:
    """Derivative of (softplus(out) − wanted)²."""
    return np.asarray(2 * (np.logaddexp(0, out) - wanted) * sigmoid(out))
