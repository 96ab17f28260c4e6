"""LLMRank: Understanding LLM Strengths for Model Routing. 2025. arXiv 2510.01234.

    u_m = s_m − λ·c_m;  ŝ = MLP(φ(q));  loss = mean_m (ŝ_m − u_m)² + w·KL(softmax(u/τ) ‖ softmax(ŝ/τ))

φ are features with names instead of an opaque embedding: kind of task, pattern of reasoning, complexity and syntax of
the prompt (`outcomes.prompt_features`, by rules), standardised on the training queries. `importance` tells what each
is worth. c is a cost over the mean cost of the dearest model. With `solver` a small language model tries the prompt
first and its signals are features too (`outcomes.proxy_solver`): a forward pass a query, in numpy.

Needs: the text of the query and an artefact; labels to train on; with `solver` that model's weights, also to serve.
Returns: quality ŝ cut to [0, 1] (a utility where λ > 0) and each model's mean cost in US dollars, shape (n_queries,
n_models).

Differs from the paper:
- Categorical features come from rules, not from a language model's reading of the prompt. The proxy solver is off by
  default; its signals are one greedy attempt's, there is no agreement among several.
- Widths, λ, τ and w are not known from the paper. Ours: w, epochs, rate and decay are the best of 20 settings on an
  inner split of llmrouter's *training* queries.

Laws: the gradient is the loss's; at ŝ = u it is 0; λ = 0 learns quality; a feature that never varies weighs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.causal_lm import CausalLm
from outcomes.learning_set import constant_costs, known_means, learning_set, require_fitted
from outcomes.network_router import NetworkTraining
from outcomes.networks import Network, softmax
from outcomes.prompt_features import NAMES, prompt_features
from outcomes.proxy_solver import SIGNALS, ProxySolver
from protocol.errors import ArtefactMismatch, MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Array = NDArray[np.floating[Any]]

METHOD = Method(
    id="llmrank",
    title="LLMRank: Understanding LLM Strengths for Model Routing",
    year=2025,
    paper="arXiv 2510.01234",
    taxonomy="a1",
    contract="router",
    implementation="LlmRank",
    needs=frozenset({"text", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the gradient is the derivative of the hybrid loss (central differences), 0 at ŝ = u",
            "tests/routers/test_llmrank.py::test_gradient_is_the_derivative",
        ),
        Evidence(
            "invariant",
            "a higher share of the oracle's utility than the best single model, on published tables",
            "tests/routers/test_llmrank.py::test_share_of_oracle_utility",
        ),
        Evidence(
            "invariant",
            "importance names the features that tell the models apart",
            "tests/routers/test_llmrank.py::test_importance_names_what_matters",
        ),
    ),
    unverified="read from summaries, which contradict each other on the loss (pointwise and listwise, as here, or "
    "reward and pairwise); λ, τ and widths unknown; 89.2 % of the oracle's utility was not reproduced",
)


@dataclass(kw_only=True, eq=False)
class LlmRank(NetworkTraining):
    """Ranks models by a prompt's named features. `price` λ; `temperature` τ; `listwise` w; `solver`: a folder or
    weights id of a small language model that tries prompts first, '' for none."""

    price: float = 0.0
    temperature: float = 0.2
    listwise: float = 1.0
    solver: str = ""
    epochs: int = 40
    rate: float = 5e-3

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the ranker. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        utility = utilities(learn.score, learn.cost_usd, self.price)
        raw = self.features(learn.texts)
        scale = raw.std(axis=0)
        # A feature that never varies tells nothing: scaled by 0 it stays out of training and of estimates.
        scaling = np.stack(
            [raw.mean(axis=0), np.divide(1, scale, out=np.zeros_like(scale), where=scale > 1e-9)]
        )
        network = self.trained(
            standardised(raw, scaling),
            len(learn.models),
            lambda rows, out: slope(out, utility[rows], self.temperature, self.listwise),
        )
        self._keep(learn.models, network.with_outputs(learn.columns), scaling, learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """ŝ of every query. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        quality = np.clip(self._scores(self.features(queries.texts)), 0.0, 1.0)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def importance(self, outcomes: Outcomes, *, seed: int = 0) -> dict[str, float]:
        """Permutation importance of every feature on `outcomes`, largest first: how much mean score of the choices is
        lost when the feature's column is shuffled. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        columns = [outcomes.models.index(name) for name in self.models_]
        score, raw = outcomes.score[:, columns], self.features(outcomes.queries.texts)
        rng, rows = np.random.default_rng(seed), np.arange(len(score))

        def earned(features: Floats) -> float:
            return float(np.nanmean(score[rows, self._scores(features).argmax(axis=1)]))

        whole, lost = earned(raw), {}
        for j, name in enumerate(self.names):
            shuffled = raw.copy()
            shuffled[:, j] = rng.permutation(raw[:, j])
            lost[name] = whole - earned(shuffled)
        return dict(sorted(lost.items(), key=lambda item: -item[1]))

    @property
    def slow(self) -> bool:
        """Whether a language model tries every prompt first (`protocol.routing.Slow`)."""
        return bool(self.solver)

    @property
    def names(self) -> tuple[str, ...]:
        """What each feature is."""
        return (*NAMES, *SIGNALS) if self.solver else NAMES

    def features(self, texts: Sequence[str]) -> Floats:
        """Features φ before scaling, shape (n_texts, n_features). Raises `MethodError` without the solver's weights."""
        if not self.solver:
            return prompt_features(texts)
        return np.concatenate([prompt_features(texts), self._proxy(texts)], axis=1)

    @cached_property
    def _proxy(self) -> ProxySolver:
        return ProxySolver(CausalLm.load(self.solver))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        told: dict[str, Any] = {"solver": Path(self.solver).name}
        if self.solver:
            told["solver_digest"] = self._proxy.lm.digest
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe() | told)
        own: dict[str, NDArray[Any]] = {"scaling": self.scaling_, "cost_usd": self.costs_}
        save_artefact(folder, manifest, {**self.network_.tensors(), **own})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        parameters, m = dict(manifest.parameters), len(manifest.models)
        digest = parameters.pop("solver_digest", None)
        router = cls(**arguments(cls, replace(manifest, parameters=parameters)))
        if router.solver and (Path(router.solver).name != router.solver or router._proxy.lm.digest != digest):
            raise ArtefactMismatch(f"{folder} was trained with another {router.solver}. Train anew.")
        network = Network.of(tensors, m)
        if network.inputs != len(router.names):
            raise MethodError(f"{folder} reads {network.inputs} features, there are {len(router.names)}.")
        scaling = tensor(tensors, "scaling", (2, network.inputs))
        router._keep(manifest.models, network, scaling, tensor(tensors, "cost_usd", (m,), finite=False))
        return router

    def _scores(self, raw: Floats) -> Floats:
        return np.asarray(self.network_(standardised(raw, self.scaling_)), dtype=np.float64)

    def _keep(self, models: tuple[str, ...], network: Network, scaling: Floats, costs: Floats) -> None:
        self.models_, self.network_, self.scaling_, self.costs_ = models, network, scaling, costs


