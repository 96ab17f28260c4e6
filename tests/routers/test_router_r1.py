"""router-r1: the talk on scripted calls, and the policy learnt from a table."""

from __future__ import annotations

import re

import numpy as np
import pytest

from outcomes.table import OutcomeTable
from protocol.errors import UpstreamUnavailable
from protocol.run import Answer, Reply
from routers.router_r1 import SHORT, THOUGHT, Prompt, RouterR1, RouterR1Talk, advantages, named, table_rewards
from tests.language_models import QUICK, tiny_lm
from tests.scripted_run import ScriptedRun, ask, events_of, reply

MODELS = ("history", "poem", "code")
LETTERS = re.findall("[A-Za-z]+|[^A-Za-z ]", f"{SHORT} {THOUGHT} </search> User Assistant")
POOL = {"big": "knows much", "small": "is cheap"}


async def _talk(run: ScriptedRun, **settings: object) -> Reply:
    [event] = await events_of(RouterR1.talk(POOL, router="lm", **settings), ask("Who wrote Emma?"), run)
    assert isinstance(event, Answer)
    return event.reply


async def test_two_rounds_and_an_answer() -> None:
    """Two calls, their replies inserted word for word, the last answer span; usage and money of all calls together."""
    said = [
        reply("<think>Hm.</think><search>big: Who: exactly?", model="lm"),
        reply("<think>Sure?</think><search>SMALL:Is it?", model="lm"),
        reply("<think>Yes.</think><answer> Jane Austen", model="lm"),
    ]
    run = ScriptedRun(
        {"lm": said, "big": [reply("Austen, J.", model="big")], "small": [reply("It is.", model="small")]}
    )
    found = await _talk(run)
    assert found.text == "Jane Austen"
    assert [name for name, _ in run.asked] == ["lm", "big", "lm", "small", "lm"]
    assert run.asked[1][1].messages[0]["content"].endswith("Question: Who: exactly?")
    assert run.asked[1][1].body["temperature"] == 0
    last = run.asked[4][1].messages
    assert [m["role"] for m in last] == ["user", "assistant", "user", "assistant", "user"]
    assert last[2]["content"] == "<information>Austen, J.</information>"
    assert last[4]["content"] == "<information>It is.</information>"
    assert last[1]["content"].endswith("</search>"), "the stop string is put back"
    assert run.asked[0][1].body["stop"] == ["</search>", "</answer>"]
    assert found.usage.prompt_tokens == 50
    assert found.cost_usd == pytest.approx(5e-6)
    assert set(found.members) == {"lm", "big", "small"}
    assert run.trace.decision["mode"] == "prompted"
    assert [row["model"] for row in run.trace.decision["rounds"]] == ["big", "small"]


async def test_turns_are_bounded() -> None:
    """A router that never stops asking is asked `turns` times and once to close; then the last reply is the answer."""
    run = ScriptedRun({"lm": [reply("<think>More.</think><search>big:And?")], "big": [reply("That is all.")]})
    found = await _talk(run, turns=2, trained=True)
    names = [name for name, _ in run.asked]
    assert (names.count("lm"), names.count("big")) == (3, 2)
    assert "No more models" in run.asked[-1][1].messages[-1]["content"]
    assert found.text == "That is all."
    assert run.trace.decision["answer"] == "last reply"
    assert run.trace.decision["mode"] == "trained"


async def test_what_cannot_be_asked_is_none() -> None:
    """An unknown model, and one that fails, give the information "None"; the talk goes on."""
    said = [reply("<search>oracle:?"), reply("<search>big:Who?"), reply("<answer>I guess")]
    run = ScriptedRun({"lm": said, "big": [UpstreamUnavailable("down")]})
    assert (await _talk(run)).text == "I guess"
    heard = [m["content"] for m in run.asked[-1][1].messages if m["role"] == "user"][1:]
    assert heard == ["<information>None</information>"] * 2


