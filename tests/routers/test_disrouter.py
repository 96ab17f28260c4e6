"""disrouter: thresholds, perfect self-knowledge, independent agents, the hand-over on scripted calls, and learning."""

from __future__ import annotations

import numpy as np
import pytest

from outcomes.table import OutcomeTable
from protocol.errors import UpstreamUnavailable
from protocol.run import Answer, Reply
from routers.disrouter import DisRouter, balanced_rows, by_cost, local_reward, refusal_reward, refused, stops
from tests.language_models import QUICK, tiny_lm
from tests.routers.recorded import worded_table
from tests.scripted_run import ScriptedRun, ask, events_of, reply

ALPHAS = (0.2, 0.5, 0.8)


def test_thresholds() -> None:
    """The best policy answers iff p > (1 − α)^γ: 0.894, 0.707, 0.447, which SFT's δ = 1 − α is not."""
    p = np.linspace(0, 1, 1001)
    for alpha, threshold in zip(ALPHAS, (0.894, 0.707, 0.447), strict=True):
        worth = refusal_reward(alpha)
        assert worth == pytest.approx(threshold, abs=1e-3)
        answering, refusing = local_reward(np.zeros(1001), p, worth), local_reward(np.ones(1001), p, worth)
        assert np.array_equal(answering > refusing, p > worth)


def test_perfect_self_knowledge() -> None:
    """Agents that know their pass rates and follow the threshold: utility between the best single model's and the
    oracle's in all three scenarios; cost falls as α grows, query by query."""
    rng = np.random.default_rng(0)
    cost = np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    ability = rng.normal(size=(400, 1)) + np.linspace(-0.5, 1.5, 5) + 0.7 * rng.normal(size=(400, 5))
    p = 1 / (1 + np.exp(-3 * ability))
    before = np.full(400, np.inf)
    for alpha in ALPHAS:
        who = stops((p[:, :-1] > refusal_reward(alpha)).astype(float)).argmax(axis=1)
        utility = (p - alpha * cost)[np.arange(400), who].mean()
        assert (p - alpha * cost).mean(axis=0).max() < utility < (p - alpha * cost).max(axis=1).mean()
        assert (cost[who] <= before).all()
        before = cost[who]
        assert before.mean() < 0.9


def test_who_is_asked_first() -> None:
    """The cheapest first; without a cost, the worst of those last; who stops is a distribution."""
    nan = float("nan")
    assert by_cost(np.array([0.9, 0.5, 0.7, 0.2]), np.array([3e-6, 1e-6, nan, nan]), "abcd").tolist() == [
        1,
        0,
        3,
        2,
    ]
    found = stops(np.array([[0.5, 0.5], [1.0, 0.3], [0.0, 0.0]]))
    assert found.tolist() == [[0.5, 0.25, 0.25], [1, 0, 0], [0, 0, 1]]


def test_balance() -> None:
    """As many below the threshold as not, unknown ones left out; all where one part is empty."""
    p = np.array([0.0, 1, 1, 1, np.nan, 0.2])
    rows = balanced_rows(p, 0.5, [f"t{i}" for i in range(6)])
    assert len(rows) == 4
    assert {0, 5} <= set(rows.tolist())
    assert balanced_rows(np.ones(3), 0.5, ["a", "b", "c"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I don't know.", True),
        ("i don’t know", True),
        (" I dont know! ", True),
        ("I don't know him.", False),
        ("", False),
    ],
)
def test_a_refusal_is_one_fixed_string(text: str, found: bool) -> None:
    """Case, apostrophe and full stop aside; an answer that begins like one is an answer."""
    assert refused(text) is found


async def _handed(run: ScriptedRun, **fields: object) -> Reply:
    talk = DisRouter.talk({"small": "", "mid": "", "big": ""}, alpha=0.8)
    [event] = await events_of(talk, ask("Who?", **fields), run)
    assert isinstance(event, Answer)
    return event.reply


async def test_the_first_that_does_not_refuse_answers() -> None:
    """Refusals pass the query on and are paid for; the agents are told the scenario, the last one nothing."""
    run = ScriptedRun({"small": [reply("I don't know.")], "mid": [reply("Austen")], "big": [reply("x")]})
    found = await _handed(run)
    assert found.text == "Austen"
    assert found.cost_usd == pytest.approx(2e-6)
    assert found.usage.prompt_tokens == 20
    assert "surely cannot answer" in run.asked[0][1].messages[0]["content"]
    assert [row["outcome"] for row in run.trace.decision["agents"]] == ["refused", "answered"]
    run = ScriptedRun({name: [reply("I don't know.")] for name in ("small", "mid", "big")})
    assert (await _handed(run)).text == "I don't know.", "the last one is not judged"
    assert [m["role"] for m in run.asked[2][1].messages] == ["user"]


async def test_failures_are_passed_over_and_tool_calls_are_answers() -> None:
    """A member that is down hands on; one that calls a tool has answered."""
    call = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    run = ScriptedRun(
        {"small": [UpstreamUnavailable("down")], "mid": [reply(tool_calls=call)], "big": [reply("x")]}
    )
    assert (await _handed(run)).body["choices"][0]["message"]["tool_calls"] == call


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    return str(tiny_lm(tmp_path_factory.mktemp("tiny"), words=("I", "know", "don", "can", "answer", "this")))


@pytest.fixture(scope="module")
def trained(start: str) -> DisRouter:
    return DisRouter(start=start, policy_epochs=4, **QUICK | {"epochs": 8}).fit(_pair(160, 0))


@pytest.mark.requires("torch")
def test_agents_learn_what_they_know(trained: DisRouter, start: str) -> None:
    """The small model is right where one word stands: trained, its local reward on held-out queries is far above that
    of always answering, which is what it does untrained."""
    test = _pair(80, 1)
    worth, p = refusal_reward(0.5), test.score[:, 0]
    untrained = DisRouter(start=start, **QUICK | {"epochs": 0}).fit(_pair(160, 0))
    reward = {
        name: local_reward(1 - router.estimate(test.queries).quality[:, 0], p, worth).mean()
        for name, router in (("trained", trained), ("untrained", untrained))
    }
    assert reward["untrained"] == pytest.approx(p.mean(), abs=0.02)
    assert reward["trained"] > reward["untrained"] + 0.15


@pytest.mark.requires("torch")
def test_agents_are_independent(start: str) -> None:
    """An agent's acceptance is the same with another model beside it, before or after it in the order."""
    table = worded_table(48)
    settings = QUICK | {"epochs": 1}
    whole = DisRouter(start=start, **settings).fit(table)
    less = DisRouter(start=start, **settings).fit(table.only(["m1", "m2"]))
    assert [whole.models_[m] for m in whole.order_] == ["m0", "m1", "m2"]
    text = "what is the algebra number 7"
    assert whole.acceptance(text)[1] == pytest.approx(less.acceptance(text)[0], abs=1e-6)


def _pair(n: int, seed: int) -> OutcomeTable:
    """A cheap model that is right on poems, a dear one that is nearly always right."""
    rng = np.random.default_rng(seed)
    poem = rng.random(n) < 0.5
    texts = [
        f"{'poem' if is_poem else 'code'} {rng.choice(['river', 'stone'])} {i}"
        for i, is_poem in enumerate(poem)
    ]
    score = np.stack([poem.astype(float), np.ones(n)], axis=1)
    return OutcomeTable.of_matrices(["small", "big"], texts, score, np.tile([1e-6, 9e-6], (n, 1)))
