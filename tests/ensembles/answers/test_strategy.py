"""Answer ensembles on live calls."""

from __future__ import annotations

import pytest

from ensembles.answers.agent_forest import AgentForest
from ensembles.answers.strategy import AnswerEnsemble
from protocol.errors import BadRequest, SettingsError, UpstreamBroken, UpstreamUnavailable
from protocol.run import Answer
from protocol.settings import Aggregate
from protocol.usage import Usage
from tests.scripted_run import ScriptedRun, ask, events_of, reply

DOWN = UpstreamUnavailable("down")
FIVE, SIX = "The answer is 5.", "The answer is 6."


def ensemble(members=("a", "b"), samples: int = 2) -> AnswerEnsemble:
    return AnswerEnsemble("vote", AgentForest(members, samples), method="agent-forest")


async def answer(run: ScriptedRun, strategy: AnswerEnsemble | None = None, **fields):
    (event,) = await events_of(strategy or ensemble(), ask(**fields), run)
    assert isinstance(event, Answer)
    return event.reply


def script() -> ScriptedRun:
    """Member a says 6 then 5, member b says 5 twice."""
    return ScriptedRun(
        {
            "a": [reply(SIX, model="a"), reply(FIVE, model="a", usage=Usage(10, 4), cost_usd=2e-6)],
            "b": [
                reply(FIVE, model="b", finish_reason="length"),
                reply("It is 5: the answer is 5.", model="b"),
            ],
        }
    )


async def test_returns_the_winners_choice_under_the_strategys_name() -> None:
    """The body is the winner's, its model the strategy's name; members, usage and cost are everybody's."""
    run = script()
    found = await answer(run)
    assert found.text == FIVE
    assert found.body["model"] == "vote"
    assert found.body["choices"][0]["finish_reason"] == "length"
    assert found.body["vendor_field"] == 1
    assert found.members == ("a", "b")
    assert found.usage == Usage(40, 10) == run.trace.usage
    assert found.cost_usd == pytest.approx(run.trace.cost_usd) == pytest.approx(5e-6)
    assert found.raw is None


async def test_the_trace_shows_samples_and_votes() -> None:
    """Every sample with its key and score, the vote table and the choice are in the trace."""
    run = script()
    await answer(run)
    told = run.trace.decision
    assert (told["method"], told["by"], told["chosen"], told["votes"]) == (
        "agent-forest",
        "equal number",
        1,
        {"6": 1.0, "5": 3.0},
    )
    assert [(s["model"], s["key"], s["score"]) for s in told["samples"]] == [
        ("a", "6", 0.0),
        ("b", "5", 2.0),
        ("a", "5", 2.0),
        ("b", "5", 2.0),
    ]
    assert len({s["text"] for s in told["samples"]}) == 3


async def test_a_failed_slot_is_dropped() -> None:
    """The answers that came decide; who failed is traced."""
    run = ScriptedRun({"a": [DOWN], "b": [reply(FIVE, model="b")]})
    found = await answer(run)
    assert (found.text, found.members) == (FIVE, ("b",))
    assert run.trace.decision["failures"] == [{"model": "a", "error": "upstream_unavailable"}] * 2


async def test_all_slots_failing_raises() -> None:
    """Without an answer the first error is raised, the caller's own fault before a backend's."""
    with pytest.raises(UpstreamUnavailable):
        await answer(ScriptedRun({"a": [DOWN], "b": [UpstreamBroken("b")]}))
    with pytest.raises(BadRequest):
        await answer(ScriptedRun({"a": [DOWN], "b": [BadRequest("too long")]}))


async def test_slots_carry_the_callers_request() -> None:
    """Every field of the caller reaches every slot, streaming apart; slots differ by seed."""
    fields = {
        "tools": [{"type": "function"}],
        "stop": ["x"],
        "logprobs": True,
        "max_tokens": 9,
        "odd": {"x": 1},
    }
    run = script()
    await answer(run, stream=True, stream_options={"include_usage": True}, seed=11, **fields)
    for _, asked in run.asked:
        assert {key: asked.body[key] for key in fields} == fields
        assert {"stream", "stream_options"}.isdisjoint(asked.body)
        assert (asked.body["temperature"], asked.body["top_p"]) == (1, 1)
    assert [asked.body["seed"] for _, asked in run.asked] == [11, 12, 13, 14]


async def test_logprobs_and_tool_calls_of_the_winner_are_returned() -> None:
    """The winner's whole choice is returned, log-probabilities or tool calls included."""
    run = ScriptedRun({"a": [reply(FIVE, logprobs=[-0.1, -0.2])]})
    found = await answer(run, ensemble(("a",)), logprobs=True)
    assert found.token_logprobs == [-0.1, -0.2]
    calls = [
        [{"id": name, "type": "function", "function": {"name": "f", "arguments": arguments}}]
        for name, arguments in (("1", '{"x": 2}'), ("2", '{"x": 1, "y": 2}'), ("3", '{"y":2,"x":1}'))
    ]
    run = ScriptedRun({"a": [reply(tool_calls=call) for call in calls]})
    found = await answer(run, ensemble(("a",), 3), tools=[{"type": "function"}])
    assert found.body["choices"][0]["message"]["tool_calls"] == calls[1]


async def test_broken_tool_arguments_are_compared_as_text() -> None:
    """Arguments that are not JSON still vote, letter for letter."""
    call = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{not json"}}]
    found = await answer(ScriptedRun({"a": [reply(tool_calls=call)]}), ensemble(("a",)), tools=[{}])
    assert found.body["choices"][0]["message"]["tool_calls"] == call


async def test_several_choices_are_refused_before_any_call() -> None:
    """N > 1 costs nothing: it is refused before asking anybody."""
    run = script()
    with pytest.raises(BadRequest):
        await answer(run, n=2)
    assert run.asked == []


def test_settings_make_the_ensemble() -> None:
    """A config section becomes the ensemble, its options the method's parameters."""
    strategy = AnswerEnsemble.from_settings(
        "v", Aggregate(members=("a", "b"), samples=3, options={"answer": "number"})
    )
    assert strategy.name == "v"
    assert strategy.aggregator.members == ("a", "b")
    assert (strategy.aggregator.samples, strategy.aggregator.answer) == (3, "number")


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"options": {"anwser": "number"}}, "answer"),
        ({"options": {"answer": "guess"}}, "guess"),
        ({"samples": 40, "members": ("a", "b")}, "64"),
        ({"method": "agent-forrest"}, "agent-forest"),
    ],
)
def test_bad_settings_are_named(section: dict, told: str) -> None:
    """Unknown methods and options, bad values and too many samples stop the start, with a remedy."""
    with pytest.raises(SettingsError, match=told):
        AnswerEnsemble.from_settings("v", Aggregate(**{"members": ("a",), **section}))
