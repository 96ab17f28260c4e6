"""Router-R1: Teaching LLMs Multi-Round Routing and Aggregation via Reinforcement Learning. Zhang et al., 2025.
arXiv 2506.09033.

    π(m | q) ∝ P_LM("NAME_m:" | prompt(q), <think>…</think> <search>)
    R = −1 broken format;  0 wrong;  (1 − a) + a·R_cost right;   loss = −mean[(R − R̄_others)·log π(what was said)]

A small language model thinks, calls models of the pool by name as often as it wants (up to `turns`), reads what they
say, and writes the answer itself. It is trained by policy gradient on its own transcripts. `RouterR1Talk` is that loop
on live calls (the strategy; any model can be the router, a merely prompted one included, and the trace then says
"prompted"); `RouterR1` learns the policy from an outcome table and, as a router, gives π of the first call.

Needs: as a router the text of the query, an artefact (adapter) and its base language model, torch to train; as a
strategy one model that takes stop strings, and the pool.
Returns: quality π in [0, 1], rows sum to 1, and each model's mean cost in US dollars, shape (n_queries, n_models).

Differs from the paper:
- SmolLM2-135M-Instruct with adapters (any Llama folder works), not a 3B model with all weights.
- An outcome table replays one question, whole: an episode ends with the first call, put with the query itself, and
  the called model's graded answer stands for the final one. Later rounds and the writing of answers are not trained.
- A model this small never keeps the format by prompting. It is first shown the form (cross entropy), with models'
  names drawn at random, so that all it knows of whom to ask comes from the policy gradient.
- REINFORCE with a leave-one-out baseline over a group of samples of one query instead of PPO with a critic.
- R_cost is scaled by the table's costs (the last 1000 of them) instead of a window that rolls while training.
- All colons after the name belong to the question; the reference cuts it at the second one.
- Live, the transcript goes on over chat turns (information is a user's turn): chat APIs cannot go on within one.

Laws: at most `turns` calls and one closing generation; what a model says is inserted word for word, "None" when it
fails; the answer is the last answer span; usage and cost are all calls' together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from outcomes.artefact import Manifest, arguments
from outcomes.causal_artefact import load_lm, save_lm
from outcomes.causal_lm import CausalLm
from outcomes.causal_training import Batch, CausalTraining, Learner, TrainedLm
from outcomes.learning_set import LearningSet, constant_costs, learning_set, replay_order, require_fitted
from outcomes.networks import softmax
from outcomes.tag_protocol import CostScale, blended, broken_rule, final_answer, open_tag, resolve, search_of
from protocol.chat import ChatRequest, human_ask
from protocol.errors import ChorusError, UpstreamError
from protocol.methods import Evidence, Method
from protocol.routing import Estimate, Outcomes, Queries
from protocol.run import Answer, Event, Reply, Run
from protocol.usage import Usage

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

METHOD = Method(
    id="router-r1",
    title="Router-R1: Teaching LLMs Multi-Round Routing and Aggregation via Reinforcement Learning",
    year=2025,
    paper="arXiv 2506.09033",
    taxonomy="a1",
    contract="router",
    implementation="RouterR1",
    needs=frozenset({"text", "language-model", "artefact", "labels"}),
    evidence=(
        Evidence(
            "exact equivalence",
            "every rule of the format, its −1, 0, 1 and the blend with the cost reward",
            "tests/outcomes/test_tag_protocol.py::test_every_rule_of_the_format",
        ),
        Evidence(
            "exact equivalence",
            "a scripted router and pool: calls bounded, information word for word, usage and money summed, last answer",
            "tests/routers/test_router_r1.py::test_two_rounds_and_an_answer",
        ),
        Evidence(
            "exact equivalence",
            "π is the language model's own probability of each name, which the sampler draws by",
            "tests/routers/test_router_r1.py::test_policy_is_what_is_sampled",
        ),
        Evidence(
            "invariant",
            "policy gradient on a table raises the mean reward far above the form-only start",
            "tests/routers/test_router_r1.py::test_policy_gradient_learns_whom_to_ask",
        ),
    ),
    unverified="the paper's EM averages are recalled and were not reproduced; the list of placeholders is ours; "
    "the packaged SmolLM2-135M learnt which of four models is best, and nothing beyond (docs/training.md)",
)

RULES = (
    "You answer the question with the help of other models. Think first, inside <think> and </think>. If another "
    "model should know, ask it: <search>NAME:question</search>, its name copied exactly; its reply comes inside "
    "<information> and </information>. Ask as often as you need. Then answer inside <answer> and </answer>.\n"
    "Models:\n"
)
SHORT = "Think, then ask one model by <search>NAME:question</search>, then answer. Models:\n"
"""The rules as the small model is trained with: every token is read at every step."""
THOUGHT = "<think>Who knows this?</think>\n<search>"
HELPER = "Answer the question as well as you can, briefly and completely.\n\nQuestion: "
CLOSING = "No more models can be asked. Answer now, inside <answer> and </answer>."
TURN_TOKENS, REPLY_TOKENS, SAID_TOKENS = 1024, 512, 40


@dataclass(kw_only=True, eq=False)
class RouterR1(CausalTraining):
    """The policy of whom to ask. `epochs` of learning the form, then `rounds` of policy gradient with `group` samples
    of one query each, at `policy_rate`; `cost_weight` a; `kl` keeps the policy near where the rounds began."""

    epochs: int = 1
    rounds: int = 60
    group: int = 8
    policy_rate: float = 3e-4
    cost_weight: float = 0.0
    kl: float = 0.001

    def fit(self, outcomes: Outcomes) -> Self:
        """Learn the form, then the policy. Raises `MethodError`."""
        learn = learning_set(outcomes, METHOD.id, embedded=False)
        names = tuple(sorted(learn.models))
        lm = CausalLm.load(self.start)
        prompt = Prompt.of(lm, names)
        with self.learner(lm) as learner:
            if self.epochs:
                drawn = np.random.default_rng(self.seed).integers(0, len(names), len(learn))
                shown = [
                    (prompt.ids(lm, text, self.max_tokens), prompt.said(lm, names[m], text, self.max_tokens))
                    for text, m in zip(learn.texts, drawn, strict=True)
                ]
                starts = [len(before) for before, _ in shown]
                learner.run(
                    [[*before, *said] for before, said in shown],
                    lambda rows, batch: _cross_entropy(batch, [starts[row] for row in rows]),
                    self.epochs,
                    stage="form",
                )
                self._rounds(learner, prompt, learn, names)
            trained = learner.trained()
        self._keep(learn.models, trained, learn.model_costs())
        return self

    def _rounds(self, learner: Learner, prompt: Prompt, learn: LearningSet, names: Sequence[str]) -> None:
        order = replay_order(learn.texts)
        rewards = table_rewards(learn.score, learn.cost_usd, self.cost_weight)
        reference = {name: value.detach().clone() for name, value in learner.learnt.items()}
        self.rewards_: list[float] = []

        def play(r: int) -> tuple[list[list[int]], Any]:
            row = int(order[r % len(order)])
            text = learn.texts[row]
            asked = prompt.ids(learner.lm, text, self.max_tokens)
            said = learner.sample(
                asked,
                self.group,
                SAID_TOKENS,
                lambda ids: named(learner.lm.text(ids)) is not None,
                self.seed + r,
            )
            found = np.array([self._reward(learner.lm.text(ids), text, names, rewards[row]) for ids in said])
            self.rewards_.append(float(np.nanmean(found)) if not np.isnan(found).all() else float("nan"))
            texts = [[*asked, *ids] for ids in said]
            starts = [len(asked)] * len(texts)
            near = _log_probabilities(learner, reference, texts, starts) if self.kl else None
            return texts, lambda batch: policy_loss(batch, starts, advantages(found), near, self.kl)

        mark = "\n".join([*learn.texts, repr(rewards.tolist())])
        learner.play(self.rounds, play, mark=mark, rate=self.policy_rate)

    def _reward(self, said: str, text: str, names: Sequence[str], row: Floats) -> float:
        """Reward of what was said up to a name; NaN where the table does not know that model's answer."""
        name = named(said)
        if name is None:
            return -1.0
        # The table answers the query itself: the rest of the transcript is that.
        question = text.replace(":", " ")
        whole = f"{said}{question}</search><information>…</information><think>It is answered.</think><answer>…</answer>"
        found = resolve(name, names)
        if found is None or broken_rule(whole, names) not in (None, REPEATED):
            return -1.0
        return float(row[names.index(found)])

    def estimate(self, queries: Queries) -> Estimate:
        """π of every query. Raises `MethodError` before `fit`."""
        require_fitted(self, METHOD.id)
        quality = np.array([self.policy(text) for text in queries.texts]).reshape(-1, len(self.models_))
        return Estimate(self.models_, quality, constant_costs(self.costs_, len(queries)))

    def policy(self, text: str) -> Floats:
        """Probabilities of asking each model first, after the thought of the training, shape (n_models,)."""
        lm, prompt = self.trained_.lm, self._prompt
        asked = [*lm.question(text, self.max_tokens), *prompt.after, *lm.tokens(THOUGHT)]
        names = [lm.tokens(f"{name}:") for name in self.models_]
        return np.asarray(softmax(lm.log_probabilities(asked, names, lm.opening(prompt.before))))

    def save(self, folder: Path) -> None:
        """Write the artefact."""
        save_lm(
            folder,
            Manifest(method=METHOD.id, models=self.models_, parameters=self.recipe()),
            self.trained_,
            self.costs_,
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an artefact. Raises `MethodError`, `ArtefactMismatch`."""
        kept = load_lm(folder, METHOD.id)
        router = cls(**arguments(cls, kept.manifest))
        router._keep(kept.manifest.models, kept.trained(), kept.costs)
        return router

    def _keep(self, models: tuple[str, ...], trained: TrainedLm, costs: Floats) -> None:
        self.models_, self.trained_, self.costs_ = models, trained, costs
        self._prompt = Prompt.of(trained.lm, tuple(sorted(models)))

    @staticmethod
    def talk(members: Mapping[str, str], **options: Any) -> RouterR1Talk:
        """The strategy: `members` are the pool, name → description. Raises `TypeError` for an unknown option,
        `ValueError` for a bad one."""
        return RouterR1Talk(members=dict(members), **options)


REPEATED = "a model's name is not repeated in the question"
"""The one rule that the query, which the policy did not write, can break."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the small model reads before and after the question."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @classmethod
    def of(cls, lm: CausalLm, names: Sequence[str]) -> Prompt:
        before, after = lm.framed(SHORT + "\n".join(names), "{question}")
        return cls(tuple(lm.tokens(before)), tuple(lm.tokens(after)))

    def ids(self, lm: CausalLm, text: str, most: int) -> list[int]:
        return [*self.before, *lm.question(text, most), *self.after]

    def said(self, lm: CausalLm, name: str, text: str, most: int) -> list[int]:
        """A whole call as the form is taught."""
        return [
            *lm.tokens(THOUGHT),
            *lm.tokens(f"{name}:"),
            *lm.question(text, most),
            *lm.tokens("</search>"),
        ]


def named(said: str) -> str | None:
    """The name in the first search of `said`, once its colon was said; else None."""
    _, tag, rest = said.partition("<search>")
    name, colon, _ = rest.partition(":")
    return name.strip() if tag and colon else None


def table_rewards(score: Floats, cost_usd: Floats, cost_weight: float) -> Floats:
    """What asking each model earns, shape (n_queries, n_models); NaN where the score is unknown."""
    scale = CostScale()
    for cost in cost_usd[~np.isnan(cost_usd)].tolist():
        scale.see(cost)
    rows = zip(score.ravel().tolist(), cost_usd.ravel().tolist(), strict=True)
    found = [
        float("nan")
        if np.isnan(right)
        else blended(right, 0.5 if np.isnan(cost) else scale.reward(cost), cost_weight)
        for right, cost in rows
    ]
    return np.array(found).reshape(score.shape)


def advantages(rewards: Floats) -> Floats:
    """Each reward less the mean of the others of its group; 0 for an unknown one, and where no other is known."""
    known = ~np.isnan(rewards)
    if known.sum() < 2:
        return np.zeros(len(rewards))
    others = (rewards[known].sum() - rewards[known]) / (known.sum() - 1)
    found = np.zeros(len(rewards))
    found[known] = rewards[known] - others
    return found


def policy_loss(
    batch: Batch, starts: Sequence[int], advantage: Floats, near: torch.Tensor | None, kl: float
) -> torch.Tensor:
    """−mean[advantage · log π(said)] + kl · KL(π ‖ start), the latter by Schulman's estimator, a mean over tokens.
    Tokens before `starts` are the prompt's and count for nothing."""
    import torch

    log_p, counts = batch.log_probabilities(starts)
    loss = -(torch.from_numpy(advantage).float() * log_p.sum(1)).mean()
    if near is not None:
        apart = (near - log_p)[counts]
        loss = loss + kl * (torch.exp(apart) - apart - 1).mean()
    return loss


def _cross_entropy(batch: Batch, starts: Sequence[int]) -> torch.Tensor:
    log_p, counts = batch.log_probabilities(starts)
    return -log_p.sum() / counts.sum()


def _log_probabilities(
    learner: Learner,
    values: Mapping[str, torch.Tensor],
    texts: Sequence[Sequence[int]],
    starts: Sequence[int],
) -> torch.Tensor:
    """Log-probabilities of `texts` under other learnt `values`."""
    own = dict(learner.learnt)
    learner.learnt.update(values)
    try:
        with learner.torch.no_grad():
            return learner.batch(texts).log_probabilities(starts)[0]
    finally:
        learner.learnt.update(own)


@dataclass(frozen=True, kw_only=True)
class RouterR1Talk:
    """Think, ask, read, answer: `router` writes, `members` (name → description) are asked. `turns`: calls at most.
    `trained`: whether `router` was trained for this; else it is merely prompted, and the trace says so.

    A request with tools, a response format or several choices, or without text, goes to the first member as it is.
    """

    members: Mapping[str, str]
    router: str
    turns: int = 4
    temperature: float = 1.0
    trained: bool = False

    def __post_init__(self) -> None:
        if type(self.turns) is not int or self.turns < 1:
            raise ValueError(f"turns: {self.turns!r} is not a number of calls")

    async def answer(self, request: ChatRequest, run: Run) -> AsyncIterator[Event]:
        """Yields one answer. Raises the router model's `ChorusError` when nothing was learnt before it failed."""
        pool, question = tuple(self.members), human_ask(request)
        body = request.body
        if (
            not question
            or any(body.get(key) for key in ("tools", "functions", "response_format"))
            or (body.get("n") or 1) > 1
        ):
            run.trace.note(method=METHOD.id, chosen=pool[0], reason="not a plain question: asked directly")
            async for event in run.relay(pool[0], request):
                yield event
            return
        replies: list[Reply] = []
        rounds: list[dict[str, Any]] = []
        text, last = "", ""
        messages = [*self._before(request), {"role": "user", "content": self._prompt(question)}]
        stopped = "answered"
        for turn in range(self.turns + 1):
            closing = turn == self.turns
            if closing and rounds:
                messages = _extended(messages, "user", CLOSING)
            try:
                reply = await run.call(self.router, self._generation(request, messages))
            except ChorusError as error:
                if not last:
                    raise
                stopped = error.code or error.type
                break
            replies.append(reply)
            said = _closed(reply.text)
            text += said
            messages = _extended(messages, "assistant", said)
            if final_answer(said) is not None or closing:
                break
            span = (
                said.rpartition("<search>")[2].partition("</search>")[0]
                if said.endswith("</search>")
                else None
            )
            if span is None:
                continue
            row, heard = await self._ask(span, pool, run)
            rounds.append(row)
            if heard is not None:
                replies.append(heard)
                last = heard.text
            inserted = f"<information>{'None' if heard is None else heard.text}</information>"
            text += f"\n{inserted}\n"
            messages = _extended(messages, "user", inserted)
        found = final_answer(text)
        run.trace.note(
            method=METHOD.id,
            mode="trained" if self.trained else "prompted",
            rounds=rounds,
            stopped=stopped,
            answer="router" if found else "last reply" if last else "transcript",
        )
        yield Answer(_merged(replies, found or last or text.strip()))

    async def _ask(self, span: str, pool: Sequence[str], run: Run) -> tuple[dict[str, Any], Reply | None]:
        """Make the call that a search span asks for: its row of the trace, and the reply, None without one."""
        call = search_of(span, pool)
        name = resolve(call.name, pool)
        row: dict[str, Any] = {"written": call.name[:100], "model": name}
        if name is None or not call.question:
            return {**row, "outcome": "no such model" if name is None else "no question"}, None
        asked = {
            "model": name,
            "messages": [{"role": "user", "content": HELPER + call.question}],
            "max_tokens": REPLY_TOKENS,
            "temperature": 0,
        }
        try:
            return {**row, "outcome": "ok"}, await run.call(name, ChatRequest(asked))
        except UpstreamError as error:
            return {**row, "outcome": error.code or error.type}, None

    def _before(self, request: ChatRequest) -> list[Mapping[str, Any]]:
        """The conversation up to the last human ask, which the prompt repeats."""
        at = max(
            (i for i, m in enumerate(request.messages) if m["role"] == "user"),
            default=len(request.messages) - 1,
        )
        return list(request.messages[:at])

    def _prompt(self, question: str) -> str:
        pool = "\n".join(f"- {name}: {about}" for name, about in self.members.items())
        return f"{RULES}{pool}\n\nQuestion: {question}"

    def _generation(self, request: ChatRequest, messages: Sequence[Mapping[str, Any]]) -> ChatRequest:
        body = {
            "model": self.router,
            "messages": list(messages),
            "stop": ["</search>", "</answer>"],
            "temperature": self.temperature,
            "max_tokens": TURN_TOKENS,
        }
        if (seed := request.body.get("seed")) is not None:
            body["seed"] = seed
        return replace(request, body=body)


def _closed(said: str) -> str:
    """What the router said, with the stop string that ended it."""
    tag = open_tag(said)
    return f"{said}</{tag}>" if tag in ("search", "answer") else said


def _extended(messages: Sequence[Mapping[str, Any]], role: str, text: str) -> list[Mapping[str, Any]]:
    """`messages` with `text` as a turn of `role`, joined to the last turn where that is of the same role."""
    *before, last = messages
    if last["role"] == role:
        return [*before, {"role": role, "content": f"{last['content']}\n{text}"}]
    return [*messages, {"role": role, "content": text}]


def _merged(replies: Sequence[Reply], text: str) -> Reply:
    """`text` as the completion, usage and cost of all calls together."""
    last = replies[-1]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = sum((reply.usage for reply in replies), Usage())
    members = tuple(dict.fromkeys(member for reply in replies for member in reply.members))
    return Reply(
        {**last.body, "choices": [choice], "usage": usage.wire()},
        members,
        cost_usd=sum(reply.cost_usd for reply in replies),
        latency_s=sum(reply.latency_s for reply in replies),
    )
