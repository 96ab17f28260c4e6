"""Cascades on live calls."""

from __future__ import annotations

import pytest

from cascades.base import Rule
from cascades.strategy import CascadeStrategy
from cascades.token_uncertainty import TokenUncertainty
from protocol.errors import (
    BadRequest,
    BudgetExceeded,
    ContextLengthExceeded,
    UpstreamBroken,
    UpstreamUnavailable,
)
from protocol.run import Answer, Chunk
from protocol.usage import Usage
from tests.scripted_run import ScriptedRun, ask, events_of, reply

SURE = reply("sure", model="small", logprobs=[-0.1, -0.1])
UNSURE = reply("unsure", model="small", logprobs=[-3.0, -3.0])
LARGE = reply("large", model="large", usage=Usage(12, 5), cost_usd=5e-6)
DOWN = UpstreamUnavailable("down")
TOOL = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def cascade(threshold: float = -1.0) -> CascadeStrategy:
    return CascadeStrategy(
        ("small", "large"), TokenUncertainty(), Rule((threshold,)), method="token-uncertainty"
    )


async def answer(run: ScriptedRun, threshold: float = -1.0, **fields):
    """The single answer of a cascade to a caller that does not stream."""
    (event,) = await events_of(cascade(threshold), ask(**fields), run)
    assert isinstance(event, Answer)
    return event.reply


async def test_accepts_a_sure_answer() -> None:
    """A good enough first answer is returned and nobody else is asked."""
    run = ScriptedRun({"small": [SURE], "large": [LARGE]})
    found = await answer(run)
    assert (found.text, found.members, found.cost_usd, found.usage) == ("sure", ("small",), 1e-6, SURE.usage)
    assert [name for name, _ in run.asked] == ["small"]


async def test_escalates_an_unsure_answer() -> None:
    """A poor first answer leads to the last stage; usage and cost of both are summed."""
    run = ScriptedRun({"small": [UNSURE], "large": [LARGE]})
    found = await answer(run)
    assert (found.text, found.members) == ("large", ("large",))
    assert found.usage == UNSURE.usage + LARGE.usage == run.trace.usage
    assert found.cost_usd == pytest.approx(6e-6) == pytest.approx(run.trace.cost_usd)
    assert found.raw is None


async def test_accept_always_is_stage_one_and_never_is_the_last() -> None:
    """Accept-always answers and costs as stage 1, accept-never as the last model at the summed cost."""
    always = await answer(ScriptedRun({"small": [UNSURE], "large": [LARGE]}), float("-inf"))
    never = await answer(ScriptedRun({"small": [SURE], "large": [LARGE]}), float("inf"))
    assert (always.text, always.cost_usd) == ("unsure", UNSURE.cost_usd)
    assert (never.text, never.cost_usd) == ("large", pytest.approx(SURE.cost_usd + LARGE.cost_usd))


async def test_logprobs_are_added_and_taken_out_again() -> None:
    """Log-probabilities are asked of judged stages alone, and not shown to a caller who did not ask."""
    run = ScriptedRun({"small": [UNSURE], "large": [LARGE]})
    await answer(run)
    assert run.asked[0][1].body["logprobs"] is True
    assert "logprobs" not in run.asked[1][1].body
    found = await answer(ScriptedRun({"small": [SURE], "large": [LARGE]}))
    assert found.body["choices"][0]["logprobs"] is None
    assert found.raw is None
    assert SURE.body["choices"][0]["logprobs"] is not None, "the reply it was given is left alone"


async def test_a_caller_who_asks_for_logprobs_gets_them() -> None:
    """Asked for by the caller, the accepted answer is returned as the backend sent it."""
    found = await answer(ScriptedRun({"small": [SURE], "large": [LARGE]}), logprobs=True, top_logprobs=3)
    assert found is SURE


async def test_everything_else_is_asked_of_every_stage() -> None:
    """Tools, response_format, stop, seed, n and unknown fields reach both stages unchanged."""
    fields = {
        "tools": [{"type": "function"}],
        "response_format": {"type": "json_object"},
        "seed": 3,
        "odd": 1,
    }
    run = ScriptedRun({"small": [UNSURE], "large": [LARGE]})
    await answer(run, **fields)
    for _, asked in run.asked:
        assert {key: asked.body[key] for key in fields} == fields


async def test_a_streaming_caller_gets_the_last_stage_streamed() -> None:
    """The first stage is asked whole; the last one's chunks are relayed as they come."""
    run = ScriptedRun({"small": [UNSURE], "large": [LARGE]})
    events = await events_of(cascade(), ask(stream=True, stream_options={"include_usage": True}), run)
    assert [event.data for event in events if isinstance(event, Chunk)] == [b"l", b"a", b"r", b"g", b"e"]
    assert {"stream", "stream_options"}.isdisjoint(run.asked[0][1].body)
    assert run.asked[1][1].wants_usage


