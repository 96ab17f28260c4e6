"""Bench-CoE: a Framework for Collaboration of Experts from Benchmark. Wang et al., 2024. arXiv 2412.04167.

    query level:    route to argmax_m f(q)_m,           f trained by ‖f(q) − (s(q, 1), …, s(q, M))‖²
    subject level:  route to argmax_m A[ŝ, m], ŝ = argmax softmax(f(q)),  A = mean score of m on subject ŝ

`level="query"` (default) regresses the models' scores on raw outputs, no sigmoid. `level="subject"` classifies the
query's subject (`Outcomes.categories`) by softmax cross entropy, which needs no model outcomes, and looks the subject
up in a table of mean scores.

Needs: the text of the query and an artefact (encoder, head, at subject level the table); labels, torch to train.
Returns: quality in [0, 1], at query level f cut to [0, 1], at subject level the row of the table, and each model's
mean cost in US dollars, shape (n_queries, n_models).

Differs from the paper:
- The start is all-MiniLM-L6-v2 with mean pooling (any BERT folder works), not BERT-base; the last epoch is kept, not
  the best on validation.
- The table keeps every model's mean score, not the best expert alone, so that a policy can weigh cost; at equal cost
  it is the paper's choice. A subject where a model has no score has its overall mean.
- Headline figures of the paper that route the queries the router was trained on are no evidence of anything here.

Laws: with the true subject given, the table's choice is the best expert of that subject, an upper bound in sample;
one subject is the best single model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, tensor
from outcomes.encoder import TrainedEncoder
from outcomes.encoder_artefact import load_encoder, save_encoder
from outcomes.encoder_losses import soft_cross_entropy, squared
from outcomes.encoder_training import EncoderTraining
from outcomes.groups import group_means, membership
from outcomes.learning_set import constant_costs, learning_set, require_fitted
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="bench-coe",
    title="Bench-CoE: a Framework for Collaboration of Experts from Benchmark",
    year=2024,
    paper="arXiv 2412.04167",
    taxonomy="a1",
    contract="router",
    implementation="BenchCoe",
    needs=frozenset({"text", "encoder", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "one subject is the best single model; the true subject gives each subject's best expert",
            "tests/routers/test_bench_coe.py::test_subject_limits",
        ),
        Evidence(
            "invariant",
            "LLMRouter's tables: the true task's best expert, chosen on train, beats the best single model held out",
            "tests/routers/test_bench_coe.py::test_true_task_table_on_published_outcomes",
        ),
        Evidence(
            "invariant",
            "both levels learn who knows what from words",
            "tests/routers/test_bench_coe.py::test_it_learns_who_can",
        ),
    ),
    unverified="the crossing of query and subject level out of domain was not reproduced",
)


@dataclass(kw_only=True, eq=False)
class BenchCoe(EncoderTraining):
    """Encoder of experts. `level`: query or subject."""

    level: Literal["query", "subject"] = "query"

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the encoder; at subject level measure the table. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        start, costs = self.starting_encoder(), learn.model_costs()
        if self.level == "query":
            found = self.train(
                start, learn.texts, len(learn.models), lambda rows, out, _: squared(learn.score[rows], out)
            )
            self._keep(learn.models, found.with_outputs(learn.columns), costs, None)
            return self
        subjects, labels = np.unique(np.array(learn.categories, dtype=np.str_), return_inverse=True)
        truth = membership(labels, len(subjects))
        found = self.train(
            start, learn.texts, len(subjects), lambda rows, out, _: soft_cross_entropy(truth[rows], out)
        )
        self._keep(learn.models, found, costs, learn.listed(group_means(truth, learn.score)))
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Scores expected of the models. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        outputs = self.encoder_(queries.texts)
        quality = np.clip(outputs, 0, 1) if self.table_ is None else self.table_[outputs.argmax(axis=1)]
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        own = {} if self.table_ is None else {"table": self.table_}
        save_encoder(folder, manifest, self.encoder_, self.costs_, own)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        kept = load_encoder(folder, METHOD.id)
        router, models = cls(**arguments(cls, kept.manifest)), kept.manifest.models
        subject = router.level == "subject"
        table = tensor(kept.tensors, "table", (None, len(models))) if subject else None
        encoder = kept.trained(len(models) if table is None else len(table))
        router._keep(models, encoder, kept.costs, table)
        return router

    def _keep(
        self, models: tuple[str, ...], encoder: TrainedEncoder, costs: Floats, table: Floats | None
    ) -> None:
        self.models_, self.encoder_, self.costs_, self.table_ = models, encoder, costs, table
