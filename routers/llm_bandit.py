"""LLM Bandit: Cost-Efficient LLM Generation via Preference-Conditioned Dynamic Routing. Li, 2025. arXiv 2502.02743.

    stage 1: identities I_k and p̂_k = σ(f(e, I_k)) by variational item response (`outcomes.irt`), then held
    π(k | x, C, ω) = softmax_k I_kᵀ h,  h = MLP[Set({(I_k, c̄_k, p̂_k)}) ; W e ; w],  ω = [1, w],  w ~ U(0, 2)
    stage 2: −log π(argmax_k p̄_k − w·c̄_k) on pairs, p̄ calibrated;  stage 3: PPO on r = [s̄_a, −c̄_a], A = ωᵀ(r − V(x, C))

One policy for any set of models and any preference of the caller between score and money (see
`outcomes.preference_policy`). s̄ and c̄ are over the highest in the candidate set. In stage 3 every prompt is blended
with its nearest neighbour, λ ~ Beta(0.2, 0.2): embedding, old chances, advantages and values; action, preference and
context are the dominant one's. Despite the name nothing is explored online: it is learnt from tables. `decide` is the
method (a `w` a query, any subset of models); `onboard` gives a new model an identity from a few prompts, which `probes`
picks.

Needs: embeddings; an artefact; labels and costs.
Returns: quality = π at preference w (default 0: score alone), the chance of being the one to ask (rows sum to 1;
not an expected score), shape (n_queries, n_models), and each model's mean cost in US dollars.

Differs from the paper:
- w is drawn as 2u³, u ~ U(0, 1), and read as its cube root: under U(0, 2) a policy over models of very unlike prices
  forgot the best one even at w = 0.
- Set(·) is one block of self-attention and a mean; the value network has its own. PPO's constants are of a third party.
- c̄ is of the models' mean costs in the policy's context, of each answer's cost in its reward. A reward nobody measured
  is p̂. Where all candidates score 0, s̄ is 0.
- Stage 2's pairs are made of scores: the better of two, and of p̄ only its order matters to the target.
- Epochs of stage 1 (10 in the paper) and steps of the others (500 each) were chosen on inner splits of llmrouter's and
  routerbench_subset's *training* queries, whose one or two thousand prompts make few batches; sizes are smaller.
- How prompts are chosen for a new model is recalled: strata of difficulty, in each the most telling prompt.

Laws: permuting candidates permutes π; a subset's π needs no training; the reward of one step minus V is its advantage;
choices get cheaper as w grows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes import autograd as ad
from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.autograd import Tensor
from outcomes.irt import fit_identity, fit_responses, response_logits, response_start
from outcomes.learning_set import constant_costs, learning_set, query_vectors, require_fitted
from outcomes.neighbours import BLOCK, in_blocks
from outcomes.networks import sigmoid, softmax
from outcomes.preference_policy import (
    PASSES,
    Candidates,
    Rollout,
    Table,
    policy_logits,
    policy_start,
    preferred,
    value_start,
)
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Weights = Mapping[str, Tensor]

METHOD = Method(
    id="llm-bandit",
    title="LLM Bandit: Cost-Efficient LLM Generation via Preference-Conditioned Dynamic Routing",
    year=2025,
    paper="arXiv 2502.02743",
    taxonomy="a1",
    contract="router",
    implementation="LlmBandit",
    needs=frozenset({"embedding", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "permuting candidates permutes π; one left out leaves what a policy over the others alone would say",
            "tests/routers/test_llm_bandit.py::test_candidates_are_a_set",
        ),
        Evidence(
            "invariant",
            "on held-out queries mean cost falls with w, from about the highest p̂ to the cheapest",
            "tests/routers/test_llm_bandit.py::test_preference_buys_score_or_saves_money",
        ),
        Evidence(
            "invariant",
            "50 prompts place a new model among the others better than the average model's identity",
            "tests/routers/test_llm_bandit.py::test_fifty_prompts_place_a_new_model",
        ),
        Evidence(
            "invariant",
            "its reward is close to that of the greedy rule p̂ − w·c̄, the honest baseline",
            "tests/routers/test_llm_bandit.py::test_reward_beside_the_greedy_rule",
        ),
    ),
    unverified="no official code: equations from a third party's re-implementation, the choice of prompts for new "
    "models recalled; savings of up to 27 % were not reproduced",
)

ONBOARDING = 200
"""Steps that fit a new model's identity."""


