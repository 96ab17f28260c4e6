"""RouteLLM: Learning to Route LLMs with Preference Data — causal LLM classifier. Ong et al., 2024. arXiv 2406.18665.

    p_weak = Σ_{s ≥ 4} softmax(logits of [[1]] … [[5]])[s],   w = 1 − p_weak

A decoder is taught to answer a question with one of five new tokens: the 1–5 rating that the weak model's answer would
get. It generates greedily up to six tokens; at the first that is a label, softmax over the five label logits *at that
step* gives w. Where none appears, w = 1: when in doubt, the strong model. Route to it iff w ≥ α, calibrated.

Needs: the text of the query, an artefact (adapter, label rows) and its base language model; labels to train on, torch
to train.
Returns: quality in [0, 1] and each model's mean cost in US dollars, shape (n_queries, n_models). Of two models the
strong one's quality *is* w and the weak one's 1 − w; of more, each weak model m has its own five labels and quality
p_m, and the strong one (highest mean score) 1 − max_m p_m.

Differs from the paper:
- The start is SmolLM2-135M-Instruct (any Llama folder works), not Llama-3-8B; adapters of rank 8 and the label rows
  learn, not all weights.
- Ratings are the table's scores, 1 + round(4·score), not a judge's; the prompts' words are ours.
- Classes (rating ≥ 4 or not) are balanced by leaving out rows of the larger one, as the reference does under the name
  of oversampling.

Laws: the emitted label is the argmax of the label logits; no label, w = 1; ordinary digits play no part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, tensor
from outcomes.causal_artefact import load_lm, save_lm
from outcomes.causal_lm import CausalLm
from outcomes.causal_training import Batch, CausalTraining, TrainedLm
from outcomes.learning_set import constant_costs, known_means, learning_set, replay_order, require_fitted
from outcomes.networks import softmax
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Array = NDArray[np.float32]

METHOD = Method(
    id="routellm-causal",
    title="RouteLLM: Learning to Route LLMs with Preference Data (causal LLM classifier)",
    year=2024,
    paper="arXiv 2406.18665",
    taxonomy="a1",
    contract="router",
    implementation="RouteLlmCausal",
    needs=frozenset({"text", "language-model", "artefact", "labels"}),
    aliases=("causal_llm",),
    evidence=(
        Evidence(
            "exact equivalence",
            "the emitted label is the argmax of its five logits; w is 1 minus their mass on 4 and 5",
            "tests/routers/test_routellm_causal.py::test_the_label_step",
        ),
        Evidence(
            "exact equivalence",
            "an untrained model, which never says a label, gives w = 1",
            "tests/routers/test_routellm_causal.py::test_no_label_is_the_strong_model",
        ),
        Evidence(
            "invariant",
            "a keyword decides the rating: after training w tells the classes apart with AUC > 0.95",
            "tests/routers/test_routellm_causal.py::test_it_learns_a_keyword",
        ),
        Evidence(
            "invariant",
            "training rows have as many ratings of 4 and 5 as below, for each weak model",
            "tests/routers/test_routellm_causal.py::test_balance",
        ),
    ),
    unverified="the paper's learning rate, batch and APGR figures are recalled; on the packaged SmolLM2-135M see "
    "docs/training.md for what was measured",
)

RATINGS = 5
ENOUGH = 4
STEPS = 6
SYSTEM = (
    "You predict how an expert would rate an AI assistant's answer to a question, "
    "from [[1]] (bad) to [[5]] (good)."
)
USER = "Question: {question}\n\nPrediction:"


@dataclass(kw_only=True, eq=False)
class RouteLlmCausal(CausalTraining):
    """Five-label generator of the weak model's rating."""

    def fit(self, outcomes: Outcomes) -> Self:
        """Train adapter and label rows. Raises `MethodError`, for a pool of one too."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        if len(learn.models) < 2:
            raise MethodError(f"{METHOD.id} routes between models; the table has one.")
        means = np.nan_to_num(known_means(learn.score), nan=-1.0)
        strong = int(means.argmax())
        weak = np.delete(np.arange(len(means)), strong)
        ratings = balanced(to_ratings(learn.score[:, weak]), learn.texts)
        kept = np.flatnonzero(~np.isnan(ratings).all(axis=1))
        if not len(kept):
            raise MethodError(f"{METHOD.id}: no weak model has both good and bad answers to learn from.")
        lm = CausalLm.load(self.start)
        before, after = framed(lm)
        ids = [
            [*before, *lm.question(text, self.max_tokens), *after] for text in (learn.texts[i] for i in kept)
        ]
        target = label_shares(ratings[kept])
        rng = np.random.default_rng(self.seed)
        centre = lm.head.mean(axis=0)
        rows = centre + 0.1 * lm.head.std() * rng.normal(size=(target.shape[1], lm.dimensions))
        trained = self.train(
            lm, ids, lambda at, batch: label_loss(target[at], batch), {"labels": rows.astype(np.float32)}
        )
        # From the sorted order to the listed one.
        place = np.argsort(learn.columns)
        self._keep(learn.models, trained, learn.model_costs(), int(place[strong]), place[weak])
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Win rates of the strong model and what they leave the others. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        enough = np.array([self.enough(text) for text in queries.texts]).reshape(-1, len(self.weak_))
        quality = np.empty((len(queries), len(self.models_)))
        quality[:, self.weak_] = enough
        quality[:, self.strong_] = 1 - enough.max(axis=1)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def enough(self, text: str) -> Floats:
        """Probability that each weak model's answer is rated at least 4, shape (n_weak,)."""
        logits, _ = self.label_step(text)
        if logits is None:
            return np.zeros(len(self.weak_))
        return np.asarray(softmax(logits)[:, ENOUGH - 1 :].sum(axis=1), dtype=np.float64)

    def label_step(self, text: str) -> tuple[Floats | None, int | None]:
        """Generate greedily until a label: its logits, shape (n_weak, 5), and which one it is; None without one."""
        lm, labels = self.trained_.lm, self.trained_.extra["labels"]
        asked = [*lm.question(text, self.max_tokens), *self._after]
        states, past = lm.read(asked, lm.opening(self._before))
        for _ in range(STEPS):
            said = states[-1] @ lm.head.T
            marks = (states[-1] @ labels.T).astype(np.float64)
            if marks.max() > said.max():
                return marks.reshape(len(self.weak_), RATINGS), int(marks.argmax())
            token = int(said.argmax())
            if token in lm.shape.ends:
                break
            states, past = lm.read([token], past)
        return None, None

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        order = np.array([self.strong_, *self.weak_], dtype=np.int64)
        save_lm(folder, manifest, self.trained_, self.costs_, {"order": order})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        kept = load_lm(folder, METHOD.id)
        router, models = cls(**arguments(cls, kept.manifest)), kept.manifest.models
        order = tensor(kept.tensors, "order", (len(models),)).astype(np.intp)
        trained = kept.trained()
        tensor(trained.extra, "labels", ((len(models) - 1) * RATINGS, trained.lm.dimensions))
        if sorted(order.tolist()) != list(range(len(models))):
            raise MethodError(f"{folder} does not name each of its models once.")
        router._keep(models, trained, kept.costs, int(order[0]), order[1:])
        return router

    def _keep(
        self, models: tuple[str, ...], trained: TrainedLm, costs: Floats, strong: int, weak: NDArray[np.intp]
    ) -> None:
        self.models_, self.trained_, self.costs_, self.strong_, self.weak_ = (
            models,
            trained,
            costs,
            strong,
            weak,
        )
        self._before, self._after = framed(trained.lm)


