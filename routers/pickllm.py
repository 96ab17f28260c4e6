"""PickLLM: Context-Aware RL-Assisted Large Language Model Routing. Sikeridis et al., 2024. arXiv 2412.12170.

    R = w_a·a − w_c·c − w_l·log10(l)
    automaton (linear reward-inaction): p_m += b·R·(1 − p_m), p_j −= b·R·p_j;   q (stateless): Q_m += γ(R − Q_m)

`a` is the answer's score, `c` its cost over that of the dearest model, `l` its latency in seconds. One learner
a session: it converges to one model and looks at no query. `observe` is the method; `fit` replays a recorded
session, drawing as it would have drawn, and seeing only what it drew.

Needs: online a score of each answer (and its cost and latency, where they weigh), or a recorded table.
Returns: quality = p (automaton) or Q scaled to [0, 1], the same for every query; each model's mean cost in US
dollars, shape (n_queries, n_models). The choice is argmax quality; `draw` explores as the paper does.

Differs from the paper:
- The one public summary prints R as a product; only a sum lets the weights act apart. `reward_form="product"`
  is that.
- R is scaled from its own range to [0, 1], because a reward outside breaks the automaton. log10(l) is kept within
  0.1 s … 100 s. Cost is relative. Latency is not in `Outcomes`, so `fit` learns from score and cost only.
- A recorded session is replayed in the order of the texts' hashes, from a seed.

Laws: p sums to 1 and does not move without reward; a larger b settles sooner and wrong more often; with w_c =
w_l = 0 it converges to the best single model of the session.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, load_artefact, save_artefact, tensor
from outcomes.bandit import ActionValues, RewardInaction
from outcomes.learning_set import constant_costs, learning_set, replay_order, require_fitted
from protocol.errors import MethodError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Feedback, Outcomes, Queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="pickllm",
    title="PickLLM: Context-Aware RL-Assisted Large Language Model Routing",
    year=2024,
    paper="arXiv 2412.12170",
    taxonomy="a2",
    contract="router",
    implementation="PickLlm",
    needs=frozenset({"labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "updates are the automaton's and Q-learning's formulas; p sums to 1 and stands still without reward",
            "tests/outcomes/test_bandit.py::test_reward_inaction_stays_a_distribution",
        ),
        Evidence(
            "invariant",
            "with w_c = w_l = 0 both variants converge to the best single model of a session",
            "tests/routers/test_pickllm.py::test_converges_to_the_best_single_model",
        ),
        Evidence(
            "invariant",
            "regret grows slower than the session with decaying ε",
            "tests/routers/test_pickllm.py::test_regret_is_sublinear",
        ),
    ),
    unverified="the reward is ambiguous in the only readable summary; learning rates are recalled",
)

FASTEST, SLOWEST = 0.1, 100.0
"""Latencies, in seconds, between which log10 counts."""


class PickLlm:
    """One bandit a session. `variant`: automaton or q; `rate` b or γ; `epsilon`: exploration of q, which decays as
    `epsilon`/(1 + steps/`horizon`); `score_weight`, `cost_weight`, `latency_weight`; `reward_form`: sum or
    product."""

    def __init__(
        self,
        *,
        variant: str = "automaton",
        rate: float = 0.02,
        epsilon: float = 0.2,
        horizon: float = 200.0,
        score_weight: float = 1.0,
        cost_weight: float = 0.0,
        latency_weight: float = 0.0,
        reward_form: str = "sum",
        seed: int = 0,
    ) -> None:
        if variant not in ("automaton", "q") or reward_form not in ("sum", "product"):
            raise MethodError(
                f"variant is automaton or q, reward_form sum or product; got {variant}, {reward_form}"
            )
        self.variant, self.rate, self.epsilon, self.horizon = variant, rate, epsilon, horizon
        self.score_weight, self.cost_weight = score_weight, cost_weight
        self.latency_weight, self.reward_form, self.seed = latency_weight, reward_form, seed

    def fit(self, outcomes: Outcomes) -> Self:
        """Live through the table as one session. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        by_name = np.argsort(learn.columns)
        names = tuple(np.array(learn.models)[by_name])
        # Draws are made over models sorted by name; the columns are put in the listed order in the end.
        self._keep(names, np.zeros(0), np.zeros(len(names)), learn.model_costs()[by_name])
        rng = np.random.default_rng(self.seed)
        for i in replay_order(learn.texts):
            arm = self._draw(rng)
            score = learn.score[i, arm]
            if not np.isnan(score):
                self._update(arm, self.reward(float(score), float(learn.cost_usd[i, arm])))
        self._keep(
            learn.models, self.p_[learn.columns], self.q_[learn.columns], learn.model_costs(), self.steps_
        )
        return self

    def observe(self, feedback: Feedback) -> None:
        """Learn from one answer. Raises `MethodError` for a model it does not have."""
        require_fitted(self, METHOD.id)
        if feedback.model not in self.models_:
            raise MethodError(
                f"{METHOD.id} has no model {feedback.model!r}; it has {', '.join(self.models_)}."
            )
        reward = self.reward(feedback.score, feedback.cost_usd, feedback.latency_s)
        self._update(self.models_.index(feedback.model), reward)

    def draw(self, rng: np.random.Generator) -> str:
        """The model to ask next, as the method explores."""
        require_fitted(self, METHOD.id)
        return self.models_[self._draw(rng)]

    def reward(self, score: float, cost_usd: float = math.nan, latency_s: float = math.nan) -> float:
        """R scaled to [0, 1]; an unknown cost or latency counts as the worst."""
        dearest = float(np.nanmax(self.costs_)) if np.isfinite(self.costs_).any() else 0.0
        cost = 1.0 if math.isnan(cost_usd) else min(cost_usd / dearest, 1.0) if dearest > 0 else 0.0
        latency = SLOWEST if math.isnan(latency_s) else min(max(latency_s, FASTEST), SLOWEST)
        slow = math.log10(latency / FASTEST) / math.log10(SLOWEST / FASTEST)
        if self.reward_form == "product":
            penalty, most = (
                self.cost_weight * cost * self.latency_weight * slow,
                self.cost_weight * self.latency_weight,
            )
        else:
            penalty = self.cost_weight * cost + self.latency_weight * slow
            most = self.cost_weight + self.latency_weight
        return min(max((self.score_weight * score - penalty + most) / (self.score_weight + most), 0.0), 1.0)

    def estimate(self, queries: Queries) -> Estimate:
        """What the learner prefers, whatever the query. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        preference = self.p_ if self.variant == "automaton" else np.clip(self.q_, 0.0, 1.0)
        rows = np.tile(preference, (len(queries), 1))
        return Estimate(self.models_, rows, constant_costs(self.costs_, len(queries)))

    def save(self, folder: Path) -> None:
        """Write the artefact, the whole state, so that the session can go on."""
        names = ("variant", "rate", "epsilon", "horizon", "score_weight", "cost_weight", "latency_weight")
        parameters = {name: getattr(self, name) for name in (*names, "reward_form", "seed")}
        steps = np.array([self.steps_], dtype=np.int64)
        tensors = {"p": self.p_, "q": self.q_, "cost_usd": self.costs_, "steps": steps}
        save_artefact(folder, Manifest(method=METHOD.id, models=self.models_, parameters=parameters), tensors)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        manifest, tensors = load_artefact(folder, method=METHOD.id)
        router, m = cls(**arguments(cls, manifest)), len(manifest.models)
        p, q = tensor(tensors, "p", (m,)).copy(), tensor(tensors, "q", (m,)).copy()
        if (p < 0).any() or not math.isclose(float(p.sum()), 1, abs_tol=1e-6):
            raise MethodError(f"{folder}: p is no distribution.")
        costs = tensor(tensors, "cost_usd", (m,), finite=False)
        router._keep(manifest.models, p, q, costs, int(tensor(tensors, "steps", (1,))[0]))
        return router

    def _keep(self, models: tuple[str, ...], p: Floats, q: Floats, costs: Floats, steps: int = 0) -> None:
        self.models_, self.costs_, self.steps_ = models, costs, steps
        automaton = RewardInaction(p, self.rate) if len(p) else RewardInaction.uniform(len(models), self.rate)
        self._automaton = automaton
        self._values = ActionValues(q, np.zeros(len(models)), self.rate)

    @property
    def p_(self) -> Floats:
        """The automaton's probabilities, in the order of `models_`."""
        return self._automaton.p

    @property
    def q_(self) -> Floats:
        """The action values, in the order of `models_`."""
        return self._values.q

    def _draw(self, rng: np.random.Generator) -> int:
        if self.variant == "automaton":
            return self._automaton.draw(rng)
        return self._values.draw(rng, self.epsilon / (1 + self.steps_ / self.horizon))

    def _update(self, arm: int, reward: float) -> None:
        self.steps_ += 1
        if self.variant == "automaton":
            self._automaton.update(arm, reward)
        else:
            self._values.update(arm, reward)
