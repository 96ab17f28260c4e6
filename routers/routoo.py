"""Routoo: Learning to Route to Large Language Models Effectively. Mohammadshahi, Shaikh and Yazdani, 2024.
arXiv 2401.13979.

    h(q) = last-token state of a language model;  ŝ(q, m) = σ(u·tanh(P·h(q) − v_m) + b_m)
    universe: greedily add argmax_m Σ_q max(covered(q), s(q, m)) until K models

The query is read once; each model is an embedding v_m. Training is cross entropy of ŝ with the scores. The cost-aware
selector, most Σŝ for a budget B over a batch, is `outcomes.batch_assignment.upgrade_choice`: the ratio rule, spending
what is left on upgrades along each query's (cost, ŝ) hull.

Needs: the text of the query, an artefact (adapter, head) and its base language model; labels to train on, torch to
train.
Returns: quality ŝ in [0, 1] and each model's mean cost in US dollars, shape (n_queries, n_models); with `universe` K
only the K models of the universe.

Differs from the paper:
- SmolLM2-135M-Instruct with adapters of rank 8 (any Llama folder works), not Mistral-7B; no synthetic questions.
- Taken literally, a linear layer on h(q) − v_m makes the order of models the same for every query, and routing only
  happens through cost. tanh before it is our reading, for the gains reported on specialists; `faithful=True` leaves
  it out. A score in (0, 1) is a soft label.
- b_m starts at the logit of m's mean score and u at zero, so that the untrained start is the query-independent
  predictor: whatever training adds comes from reading the query.

Laws: one reading of the query whatever the pool; linear: the order of models is one for all queries; the universe's
coverage never falls and is at least 1 − 1/e of the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, tensor
from outcomes.causal_artefact import load_lm, save_lm
from outcomes.causal_lm import CausalLm
from outcomes.causal_training import Batch, CausalTraining, TrainedLm
from outcomes.encoder_losses import multi_label
from outcomes.learning_set import constant_costs, known_means, learning_set, require_fitted
from outcomes.networks import logits, sigmoid
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="routoo",
    title="Routoo: Learning to Route to Large Language Models Effectively",
    year=2024,
    paper="arXiv 2401.13979",
    taxonomy="a1",
    contract="router",
    implementation="Routoo",
    needs=frozenset({"text", "language-model", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the language model reads a query once, whatever the number of models",
            "tests/routers/test_routoo.py::test_one_reading_a_query",
        ),
        Evidence(
            "invariant",
            "the universe's coverage never falls and is at least 1 − 1/e of the brute-force best",
            "tests/routers/test_routoo.py::test_universe_is_near_the_best",
        ),
        Evidence(
            "exact equivalence",
            "the literal linear layer ranks models alike for every query; with tanh rankings vary",
            "tests/routers/test_routoo.py::test_only_an_interaction_routes_by_query",
        ),
        Evidence(
            "invariant",
            "no budget is exceeded, an infinite one gives argmax ŝ, and the value is within an upgrade of the LP's",
            "tests/routers/test_routoo.py::test_selector_and_its_bound",
        ),
        Evidence(
            "invariant",
            "trained, it beats the query-independent predictor (its own start) in log-loss",
            "tests/routers/test_routoo.py::test_it_learns_who_can",
        ),
    ),
    unverified="loss, optimiser and any non-linearity of the paper's head were not seen; its MMLU figures were not "
    "reproduced; on the packaged SmolLM2-135M see docs/training.md for what was measured",
)

WIDTH = 64


@dataclass(kw_only=True, eq=False)
class Routoo(CausalTraining):
    """Scores from a language model's state and an embedding a model. `universe`: keep the K models that cover the
    training queries best (0: all)."""

    universe: int = 0
    faithful: bool = False

    def fit(self, outcomes: Outcomes) -> Self:
        """Choose the universe and train. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        kept = np.sort(cover(learn.score, self.universe or len(learn.models)))
        score = learn.score[:, kept]
        lm = CausalLm.load(self.start)
        target = np.clip(score, 0.0, 1.0)
        trained = self.train(
            lm,
            [self._ids(lm, text) for text in learn.texts],
            lambda rows, batch: multi_label(target[rows], self._scores(batch)),
            self._start(lm, np.nan_to_num(known_means(score), nan=0.5)),
        )
        # Models of the universe in the order they were listed in.
        listed = [int(np.flatnonzero(kept == column)[0]) for column in learn.columns if column in kept]
        names = sorted(learn.models)
        extra = {**trained.extra, **{name: trained.extra[name][listed] for name in ("models", "bias")}}
        models = tuple(names[kept[i]] for i in listed)
        costs = known_means(learn.cost_usd)[kept][listed]
        self._keep(models, TrainedLm(trained.lm, extra, trained.losses), costs)
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """ŝ of every model. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        lm, head = self.trained_.lm, self.trained_.extra
        states = [lm.read(self._ids(lm, text))[0][-1] for text in queries.texts]
        quality = scores(np.array(states).reshape(-1, lm.dimensions), head, linear=self.faithful)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        save_lm(folder, manifest, self.trained_, self.costs_)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        kept = load_lm(folder, METHOD.id)
        router, models = cls(**arguments(cls, kept.manifest)), kept.manifest.models
        trained, m = kept.trained(), len(kept.manifest.models)
        shapes = {
            "project": (WIDTH, trained.lm.dimensions),
            "models": (m, WIDTH),
            "weight": (WIDTH,),
            "bias": (m,),
        }
        for name, shape in shapes.items():
            tensor(trained.extra, name, shape)
        router._keep(models, trained, kept.costs)
        return router

    def _keep(self, models: tuple[str, ...], trained: TrainedLm, costs: Floats) -> None:
        self.models_, self.trained_, self.costs_ = models, trained, costs

    def _ids(self, lm: CausalLm, text: str) -> list[int]:
        """The query's tokens and a line's end, whose state is h(q): never none, even of an empty text."""
        return [*lm.question(text, self.max_tokens), *lm.tokens("\n")]

    def _start(self, lm: CausalLm, means: Floats) -> dict[str, NDArray[np.float32]]:
        rng = np.random.default_rng(self.seed)
        found = {
            "project": rng.normal(size=(WIDTH, lm.dimensions)) * lm.dimensions**-0.5,
            "models": rng.normal(size=(len(means), WIDTH)),
            "weight": np.zeros(WIDTH),
            "bias": logits(means, 0.01),
        }
        return {name: value.astype(np.float32) for name, value in found.items()}

    def _scores(self, batch: Batch) -> torch.Tensor:
        """Logits of ŝ, shape (n, n_models)."""
        import torch

        h = batch.last / batch.last.square().mean(1, keepdim=True).add(1e-6).sqrt()
        apart = (h @ batch.extra["project"].T)[:, None] - batch.extra["models"]
        return (apart if self.faithful else torch.tanh(apart)) @ batch.extra["weight"] + batch.extra["bias"]


def scores(states: NDArray[np.float32], head: Mapping[str, NDArray[Any]], *, linear: bool = False) -> Floats:
    """ŝ of `states`, shape (n, dimensions), for every model of `head`: (n, n_models)."""
    h = states.astype(np.float64)
    h = h / np.sqrt((h**2).mean(axis=1, keepdims=True) + 1e-6)
    apart = (h @ head["project"].T.astype(np.float64))[:, None] - head["models"]
    return np.asarray(sigmoid((apart if linear else np.tanh(apart)) @ head["weight"] + head["bias"]))


def cover(score: Floats, k: int) -> NDArray[np.intp]:
    """The universe constructor: `k` columns of `score` (n, n_models), in the order they were added, each raising
    Σ_q max_m s(q, m) most. Unknown scores cover nothing; of equal ones the first is taken."""
    known = np.nan_to_num(score, nan=0.0)
    covered = np.zeros(len(known))
    found: list[int] = []
    while len(found) < min(k, known.shape[1]):
        gain = np.maximum(known, covered[:, None]).sum(axis=0)
        gain[found] = -np.inf
        found.append(int(gain.argmax()))
        covered = np.maximum(covered, known[:, found[-1]])
    return np.array(found, dtype=np.intp)