def utilities(score: Floats, cost_usd: Floats, price: float) -> Floats:
    """Utility u of every cell, NaN where the score is unknown; an unknown cost counts as its model's mean."""
    means = known_means(cost_usd)
    dearest = np.nanmax(means) if np.isfinite(means).any() else 0.0
    if not price or not dearest > 0:
        return score
    cost = np.where(np.isnan(cost_usd), np.nan_to_num(means, nan=dearest), cost_usd)
    return score - price * cost / dearest


def slope(out: Array, utility: Floats, temperature: float, listwise: float) -> Floats:
    """Derivative of each row's loss at ŝ, shape (n, n_models); 0 for models of unknown utility."""
    known = ~np.isnan(utility)
    error = np.where(known, out - np.where(known, utility, 0.0), 0.0)
    wanted, found = (
        softmax(np.where(known, values / temperature, -np.inf)) for values in (np.nan_to_num(utility), out)
    )
    pointwise = 2 * error / known.sum(axis=1, keepdims=True)
    return np.asarray(pointwise + listwise * (found - wanted) / temperature, dtype=np.float64)


def standardised(raw: Floats, scaling: Floats) -> Floats:
    """(raw − mean) / deviation, cut at ten deviations: no prompt is so strange that one feature decides alone."""
    return np.asarray(np.clip((raw - scaling[0]) * scaling[1], -10, 10))