async def test_a_streaming_caller_gets_an_accepted_early_answer_whole() -> None:
    """An early stage must be complete to be judged, so it arrives in one piece."""
    events = await events_of(cascade(), ask(stream=True), ScriptedRun({"small": [SURE], "large": [LARGE]}))
    assert [type(event) for event in events] == [Answer]


async def test_a_caller_that_leaves_closes_the_relayed_stream() -> None:
    """Closing the strategy's events closes the last stage's."""
    run = ScriptedRun({"small": [UNSURE], "large": [LARGE]})
    events = cascade().answer(ask(stream=True), run)
    await anext(events)
    await events.aclose()
    assert run.relays_closed == 1


@pytest.mark.parametrize(
    "error", [DOWN, ContextLengthExceeded(limit=64, prompt_tokens=90), UpstreamBroken("cut")]
)
async def test_a_failed_stage_is_passed_over(error: Exception) -> None:
    """A stage that fails, or has no room for the prompt, leads to the next, and the trace says so."""
    run = ScriptedRun({"small": [error], "large": [LARGE]})
    found = await answer(run)
    assert (found.text, found.cost_usd) == ("large", LARGE.cost_usd)
    first, last = run.trace.decision["stages"]
    assert (first["verdict"], first["error"]) == ("failed", error.code)
    assert last["verdict"] == "accepted"


@pytest.mark.parametrize("error", [DOWN, BudgetExceeded("too dear")])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_in_hand_survives(error: Exception, stream: bool) -> None:
    """When the last stage fails, or the budget rules it out, the unsure answer in hand is returned."""
    run = ScriptedRun({"small": [UNSURE], "large": [error]})
    (event,) = await events_of(cascade(), ask(stream=stream), run)
    assert event.reply.text == "unsure"
    assert run.trace.decision["accepted"] == "small"
    assert run.trace.decision["stages"][1]["error"] == error.code


async def test_all_stages_failing_raises_the_last_error() -> None:
    """With no answer at all the last stage's error is the caller's."""
    last = UpstreamBroken("last")
    with pytest.raises(UpstreamBroken) as caught:
        await answer(ScriptedRun({"small": [DOWN], "large": [last]}))
    assert caught.value is last


async def test_the_callers_own_fault_is_not_passed_over() -> None:
    """A bad request ends the cascade: another model could not help."""
    run = ScriptedRun({"small": [BadRequest("bad")], "large": [LARGE]})
    with pytest.raises(BadRequest):
        await answer(run)
    assert len(run.asked) == 1


async def test_a_stream_that_breaks_is_not_replaced() -> None:
    """After the first chunk the truth is an error, not another answer."""
    run = ScriptedRun({"small": [UNSURE], "large": [LARGE]}, break_after=2)
    with pytest.raises(UpstreamBroken):
        await events_of(cascade(), ask(stream=True), run)


async def test_missing_logprobs_defer() -> None:
    """An answer that cannot be judged is not accepted, and the trace says why."""
    run = ScriptedRun({"small": [reply("fine")], "large": [LARGE]})
    assert (await answer(run)).text == "large"
    assert run.trace.decision["stages"][0]["verdict"] == "unjudged"


async def test_a_tool_call_is_judged_by_its_logprobs() -> None:
    """A tool call with log-probabilities is scored like text; without, the next stage is asked."""
    sure = reply("call", model="small", logprobs=[-0.1], tool_calls=TOOL)
    found = await answer(ScriptedRun({"small": [sure], "large": [LARGE]}), tools=[{"type": "function"}])
    assert found.body["choices"][0]["message"]["tool_calls"] == TOOL
    found = await answer(
        ScriptedRun({"small": [reply(tool_calls=TOOL)], "large": [LARGE]}), tools=[{"type": "function"}]
    )
    assert found.text == "large"


async def test_several_choices_are_as_good_as_the_worst() -> None:
    """With n > 1 one unsure choice defers the answer."""
    mixed = reply("ab", model="small", logprobs=[-0.1, -0.1], choices=2)
    mixed.body["choices"][1] = {**UNSURE.body["choices"][0], "index": 1}
    assert (await answer(ScriptedRun({"small": [mixed], "large": [LARGE]}), n=2)).text == "large"


async def test_the_trace_tells_the_decision() -> None:
    """Method, every stage's score, threshold and verdict, and who was accepted are in the trace."""
    run = ScriptedRun({"small": [UNSURE], "large": [LARGE]})
    await answer(run)
    assert run.trace.decision == {
        "method": "token-uncertainty",
        "stages": [
            {"model": "small", "score": -3.0, "threshold": -1.0, "verdict": "deferred"},
            {"model": "large", "score": None, "threshold": None, "verdict": "accepted"},
        ],
        "accepted": "large",
        "members": ["large"],
    }


def test_stages_and_thresholds_must_agree() -> None:
    """A cascade with a threshold too few is refused."""
    with pytest.raises(ValueError, match="thresholds"):
        CascadeStrategy(("a", "b", "c"), TokenUncertainty(), Rule((0.0,)))