class LlmBandit:
    """A policy over models' identities. `preference` w of `estimate`; `identity` size of I; `hidden` units; `epochs` of
    stage 1; `steps` of stages 2 and 3 each; `batch`, `rate`, `decay`, `seed`."""

    def __init__(
        self,
        *,
        preference: float = 0.0,
        identity: int = 16,
        hidden: int = 32,
        epochs: int = 100,
        steps: int = 150,
        batch: int = 128,
        rate: float = 2e-3,
        decay: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.preference, self.identity, self.hidden, self.epochs = preference, identity, hidden, epochs
        self.steps, self.batch, self.rate, self.decay, self.seed = steps, batch, rate, decay, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """All three stages. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id)
        responses = fit_responses(
            learn.vectors,
            learn.score,
            identity=self.identity,
            hidden=self.hidden,
            epochs=self.epochs,
            batch=self.batch,
            rate=self.rate,
            decay=self.decay,
            seed=self.seed,
        )
        logits = in_blocks(lambda part: _logits(responses, part), learn.vectors, len(learn.models))
        table = Table.of(learn.vectors, learn.score, learn.cost_usd, responses["mean"], logits)
        rng = np.random.default_rng(self.seed)
        sizes = (learn.vectors.shape[1], self.identity, self.hidden, self.seed)
        policy = ad.minimise(
            policy_start(*sizes),
            lambda w, _: -ad.mean(preferred(w, table, rng, self.batch)),
            steps=self.steps,
            rate=self.rate,
            decay=self.decay,
        )
        rollouts: list[Rollout] = []

        def loss(w: Weights, step: int) -> Tensor:
            if step % PASSES == 0:
                rollouts[:] = [Rollout.of({k: ad.plain(v) for k, v in w.items()}, table, rng, self.batch)]
            return rollouts[0].loss(w)

        both = policy | value_start(*sizes)
        learnt = ad.minimise(both, loss, steps=PASSES * self.steps, rate=self.rate, decay=self.decay)
        responses |= {name: responses[name][learn.columns] for name in ("mean", "spread")}
        self._keep(learn.models, responses, learnt, learn.model_costs())
        return self

    def estimate(self, queries: Queries) -> Estimate:
        """π at the router's preference. Raises `MethodError` before `fit`, and for embeddings of another size."""
        chances = self.chances(queries, self.preference)
        return Estimate(self.models_, chances, constant_costs(self.costs_, len(chances)))

    def decide(
        self, queries: Queries, preference: float | Sequence[float], among: Sequence[str] | None = None
    ) -> NDArray[np.intp]:
        """The model of highest π for each query, at its own w or one for all, among all models or some."""
        return np.asarray(self.chances(queries, preference, among).argmax(axis=1), dtype=np.intp)

    def chances(
        self, queries: Queries, preference: float | Sequence[float], among: Sequence[str] | None = None
    ) -> Floats:
        """π of every query, shape (n_queries, n_models), 0 for models not `among` the candidates. Raises
        `MethodError` before `fit`, for embeddings of another size, and without candidates."""
        require_fitted(self, METHOD.id)
        d = len(self.learnt_["policy.prompt.weight"])
        vectors = query_vectors(queries, d, METHOD.id)
        present = np.array([among is None or name in among for name in self.models_])
        if not present.any():
            raise MethodError(f"None of {', '.join(among or ())} is a model of this {METHOD.id}.")
        w = np.broadcast_to(np.asarray(preference, dtype=np.float64), (len(vectors),))

        def block(start: int) -> Floats:
            part = vectors[start : start + BLOCK]
            right, prices = sigmoid(_logits(self.responses_, part)), np.nan_to_num(self.costs_)
            there = np.tile(present, (len(part), 1))
            candidates = Candidates.of(self.responses_["mean"], prices, right, there)
            logits = policy_logits(self.learnt_, part, candidates, w[start : start + BLOCK])
            return np.asarray(softmax(logits), dtype=np.float64)

        found = [block(start) for start in range(0, len(vectors), BLOCK)]
        return np.concatenate(found) if found else np.zeros((0, len(self.models_)))

    def predicted(self, queries: Queries) -> Floats:
        """p̂ of every query and model, shape (n_queries, n_models)."""
        require_fitted(self, METHOD.id)
        vectors = query_vectors(queries, len(self.learnt_["policy.prompt.weight"]), METHOD.id)
        logits = in_blocks(lambda part: _logits(self.responses_, part), vectors, len(self.models_))
        return np.asarray(sigmoid(logits), dtype=np.float64)

    def probes(self, queries: Queries, count: int = 50) -> NDArray[np.intp]:
        """Which of `queries` to try a new model on: `count` strata of difficulty, in each the prompt on which the
        known models are furthest apart."""
        right = self.predicted(queries)
        strata = np.array_split(np.argsort(right.mean(axis=1), kind="stable"), min(count, len(right)))
        return np.array([rows[right[rows].std(axis=1).argmax()] for rows in strata], dtype=np.intp)

    def onboard(self, name: str, outcomes: Outcomes) -> Self:
        """A router that has the model `name` too, its identity fitted to its outcomes in `outcomes` (embedded), nothing
        else trained. Raises `MethodError`."""
        require_fitted(self, METHOD.id)
        learn = learning_set(outcomes, METHOD.id)
        if name not in learn.models or name in self.models_:
            raise MethodError(f"{name} has no outcomes to learn from, or is there already.")
        score = learn.score[:, sorted(learn.models).index(name)]
        known = ~np.isnan(score)
        identity = fit_identity(
            self.responses_, learn.vectors[known], score[known], steps=ONBOARDING, rate=0.05, seed=self.seed
        )
        larger = copy(self)
        latent = {"mean": identity, "spread": np.zeros(self.identity)}
        responses = {**self.responses_}
        for key, value in latent.items():
            responses[key] = np.concatenate([self.responses_[key], value[None]])
        cost = learn.model_costs()[learn.models.index(name)]
        larger.models_, larger.responses_ = (*self.models_, name), responses
        larger.costs_ = np.append(self.costs_, cost)
        return larger

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        names = ("preference", "identity", "hidden", "epochs", "steps", "batch", "rate", "decay", "seed")
        parameters = {name: getattr(self, name) for name in names}
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=parameters)
        save_artefact(folder, manifest, {**self.responses_, **self.learnt_, "cost_usd": self.costs_})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        d = tensor(tensors, "policy.prompt.weight", (None, router.hidden)).shape[0]
        responses = ad.kept(tensors, response_start(d, m, router.identity, router.hidden, 0))
        sizes = (d, router.identity, router.hidden, 0)
        learnt = ad.kept(tensors, policy_start(*sizes) | value_start(*sizes))
        router._keep(manifest.models, responses, learnt, tensor(tensors, "cost_usd", (m,), finite=False))
        return router

    def _keep(
        self,
        models: tuple[str, ...],
        responses: dict[str, Floats],
        learnt: dict[str, Floats],
        costs: Floats,
    ) -> None:
        self.models_, self.responses_, self.learnt_, self.costs_ = models, responses, learnt, costs


def _logits(responses: Mapping[str, Floats], vectors: NDArray[np.floating[Any]]) -> Floats:
    """Logits f of embedded queries and every model, shape (n_queries, n_models)."""
    return np.asarray(response_logits(responses, vectors, responses["mean"]), dtype=np.float64)