async def test_a_router_that_fails_late_gives_the_last_reply() -> None:
    """Once something was heard it is the answer; before that the router's own error is raised."""
    run = ScriptedRun(
        {"lm": [reply("<search>big:Who?"), UpstreamUnavailable("down")], "big": [reply("Austen")]}
    )
    assert (await _talk(run)).text == "Austen"
    with pytest.raises(UpstreamUnavailable):
        await _talk(ScriptedRun({"lm": [UpstreamUnavailable("down")]}))


async def test_what_is_no_plain_question_is_asked_directly() -> None:
    """Tools and response formats are the models' own affair: the first member answers as asked."""
    run = ScriptedRun({"big": [reply("{}")]})
    talk = RouterR1Talk(members=POOL, router="lm")
    await events_of(talk, ask("x", response_format={"type": "json_object"}), run)
    assert [name for name, _ in run.asked] == ["big"]


def test_advantages_and_rewards() -> None:
    """Leave-one-out: against the mean of the others; unknown rewards count for nothing. A cheap right answer earns
    more than a dear one, a wrong one nothing."""
    assert advantages(np.array([1.0, 0.0, np.nan])).tolist() == [1.0, -1.0, 0.0]
    assert advantages(np.array([1.0, np.nan])).tolist() == [0.0, 0.0]
    cost = np.array([[1e-6, 9e-6, 4e-6]] * 50)
    rewards = table_rewards(np.array([[1.0, 1.0, 0.0]] * 50), cost, 0.6)
    assert rewards[0].tolist() == pytest.approx([1.0, 0.4, 0.0])
    assert named("<think>x</think><search> big : what") == "big"
    assert named("<search>big") is None


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    return str(tiny_lm(tmp_path_factory.mktemp("tiny"), words=LETTERS, dimensions=64))


SETTINGS = QUICK | {"epochs": 36, "rate": 2e-2, "rank": 16}


@pytest.fixture(scope="module")
def form(start: str) -> RouterR1:
    """A router that was shown the form alone."""
    return RouterR1(start=start, rounds=0, **SETTINGS).fit(_table(64, 0))


@pytest.mark.requires("torch")
def test_policy_gradient_learns_whom_to_ask(start: str, form: RouterR1) -> None:
    """Only one model is ever right. From a start that knows the form alone, the rounds raise the reward of what is
    sampled, and the policy on held-out queries names that model."""
    router = RouterR1(start=start, rounds=24, group=8, policy_rate=1e-3, **SETTINGS).fit(_table(64, 0))
    assert np.mean(router.rewards_[-12:]) > np.mean(router.rewards_[:4]) + 0.1
    queries = _table(10, 1).queries
    quality = router.estimate(queries).quality
    assert np.allclose(quality.sum(axis=1), 1)
    assert quality[:, 1].mean() > 0.8 > 0.6 > form.estimate(queries).quality[:, 1].mean()


@pytest.mark.requires("torch")
def test_policy_is_what_is_sampled(form: RouterR1) -> None:
    """π comes from the probabilities that the sampler draws by: frequencies of names after the same words agree."""
    router = form
    lm, text = router.trained_.lm, "river stone 1"
    prompt = [*Prompt.of(lm, tuple(sorted(MODELS))).ids(lm, text, 64), *lm.tokens(THOUGHT)]
    with router.learner(lm) as learner:
        for name, value in learner.learnt.items():
            at = name.removeprefix("lora.")
            a, b = lm.adapter[at[:-2]]
            value.data = learner.torch.tensor(a if at.endswith(".a") else b / router.scale)
        said = [lm.text(ids) for ids in learner.sample(prompt, 600, 3, lambda ids: ":" in lm.text(ids), 0)]
        longer = learner.sample(prompt, 2, 6, lambda ids: False, 1)
    assert all(len(row) == 6 for row in longer)
    counts = np.array([sum(name == f"{model}:" for name in said) for model in MODELS])
    assert np.abs(counts / counts.sum() - router.policy(text)).max() < 0.08


def _table(n: int, seed: int) -> OutcomeTable:
    rng = np.random.default_rng(seed)
    texts = [f"{rng.choice(['river', 'stone', 'bridge'])} {rng.choice(['one', 'two'])} {i}" for i in range(n)]
    return OutcomeTable.of_matrices(MODELS, texts, np.tile([0.0, 1.0, 0.0], (n, 1)))
