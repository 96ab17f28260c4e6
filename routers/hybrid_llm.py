"""Hybrid LLM: Cost-Efficient and Quality-Aware Query Routing. Ding et al., 2024. arXiv 2404.14618.

    det:    y = 1[q(s_1) ≥ q(l_1)]                       first sample of the small and the large model
    prob:   y = (1/m²) Σ_i Σ_j 1[q(s_i) ≥ q(l_j)]         all pairs of samples
    trans:  y(t) = (1/m²) Σ_i Σ_j 1[q(s_i) ≥ q(l_j) − t],  t* = argmax_t (1/N²) Σ_{i,j} |y_i(t) − y_j(t)|

An encoder reads the query and predicts p = P(the small model's answer is as good as the large one's), trained on y by
cross entropy of two logits against [y, 1 − y]; the small model answers iff p ≥ τ. t* spreads the labels out where the
small model is almost never as good.

Needs: the text of the query and an artefact (encoder, head); scores to train on, torch to train.
Returns: quality p of each smaller model and 1 of the large one, the yardstick, in [0, 1], and each model's mean cost
in US dollars, shape (n_queries, n_models). The large model's lead over the small one is 1 − p.

Differs from the paper:
- The start is all-MiniLM-L6-v2 with mean pooling (any BERT folder works), not DeBERTa-v3-large (released code: the
  hidden state of a prefix token).
- The large model is the one named, or that of the highest mean score; in a pool of more than two every other one has
  its own p against it.
- Outcome tables have one score a model and query. By default it is one sample, whose prob label is the det label;
  with `samples` = m > 1 a score is the share of m right answers, and labels count all m² pairs. In `trans` t is sought
  among the differences that occur (0 if none spreads labels more); labels move up, so calibrate τ, never use ½.

Laws: m = 1 makes prob det; t = 0 makes trans prob; y(t) never falls with t and is 1 in the end; for binary labels the
spread is 2p(1 − p).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

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

METHOD = Method(
    id="hybrid-llm",
    title="Hybrid LLM: Cost-Efficient and Quality-Aware Query Routing",
    year=2024,
    paper="arXiv 2404.14618",
    taxonomy="a1",
    contract="router",
    implementation="HybridLlm",
    needs=frozenset({"text", "encoder", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "m = 1 makes prob det; t = 0 makes trans prob; pairs and t* equal brute force",
            "tests/routers/test_hybrid_llm.py::test_labels_equal_brute_force",
        ),
        Evidence(
            "invariant",
            "y(t) never falls with t and ends at 1 with no spread; binary labels spread by 2p(1 − p)",
            "tests/routers/test_hybrid_llm.py::test_relaxation_laws",
        ),
        Evidence(
            "invariant",
            "where the small model is almost never as good, det labels are constant and trans still ranks queries",
            "tests/routers/test_hybrid_llm.py::test_relaxation_keeps_ranking",
        ),
    ),
    unverified="t* and the experiment table are recalled; the paper's own code and its samples were not obtainable",
)

GRID = 64


@dataclass(kw_only=True, eq=False)
class HybridLlm(EncoderTraining):
    """Is the small model good enough? `labels` as in the paper; `samples` m that a score stands for; `large`: the
    yardstick, '' for the model of the highest mean score."""

    labels: Literal["det", "prob", "trans"] = "trans"
    samples: int = 1
    large: str = ""

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the encoder. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        names = sorted(learn.models)
        if len(names) < 2 or (self.large and self.large not in names):
            raise MethodError(
                f"{METHOD.id} needs a pool of two or more with {self.large or 'a large model'}."
            )
        best = int(np.nanargmax(known_means(learn.score)))
        large = names.index(self.large) if self.large else best
        others = [j for j in range(len(names)) if j != large]
        samples = sampled(learn.score, self.samples)
        columns = [self._labels(samples[:, j], samples[:, large]) for j in others]
        y = np.stack([label for label, _ in columns], axis=1)
        target = np.stack([y, 1 - y], axis=-1)
        found = self.train(
            self.starting_encoder(),
            learn.texts,
            2 * len(others),
            lambda rows, out, _: soft_cross_entropy(target[rows], out.view(len(rows), -1, 2)),
        )
        # Outputs run over the smaller models by name; artefacts have them in the order listed.
        order = [others.index(names.index(name)) for name in learn.models if name != names[large]]
        outputs = np.array([2 * k + side for k in order for side in (0, 1)], dtype=np.intp)
        relaxation = np.array([columns[k][1] for k in order])
        at = learn.models.index(names[large])
        self._keep(learn.models, found.with_outputs(outputs), learn.model_costs(), at, relaxation)
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """P of every smaller model. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        logits = self.encoder_(queries.texts).reshape(len(queries), len(self.models_) - 1, 2)
        quality = np.insert(softmax(logits)[..., 0], self.large_, 1.0, axis=1)
        return Estimate(
            self.models_, np.asarray(quality, dtype=np.float64), constant_costs(self.costs_, len(queries))
        )

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        own = {"large": np.array([self.large_]), "relaxation": self.relaxation_}
        save_encoder(folder, manifest, self.encoder_, self.costs_, own)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        kept = load_encoder(folder, METHOD.id)
        router, m = cls(**arguments(cls, kept.manifest)), len(kept.manifest.models)
        large = int(tensor(kept.tensors, "large", (1,))[0])
        if not 0 <= large < m:
            raise MethodError(f"{folder} has its large model at {large}, of {m}.")
        relaxation = tensor(kept.tensors, "relaxation", (m - 1,))
        router._keep(kept.manifest.models, kept.trained(2 * (m - 1)), kept.costs, large, relaxation)
        return router

    def _labels(self, small: Floats, large: Floats) -> tuple[Floats, float]:
        """Labels of a pair from samples (n_queries, m) each, and the t they were made with."""
        if self.labels == "det":
            return match_share(small[:, :1], large[:, :1]), 0.0
        t = best_relaxation(small, large) if self.labels == "trans" else 0.0
        return match_share(small, large, t), t

    def _keep(
        self, models: tuple[str, ...], encoder: TrainedEncoder, costs: Floats, large: int, relaxation: Floats
    ) -> None:
        self.models_, self.encoder_, self.costs_ = models, encoder, costs
        self.large_, self.relaxation_ = large, relaxation


