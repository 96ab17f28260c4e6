"""RouterDC: Query-Based Router by Dual Contrastive Learning for Assembling Large Language Models. Chen et al., 2024.
arXiv 2409.19886.

    x_m = cos(h(q), v_m) / T;  loss = Σ_{i ≤ K+} −log softmax([x_{i-th best}, x_{K− lowest}])[0] + λ·L_cluster

One encoder and one learnt vector a model. Several positives cope with "many models are right"; L_cluster pulls queries
of one cluster together and pushes others away (both in `outcomes.encoder_losses`). Route to argmax_m x_m.

Needs: the text of the query and an artefact (encoder, model vectors); graded scores, torch to train.
Returns: quality = (1 + cos(h, v_m)) / 2 in [0, 1], which ranks as x does, and each model's mean cost in US dollars,
shape (n_queries, n_models).

Differs from the paper:
- The start is all-MiniLM-L6-v2 with mean pooling (any BERT folder works), not mDeBERTa-v3-base read at position 0.
- Clusters are k-means of the untrained encoder's unit vectors, without t-SNE in between.
- A term whose positive scores 0 is dropped; the released code multiplies the batch by the share of good positives
  instead (`faithful=True`). A query is never its own positive in L_cluster, and in a batch with fewer than H negatives
  those there are count (released: the row is skipped and the gather misaligned).
- Training runs for epochs, not 1000 steps over equalised sources. Long texts lose their beginning, as there.

Laws: with all negatives above ½ the loss is 0; scaling a model's vector changes nothing; quality ranks as the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.encoder_artefact import EncoderRouter
from outcomes.encoder_losses import in_cluster, ranked_contrastive
from outcomes.groups import kmeans, nearest_group
from outcomes.learning_set import constant_costs, learning_set, require_fitted
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="routerdc",
    title="RouterDC: Query-Based Router by Dual Contrastive Learning for Assembling Large Language Models",
    year=2024,
    paper="arXiv 2409.19886",
    taxonomy="a1",
    contract="router",
    implementation="RouterDc",
    needs=frozenset({"text", "encoder", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "the loss by hand: one positive; all negatives above ½ → 0; the released mask as one factor of the batch",
            "tests/outcomes/test_encoder_losses.py::test_contrastive_drops_good_negatives_and_bad_positives",
        ),
        Evidence(
            "invariant",
            "quality ranks as the cosines do, and a longer model vector changes nothing",
            "tests/routers/test_routerdc.py::test_only_directions_count",
        ),
        Evidence(
            "invariant",
            "it learns who knows what from words",
            "tests/routers/test_routerdc.py::test_it_learns_who_can",
        ),
    ),
    unverified="the paper's table (58.54 in distribution) was not reproduced with this encoder; its per-task row is "
    "recalled",
)


@dataclass(kw_only=True, eq=False)
class RouterDc(EncoderRouter):
    """Dual contrastive router. `positives` K+, `negatives` K−, `apart` H, `weight` λ, `clusters`, `temperature` T."""

    method = METHOD.id
    unit = True

    positives: int = 3
    negatives: int = 3
    apart: int = 3
    weight: float = 1.0
    clusters: int = 5
    temperature: float = 1.0
    faithful: bool = False

    def fit(self, outcomes: Outcomes) -> Self:
        """Train encoder and model vectors. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        start = self.starting_encoder("left")
        vectors = self.pooled(start, learn.texts).astype(np.float64)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        centres = kmeans(vectors, self.clusters, seed=self.seed)
        labels = nearest_group(vectors, centres)

        def loss(rows: NDArray[np.intp], outputs: Any, pooled: Any) -> Any:
            ranked = ranked_contrastive(
                learn.score[rows],
                outputs / self.temperature,
                positives=self.positives,
                negatives=self.negatives,
                per_sample=not self.faithful,
            )
            return ranked + self.weight * in_cluster(
                labels[rows], pooled, negatives=self.apart, seed=self.seed + int(rows[0])
            )

        found = self.train(start, learn.texts, len(learn.models), loss, unit=True)
        self._keep(learn.models, found.with_outputs(learn.columns), learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Closeness to every model. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        quality = np.clip((1 + self.encoder_(queries.texts)) / 2, 0, 1)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))
