"""DiSRouter: Distributed Self-Routing for LLM Selections. Zheng et al., 2025. arXiv 2510.19208.

    a_m(q) = 1 − P_LM(refusal | q, scenario);   P(m answers) = a_m · Π_{j before m} (1 − a_j);   the last answers always
    SFT: refuse where p_m(q) < δ = 1 − α;   RL: max a·p + (1 − a)·(1 − α)^γ   ⇒   answer iff p > (1 − α)^γ

There is no router outside the models: each, cheapest first, answers or says "I don't know" and passes the query on.
Each is trained for that by itself, from its own right and wrong answers. `DisRouter` trains one adapter an agent from
an outcome table and, as a router, gives the probability that each model is the one who answers. `DisRouterTalk` is the
hand-over on live calls (the strategy).

Needs: as a router the text of the query, an artefact (adapters) and its base language model, torch to train; as a
strategy text APIs whose models were trained to refuse (untrained ones rarely do).
Returns: quality = P(m answers) in [0, 1], rows sum to 1, and each model's mean cost in US dollars, shape (n_queries,
n_models).

Differs from the paper:
- The agents of a table are models that cannot be trained here. Each has an adapter of its own over one base
  (SmolLM2-135M-Instruct, any Llama folder): it *is* the agent only where the base is that model.
- p_m(q) is the table's score (one answer, or the mean of several), not N fresh samples. The text of an accepted query
  is the recorded right answer where the table has one, else one sentence of acceptance; no chains of thought.
- The RL stage takes the expectation over the two actions exactly instead of sampling them.
- Sets are balanced to 50/50 as in the paper, but are as large as the table allows, not 10k.

Laws: adding or removing a model changes no other agent's a_m; the threshold falls with α, so with perfect
self-knowledge mean cost falls; a refusal is a fixed string.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments, tensor
from outcomes.causal_artefact import load_lm, save_lm
from outcomes.causal_lm import CausalLm, together
from outcomes.causal_training import Batch, CausalTraining, TrainedLm
from outcomes.learning_set import constant_costs, known_means, learning_set, replay_order, require_fitted
from protocol.chat import ChatRequest
from protocol.errors import BudgetExceeded, ContextLengthExceeded, MethodError, UpstreamError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries
from protocol.run import Answer, Event, Reply, Run

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="disrouter",
    title="DiSRouter: Distributed Self-Routing for LLM Selections",
    year=2025,
    paper="arXiv 2510.19208",
    taxonomy="a1",
    contract="router",
    implementation="DisRouter",
    needs=frozenset({"text", "language-model", "artefact", "labels"}),
    evidence=(
        Evidence(
            "invariant",
            "with perfect self-knowledge utility lies between the best single model's and the oracle's in all three "
            "scenarios, and mean cost falls with α",
            "tests/routers/test_disrouter.py::test_perfect_self_knowledge",
        ),
        Evidence(
            "exact equivalence",
            "the expected local reward is highest exactly for answering iff p > (1 − α)^γ: 0.894, 0.707, 0.447",
            "tests/routers/test_disrouter.py::test_thresholds",
        ),
        Evidence(
            "exact equivalence",
            "adding or removing a model leaves every other agent's acceptance as it was",
            "tests/routers/test_disrouter.py::test_agents_are_independent",
        ),
        Evidence(
            "invariant",
            "trained agents refuse what they get wrong: local reward far above always answering, as untrained",
            "tests/routers/test_disrouter.py::test_agents_learn_what_they_know",
        ),
    ),
    unverified="from a third-party note and public reviews, no code: N, prompts and the refusal's wording are ours; "
    "the paper's utilities were not reproduced; on the packaged SmolLM2-135M see docs/training.md for what was "
    "measured",
)

REFUSAL = "I don't know."
ACCEPTANCE = "I can answer this."
ANSWER_TOKENS = 32
GAMMA = 0.5
SCENARIOS = (
    (0.35, "Being right matters most; saying that you do not know is cheap."),
    (0.65, "Being right and being cheap matter alike."),
    (1.0, "Being cheap matters most; pass on only what you surely cannot answer."),
)
"""Highest α → what the agent is told of it: Performance First, Balance, Cost First."""


@dataclass(kw_only=True, eq=False)
class DisRouter(CausalTraining):
    """Agents that know what they know. `alpha`: what cost weighs (0.2 performance first, 0.5 balance, 0.8 cost first);
    `gamma` of the reward for refusing; `epochs` of SFT, then `policy_epochs` of RL."""

    epochs: int = 1
    policy_epochs: int = 1
    alpha: float = 0.5
    gamma: float = GAMMA

    def fit(self, outcomes: Outcomes) -> Self:
        """Train every model's agent but the dearest one's. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        lm = CausalLm.load(self.start)
        order = by_cost(learn.listed(known_means(learn.score)), learn.model_costs(), learn.models)
        answers = right_answers(outcomes)
        agents = [
            self._agent(
                lm, learn.texts, learn.listed(learn.score)[:, m], answers.get(learn.models[m], {}), str(m)
            )
            for m in order[:-1]
        ]
        self._keep(learn.models, agents, learn.model_costs(), order)
        return self

    def _agent(
        self, lm: CausalLm, texts: Sequence[str], p: Floats, answers: Mapping[str, str], stage: str
    ) -> TrainedLm:
        """The adapter of one agent, from its pass rates `p`, shape (n_queries,), NaN where unknown. `stage` names it in
        checkpoints."""
        prompt = Prompt.of(lm, self.alpha)
        sft = balanced_rows(p, 1 - self.alpha, texts)
        rl = balanced_rows(p, refusal_reward(self.alpha, self.gamma), texts)
        with self.learner(lm) as learner:
            if self.epochs and len(sft):
                asked = [prompt.ids(lm, texts[i], self.max_tokens) for i in sft]
                said = [
                    prompt.refusal
                    if p[i] < 1 - self.alpha
                    else prompt.answer(lm, answers.get(texts[i], ACCEPTANCE))
                    for i in sft
                ]
                starts = [len(ids) for ids in asked]
                learner.run(
                    [[*before, *after] for before, after in zip(asked, said, strict=True)],
                    lambda rows, batch: -_said(batch, [starts[row] for row in rows], mean=True).mean(),
                    self.epochs,
                    stage=f"{stage}-sft",
                )
            if self.epochs and self.policy_epochs and len(rl):
                refused = [[*prompt.ids(lm, texts[i], self.max_tokens), *prompt.refusal] for i in rl]
                starts = [len(ids) - len(prompt.refusal) for ids in refused]
                worth = refusal_reward(self.alpha, self.gamma)
                learner.run(
                    refused,
                    lambda rows, batch: local_loss(
                        _said(batch, [starts[row] for row in rows]), p[rl[rows]], worth
                    ),
                    self.policy_epochs,
                    stage=f"{stage}-rl",
                )
            return learner.trained()

    def estimate(self, queries: Queries) -> Estimate:
        """Who will answer. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        accepted = np.array([self.acceptance(text) for text in queries.texts]).reshape(-1, len(self.agents_))
        quality = np.empty((len(queries), len(self.models_)))
        quality[:, self.order_] = stops(accepted)
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def acceptance(self, text: str) -> Floats:
        """a_m of every agent but the last, cheapest first, shape (n_models − 1,)."""
        lm, prompt = self._lm, self._prompt
        asked = [*lm.question(text, self.max_tokens), *prompt.after]
        refusing = lm.log_probabilities(asked, [prompt.refusal], lm.opening(prompt.before))
        return np.asarray(-np.expm1(refusing[:, 0]), dtype=np.float64)

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        manifest = Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe())
        save_lm(folder, manifest, self.agents_, self.costs_, {"order": self.order_.astype(np.int64)})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        kept = load_lm(folder, METHOD.id)
        router, models = cls(**arguments(cls, kept.manifest)), kept.manifest.models
        order = tensor(kept.tensors, "order", (len(models),)).astype(np.intp)
        if sorted(order.tolist()) != list(range(len(models))):
            raise MethodError(f"{folder} does not name each of its models once.")
        router._keep(models, [kept.trained(f"{i}.") for i in range(len(models) - 1)], kept.costs, order)
        return router

    def _keep(
        self, models: tuple[str, ...], agents: list[TrainedLm], costs: Floats, order: NDArray[np.intp]
    ) -> None:
        if not agents:
            raise MethodError(f"{METHOD.id} hands on between models; the table has one.")
        self.models_, self.agents_, self.costs_, self.order_ = models, agents, costs, order
        self._lm = together([agent.lm for agent in agents])
        self._prompt = Prompt.of(self._lm, self.alpha)

    @staticmethod
    def talk(members: Mapping[str, str], **options: Any) -> DisRouterTalk:
        """The strategy: `members`, cheapest first; the last always answers. Raises `TypeError` for an unknown
        option, `ValueError` for a bad one."""
        return DisRouterTalk(members=tuple(members), **options)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an agent reads before and after the question, and how it refuses."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    refusal: tuple[int, ...]

    @classmethod
    def of(cls, lm: CausalLm, alpha: float) -> Prompt:
        before, after = lm.framed(instruction(alpha), "{question}")
        end = lm.shape.ends[:1]
        return cls(tuple(lm.tokens(before)), tuple(lm.tokens(after)), (*lm.tokens(REFUSAL), *end))

    def ids(self, lm: CausalLm, text: str, most: int) -> list[int]:
        return [*self.before, *lm.question(text, most), *self.after]

    def answer(self, lm: CausalLm, text: str) -> tuple[int, ...]:
        """The first tokens of an answer; with its end where it is short enough to be whole."""
        ids = lm.question(text)
        return (*ids[:ANSWER_TOKENS], *(lm.shape.ends[:1] if len(ids) <= ANSWER_TOKENS else ()))


def instruction(alpha: float) -> str:
    """What an agent is told: the scenario, and how to refuse."""
    scenario = next(told for most, told in SCENARIOS if alpha <= most)
    return f"Answer the question if you are able to; else say exactly: {REFUSAL} {scenario}"


def refused(text: str) -> bool:
    """Whether an answer is the refusal and nothing else: the string, whatever its case, apostrophe and full stop."""
    plain = re.sub(r"[^a-z ]", "", text.casefold().replace("’", "'").replace("'", ""))
    return " ".join(plain.split()) == "i dont know"


def refusal_reward(alpha: float, gamma: float = GAMMA) -> float:
    """What refusing earns, and so the pass rate above which answering pays: (1 − α)^γ."""
    return float((1 - alpha) ** gamma)


def stops(accepted: Floats) -> Floats:
    """Who answers, from acceptances (n_queries, n_models − 1) in the order of asking: shape (n_queries, n_models), rows
    sum to 1."""
    n = len(accepted)
    passed = np.concatenate([np.ones((n, 1)), np.cumprod(1 - accepted, axis=1)], axis=1)
    return np.asarray(passed * np.concatenate([accepted, np.ones((n, 1))], axis=1), dtype=np.float64)


def by_cost(scores: Floats, costs: Floats, models: Sequence[str]) -> NDArray[np.intp]:
    """Columns in the order of asking: cheapest first; models without a cost by mean score, after all with one."""
    known = ~np.isnan(costs)
    keys = [
        (not known[m], costs[m] if known[m] else float(np.nan_to_num(scores[m])), models[m])
        for m in range(len(models))
    ]
    return np.array(sorted(range(len(models)), key=keys.__getitem__), dtype=np.intp)


def balanced_rows(p: Floats, threshold: float, texts: Sequence[str]) -> NDArray[np.intp]:
    """Rows with a known pass rate, as many below `threshold` as not: those of the larger part that come last by a hash
    of their text are left out. All of them where one part is empty."""
    order = replay_order(texts)
    known = order[~np.isnan(p[order])]
    low, high = known[p[known] < threshold], known[p[known] >= threshold]
    most = min(len(low), len(high)) or len(known)
    return np.sort(np.concatenate([low[:most], high[:most]]))


def right_answers(outcomes: Outcomes) -> dict[str, dict[str, str]]:
    """For each model, text of a query → its recorded right answer, where the table keeps answers."""
    response = getattr(outcomes, "response", None)
    if response is None:
        return {}
    return {
        model: {
            text: response[i, m]
            for i, text in enumerate(outcomes.queries.texts)
            if response[i, m] and outcomes.score[i, m] >= 0.5
        }
        for m, model in enumerate(outcomes.models)
    }


def local_reward(refusing: Floats, p: Floats, worth: float) -> Floats:
    """Expected local reward of refusing with probability `refusing` where the pass rate is `p`."""
    return np.asarray(refusing * worth + (1 - refusing) * p, dtype=np.float64)


def local_loss(log_refusal: torch.Tensor, p: Floats, worth: float) -> torch.Tensor:
    """Minus the mean expected local reward, from the log-probability of refusing."""
    import torch

    refusing = torch.exp(log_refusal)
    right = torch.from_numpy(p).float()
    return -(refusing * worth + (1 - refusing) * right).mean()


def _said(batch: Batch, starts: Sequence[int], *, mean: bool = False) -> torch.Tensor:
    """Log-probability of every text's tokens from `starts` on, their sum or mean, shape (n,)."""
    log_p, counts = batch.log_probabilities(starts)
    return log_p.sum(1) / counts.sum(1) if mean else log_p.sum(1)


