"""ZOOTER: Routing to the Expert: Efficient Reward-guided Ensemble of Large Language Models. Lu et al., 2023.
arXiv 2311.08692.

    s(q) = softmax_m(r(q, m) / T);  s_t = mean of s over queries tagged t;  s*(q) = β·s(q) + (1 − β)·mean_{t ∈ T(q)} s_t
    Z(q) = softmax(f(q)),  loss = KL(s*(q) ‖ Z(q));  route to argmax_m Z(q)_m

Rewards of all candidates' answers are distilled into a distribution over models; averages over a tag smooth the
rewards' noise. `Outcomes.score` is the reward r, `Outcomes.categories` the tag, one a query.

Needs: the text of the query and an artefact (encoder, head); rewards and tags to train on, torch to train.
Returns: quality Z in [0, 1], rows sum to 1, and each model's mean cost in US dollars, shape (n_queries, n_models).

Differs from the paper:
- The start is all-MiniLM-L6-v2 with mean pooling (any BERT folder works), not mDeBERTa-v3-base.
- Rewards are the table's scores in [0, 1], which are narrower than a reward model's: `temperature` T sharpens labels
  (1 as in the paper). Tags are categories, not InsTag's; a query without one keeps its own label (β = 1).
- The paper writes KLD(Z, s*); this is KL(s* ‖ Z), whose gradient at the logits is Z − s*, the usual distillation.
- A model without a reward is no candidate of that query.

Laws: s, s_t and s* sum to 1; β = 1 is plain distillation; with one tag and β = 0 every label is the mean softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.encoder_artefact import EncoderRouter
from outcomes.encoder_losses import soft_cross_entropy
from outcomes.groups import membership
from outcomes.learning_set import constant_costs, learning_set, require_fitted
from outcomes.networks import softmax
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="zooter",
    title="Routing to the Expert: Efficient Reward-guided Ensemble of Large Language Models",
    year=2023,
    paper="arXiv 2311.08692",
    taxonomy="a1",
    contract="router",
    implementation="Zooter",
    needs=frozenset({"text", "encoder", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "labels sum to 1; β = 1 is plain distillation; one tag and β = 0 is the mean softmax",
            "tests/routers/test_zooter.py::test_label_limits",
        ),
        Evidence(
            "exact equivalence",
            "the loss has the gradient Z − s* at the logits",
            "tests/outcomes/test_encoder_losses.py::test_soft_cross_entropy_has_the_gradient_of_kl",
        ),
        Evidence(
            "invariant",
            "under heavy reward noise labels at β = 0.3 name the truly best model more often than at β = 1",
            "tests/routers/test_zooter.py::test_tags_smooth_noise",
        ),
    ),
    unverified="the paper's figures were not reproduced: its reward model, tags and candidates are not here",
)


@dataclass(kw_only=True, eq=False)
class Zooter(EncoderRouter):
    """Distilled rewards. `beta` β of a query's own label; `temperature` T of the rewards' softmax."""

    method = METHOD.id

    beta: float = 0.3
    temperature: float = 1.0

    def fit(self, outcomes: Outcomes) -> Self:
        """Train the encoder. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        target = reward_labels(learn.score, learn.categories, self.beta, self.temperature)
        found = self.train(
            self.starting_encoder(),
            learn.texts,
            len(learn.models),
            lambda rows, out, _: soft_cross_entropy(target[rows], out),
        )
        self._keep(learn.models, found.with_outputs(learn.columns), learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """Z of every query. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        quality = np.asarray(softmax(self.encoder_(queries.texts)), dtype=np.float64)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))


def reward_labels(reward: Floats, tags: Sequence[str], beta: float, temperature: float = 1.0) -> Floats:
    """s* of every query, shape of `reward` (n_queries, n_models); NaN for models without a reward, rows over the
    others sum to 1. '' is no tag."""
    known = ~np.isnan(reward)
    own = softmax(np.where(known, reward / temperature, -np.inf))
    names, labels = np.unique(np.array(tags, dtype=np.str_), return_inverse=True)
    members = membership(labels, len(names))
    counts = np.maximum(members.T @ known, 1)
    smooth = (members.T @ own / counts)[labels]
    share = np.where(np.array(tags) == "", 1.0, beta)[:, None]
    mixed = np.where(known, share * own + (1 - share) * smooth, 0.0)
    mixed /= mixed.sum(axis=1, keepdims=True)
    return np.where(known, mixed, np.nan)
