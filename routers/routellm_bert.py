"""RouteLLM: Learning to Route LLMs with Preference Data — BERT classifier. Ong et al., 2024. arXiv 2406.18665.

    w = softmax(f(q))[0],  classes in order: strong wins, tie, weak wins

A sequence classifier reads the query and predicts how a battle between the strong and the weak model would end; a
tie counts for the weak one, which is cheaper. Route to the strong model iff w ≥ α, calibrated.

Needs: the text of the query and an artefact (encoder, head); labels to train on, torch to train.
Returns: quality in [0, 1] and each model's mean cost in US dollars, shape (n_queries, n_models). Of two models the
strong one's quality *is* w and the weak one's 1 − w; of more, each model's mean over its battles with the others.

Differs from the paper:
- The start is all-MiniLM-L6-v2 with mean pooling (any BERT folder works), not a BERT of base size read at [CLS].
- Battles come from outcome tables (higher score wins, equal scores tie) instead of Arena votes between tiers. A pool
  of more than two models has three classes for every pair; the strong one of a pair has the higher mean score.

Laws: adding a constant to a pair's logits leaves w; more weight on a tie lowers w; w = softmax[0] exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, tensor
from outcomes.encoder import TrainedEncoder
from outcomes.encoder_artefact import load_encoder, save_encoder
from outcomes.encoder_losses import soft_cross_entropy
from outcomes.encoder_training import EncoderTraining
from outcomes.learning_set import constant_costs, known_means, learning_set, require_fitted
from outcomes.networks import softmax
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Indices = NDArray[np.intp]

METHOD = Method(
    id="routellm-bert",
    title="RouteLLM: Learning to Route LLMs with Preference Data (BERT classifier)",
    year=2024,
    paper="arXiv 2406.18665",
    taxonomy="a1",
    contract="router",
    implementation="RouteLlmBert",
    needs=frozenset({"text", "encoder", "artefact", "labels"}),
    aliases=("bert",),
    evidence=(
        Evidence(
            "exact equivalence",
            "w is softmax[0]; a constant on all logits leaves it; a heavier tie lowers it",
            "tests/routers/test_routellm_bert.py::test_win_rate_laws",
        ),
        Evidence(
            "exact equivalence",
            "labels are strong wins, tie, weak wins in that order, unknown where a score is",
            "tests/routers/test_routellm_bert.py::test_battle_classes",
        ),
        Evidence(
            "invariant",
            "it learns on which queries the strong model is needed: APGR far above a random router's 0.5",
            "tests/routers/test_routellm_bert.py::test_it_learns_who_needs_the_strong_model",
        ),
    ),
    unverified="the paper's encoder, hyper-parameters and APGR figures are recalled; its Arena battles are not used",
)


@dataclass(kw_only=True, eq=False)
class RouteLlmBert(EncoderTraining):
    """Three-class classifier of battles."""

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the encoder on all battles of the table. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        pairs = ranked_pairs(learn.score, METHOD.id)
        target = battle_classes(learn.score, pairs)
        found = self.train(
            self.starting_encoder(),
            learn.texts,
            3 * len(pairs),
            lambda rows, out, _: soft_cross_entropy(target[rows], out.view(len(rows), -1, 3)),
        )
        # `columns` leads from the listed order to the sorted one; a pair needs the way back.
        self._keep(learn.models, found, learn.model_costs(), np.argsort(learn.columns)[pairs])
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Win rates. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        w = win_rates(self.encoder_(queries.texts))
        quality = np.zeros((len(queries), len(self.models_)))
        for k, (strong, weak) in enumerate(self.pairs_):
            quality[:, strong] += w[:, k]
            quality[:, weak] += 1 - w[:, k]
        quality /= len(self.models_) - 1
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        save_encoder(folder, manifest, self.encoder_, self.costs_, {"pairs": self.pairs_.astype(np.int64)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        kept = load_encoder(folder, METHOD.id)
        router, models = cls(**arguments(cls, kept.manifest)), kept.manifest.models
        pairs = tensor(kept.tensors, "pairs", (None, 2)).astype(np.intp)
        wanted = {frozenset(pair) for pair in combinations(range(len(models)), 2)}
        if {frozenset(pair) for pair in pairs.tolist()} != wanted or len(pairs) != len(wanted):
            raise MethodError(f"{folder} does not hold every pair of its models once.")
        router._keep(models, kept.trained(3 * len(pairs)), kept.costs, pairs)
        return router

    def _keep(self, models: tuple[str, ...], encoder: TrainedEncoder, costs: Floats, pairs: Indices) -> None:
        self.models_, self.encoder_, self.costs_, self.pairs_ = models, encoder, costs, pairs


def ranked_pairs(score: Floats, method: str) -> Indices:
    """All pairs (strong, weak) of columns of `score`, shape (n_pairs, 2): the strong one has the higher mean, of equal
    means the first. Raises `MethodError` for a pool of one."""
    if score.shape[1] < 2:
        raise MethodError(f"{method} routes between models; the table has one.")
    order = np.argsort(-np.nan_to_num(known_means(score), nan=-1.0), kind="stable")
    return np.array(list(combinations(order.tolist(), 2)), dtype=np.intp)


def battle_classes(score: Floats, pairs: Indices) -> Floats:
    """One-hot ends of every pair's battle on every query, shape (n_queries, n_pairs, 3): strong wins, tie, weak wins.
    NaN where either score is unknown."""
    strong, weak = score[:, pairs[:, 0]], score[:, pairs[:, 1]]
    ends = np.stack([strong > weak, strong == weak, strong < weak], axis=-1).astype(np.float64)
    return np.where(np.isnan(strong + weak)[..., None], np.nan, ends)


def win_rates(outputs: Floats) -> Floats:
    """W of every pair from its three logits: outputs (n, 3·n_pairs) → (n, n_pairs)."""
    classes = outputs.reshape(len(outputs), outputs.shape[1] // 3, 3)
    return np.asarray(softmax(classes)[..., 0], dtype=np.float64)