@dataclass(frozen=True, kw_only=True)
class DisRouterTalk:
    """Ask the members in order, each told that it may refuse; the first that does not refuse has answered, the last is
    asked as the caller asked. `alpha`: the scenario told. `instruct`: whether members are told at all (not where their
    training already says it).

    A member that fails is passed over. Tool calls are answers. With several choices, one that is no refusal is enough.
    """

    members: tuple[str, ...]
    alpha: float = 0.5
    instruct: bool = True

    def __post_init__(self) -> None:
        if len(self.members) < 2 or not 0 < self.alpha <= 1:
            raise ValueError(
                f"{len(self.members)} members and alpha {self.alpha}: two are needed, alpha in (0, 1]"
            )

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        """Yields one answer, or the last member's events. Raises the last member's error."""
        rows: list[dict[str, Any]] = []
        spent: list[Reply] = []
        *first, last = self.members
        asked = self._told(request.changed(stream=None, stream_options=None))
        for name in first:
            try:
                reply = await run.call(name, asked)
            except (UpstreamError, ContextLengthExceeded, BudgetExceeded) as error:
                rows.append({"model": name, "outcome": error.code or error.type})
                continue
            if not _all_refused(reply):
                rows.append({"model": name, "outcome": "answered"})
                self._note(run, rows, name)
                yield Answer(reply.paid_with(spent))
                return
            rows.append({"model": name, "outcome": "refused"})
            spent.append(reply)
        rows.append({"model": last, "outcome": "last"})
        self._note(run, rows, last)
        async for event in run.relay(last, request):
            yield Answer(event.reply.paid_with(spent)) if isinstance(event, Answer) else event

    def _note(self, run: Run, rows: Sequence[Mapping[str, Any]], chosen: str) -> None:
        run.trace.note(method=METHOD.id, alpha=self.alpha, agents=list(rows), chosen=chosen)

    def _told(self, request: ChatRequest) -> ChatRequest:
        if not self.instruct:
            return request
        told = {"role": "system", "content": instruction(self.alpha)}
        systems = [m for m in request.messages if m["role"] in ("system", "developer")]
        if not systems or not isinstance(systems[0].get("content"), str):
            return request.changed(messages=[told, *request.messages])
        own = systems[0]
        joined = {**own, "content": f"{own['content']}\n\n{told['content']}"}
        return request.changed(messages=[joined if m is own else m for m in request.messages])


def _all_refused(reply: Reply) -> bool:
    messages = [choice["message"] for choice in reply.body["choices"]]
    return all(not m.get("tool_calls") and refused(m.get("content") or "") for m in messages)