def framed(lm: CausalLm) -> tuple[list[int], list[int]]:
    """Token ids before and after the question."""
    before, after = lm.framed(SYSTEM, USER)
    return lm.tokens(before), lm.tokens(after)


def to_ratings(score: Floats) -> Floats:
    """Scores in [0, 1] as ratings 1 … 5; NaN stays NaN."""
    return np.asarray(1 + np.rint(4 * score), dtype=np.float64)


def balanced(ratings: Floats, texts: tuple[str, ...]) -> Floats:
    """`ratings` (n, n_weak) with, for each weak model, as many rows of at least 4 as below: those of the larger class
    that come last by a hash of their text are unknown (NaN)."""
    order = replay_order(texts)
    found = np.full_like(ratings, np.nan)
    for column in range(ratings.shape[1]):
        ordered = ratings[order, column]
        good = order[ordered >= ENOUGH]
        bad = order[ordered < ENOUGH]
        rows = np.concatenate([part[: min(len(good), len(bad))] for part in (good, bad)])
        found[rows, column] = ratings[rows, column]
    return found


def label_shares(ratings: Floats) -> Floats:
    """What a row's label token should be, as a distribution over the labels of all weak models, shape
    (n, 5·n_weak): one-hot for a pool of two; with more weak models each known rating has an equal share."""
    known = ~np.isnan(ratings)
    at = np.where(known, ratings, 1).astype(np.intp) - 1
    hot = np.eye(RATINGS)[at] * known[..., None]
    return np.asarray(hot.reshape(len(ratings), -1) / known.sum(axis=1, keepdims=True), dtype=np.float64)


def label_loss(shares: Floats, batch: Batch) -> torch.Tensor:
    """Next-token cross entropy of the label, over the vocabulary and the labels together."""
    import torch

    said = torch.nn.functional.linear(batch.last, batch.head.float())
    marks = torch.nn.functional.linear(batch.last, batch.extra["labels"])
    log_p = torch.log_softmax(torch.cat([said, marks], 1), 1)[:, said.shape[1] :]
    return -(torch.from_numpy(shares).float() * log_p).sum(1).mean()
