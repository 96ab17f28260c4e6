"""SelectLLM: Query-Aware Efficient Selection Algorithm for Large Language Models. Maurya, Srivatsa, Kochmar, 2024.
arXiv 2408.08545.

    c_k = σ(encoder(q)_k), label_k = c_k > 0.5;  members(q) = the s of highest c;  answer = argmax_a Σ_k c_k·count_k(a)

A multi-label classifier of "which models can solve this" chooses a small subset of models, whose sampled answers vote
weighted by confidence. `members` gives the subset: `labelled-max-conf` takes the s surest of the models labelled able
(the surest one if none is), `max-conf` and `weighted-max-conf` (default) the s surest; `vote` is the weighted vote.
`estimate` gives the confidences, whose argmax is the method at s = 1.

Needs: the text of the query and an artefact (encoder, head); labels to train on, torch to train.
Returns: quality c in [0, 1] and each model's mean cost in US dollars, shape (n_queries, n_models).

Differs from the paper:
- The start is all-MiniLM-L6-v2 with mean pooling (any BERT folder works), not RoBERTa-base.
- `Outcomes.score` is the label; a score between 0 and 1 is a soft one. s is given, not tuned on a development set.
- Serving a request asks one model, the argmax; the subset and its vote are for callers that hold sampled answers.

Laws: s = all models of equal confidence is the plain majority vote; s = 1 is the argmax; a one-hot confidence is that
model's majority answer; scaling all confidences changes no vote.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from outcomes.encoder_artefact import EncoderRouter
from outcomes.encoder_losses import multi_label
from outcomes.learning_set import constant_costs, learning_set, require_fitted
from outcomes.networks import sigmoid
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="selectllm",
    title="SelectLLM: Query-Aware Efficient Selection Algorithm for Large Language Models",
    year=2024,
    paper="arXiv 2408.08545",
    taxonomy="a1",
    contract="router",
    implementation="SelectLlm",
    needs=frozenset({"text", "encoder", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "s = all with equal confidence is the plain majority; one-hot confidence is that model's majority; s = 1 "
            "is the argmax; scale changes nothing",
            "tests/routers/test_selectllm.py::test_vote_limits",
        ),
        Evidence(
            "invariant",
            "the confidence-chosen subset of size s votes at least as well as a random subset of that size",
            "tests/routers/test_selectllm.py::test_chosen_subset_beats_a_random_one",
        ),
    ),
    unverified="LabelledMaxConf, MaxConf and how s is set are recalled; the authors' policies are not public",
)


@dataclass(kw_only=True, eq=False)
class SelectLlm(EncoderRouter):
    """Multi-label encoder. `size` s of the subset; `policy` choosing it."""

    method = METHOD.id

    size: int = 3
    policy: Literal["labelled-max-conf", "max-conf", "weighted-max-conf"] = "weighted-max-conf"

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the classifier. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        found = self.train(
            self.starting_encoder(),
            learn.texts,
            len(learn.models),
            lambda rows, out, _: multi_label(learn.score[rows], out),
        )
        self._keep(learn.models, found.with_outputs(learn.columns), learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Confidences. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        quality = np.asarray(sigmoid(self.encoder_(queries.texts)), dtype=np.float64)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def members(self, confidence: Floats) -> NDArray[np.bool_]:
        """Who answers together, by `confidence` (n_queries, n_models): same shape, one to s models a query. Of models
        of equal confidence all or none are in, where that keeps within s; else the first-listed."""
        rank = np.argsort(np.argsort(-confidence, axis=1, kind="stable"), axis=1, kind="stable")
        chosen = rank < self.size
        if self.policy == "labelled-max-conf":
            chosen &= (confidence > 0.5) | (rank == 0)
        return np.asarray(chosen, dtype=np.bool_)

    def vote(self, confidence: Floats, answers: Sequence[Sequence[str | None]]) -> str | None:
        """The subset's answer to one query: `confidence` (n_models,); `answers` every model's samples, None where no
        answer was found in one. None when nobody answered; of equal answers the first in the alphabet."""
        weight = confidence if self.policy == "weighted-max-conf" else np.ones(len(confidence))
        totals: dict[str, float] = defaultdict(float)
        for k in np.flatnonzero(self.members(confidence[None])[0]):
            for answer in answers[k]:
                if answer is not None:
                    totals[answer] += float(weight[k])
        return min(totals, key=lambda answer: (-round(totals[answer], 9), answer), default=None)