def sampled(score: Floats, m: int) -> Floats:
    """Scores (n, n_models) as m samples each, (n, n_models, m): for m > 1 a score is the share of them that is 1. Which
    come first is decided by no table: the right ones are spread evenly."""
    if m == 1:
        return score[..., None]
    steps = np.arange(1, m + 1)
    right = np.round(score * m)[..., None]
    filled = np.floor(steps * right / m) - np.floor((steps - 1) * right / m)
    return np.asarray(np.where(np.isnan(right), np.nan, filled), dtype=np.float64)


def match_share(small: Floats, large: Floats, t: float = 0.0) -> Floats:
    """y(t): the share of all pairs of samples with q(s_i) ≥ q(l_j) − t. Shapes (n, m) → (n,); NaN where either is
    unknown."""
    share = (small[:, :, None] >= large[:, None, :] - t).mean(axis=(1, 2))
    unknown = np.isnan(small).any(axis=1) | np.isnan(large).any(axis=1)
    return np.asarray(np.where(unknown, np.nan, share), dtype=np.float64)


def spread(y: Floats) -> float:
    """(1/N²) Σ_{i,j} |y_i − y_j| of the known labels, by sorting."""
    known = np.sort(y[~np.isnan(y)])
    n = len(known)
    return float(2 * ((2 * np.arange(1, n + 1) - n - 1) * known).sum() / n**2) if n else 0.0


def best_relaxation(small: Floats, large: Floats) -> float:
    """t* ≥ 0: of up to `GRID` quantiles of the positive differences q(l) − q(s), and 0, the smallest that spreads
    labels most."""
    gaps = (large[:, None, :] - small[:, :, None]).ravel()
    gaps = gaps[gaps > 0]
    grid: list[float] = []
    if len(gaps):
        grid = np.unique(np.quantile(gaps, np.linspace(0, 1, GRID), method="nearest")).tolist()
    return max([0.0, *grid], key=lambda t: round(spread(match_share(small, large, t)), 12))
