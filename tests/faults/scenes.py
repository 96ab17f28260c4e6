"""Scenes: what holds over several calls, or several deployments, and what a leaving client ends.

Each is played in process, against the faulty upstream on real sockets, and asserts besides that nothing is left.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import yaml

from cascades.base import Rule
from cascades.strategy import CascadeStrategy
from cascades.token_uncertainty import TokenUncertainty
from ensembles.answers.agent_forest import AgentForest
from ensembles.answers.strategy import AnswerEnsemble
from gateway.app import Gateway
from gateway.catalogue import Catalogue
from gateway.composition import make_catalogue
from gateway.run import LiveRun
from protocol.run import Answer, Strategy
from protocol.settings import parse_settings
from tests.faults.cells import LONGEST_S, Reply, ask, assert_nothing_left, until, watched
from tests.faults.faults import OK, PROMPT
from tests.faults.upstream import FaultyUpstream
from tests.listening import listening

__all__ = ["BOUNDS", "SCENES", "WAYS", "Scene", "Stage", "measured"]

PROMPT_TOKENS = 10
PRICE = {"input_usd_per_token": 1, "output_usd_per_token": 1}
CLOCKS = {"connect_timeout_s": 5.0, "first_token_timeout_s": 30.0, "idle_timeout_s": 30.0, "timeout_s": 60.0}


@dataclass(slots=True)
class Stage:
    """A gateway in front of the faulty upstream, and the runs it opens."""

    gateway: Gateway
    upstream: FaultyUpstream
    runs: list[LiveRun]

    async def ask(self, model: str, **fields: Any) -> Reply:
        """One chat request, answered."""
        reply = await ask(self.gateway, {**request(model), **fields})
        assert reply is not None
        return reply

    @property
    def charged(self) -> float:
        """Tokens charged for all requests; each costs 1 US dollar here."""
        return sum(run.trace.cost_usd for run in self.runs)


def request(model: str, path: str = "/v1/chat/completions") -> dict[str, Any]:
    """A request that the surface takes."""
    if path.endswith(("completions", "messages")):
        return {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 40}
    return {"model": model, "prompt" if "images" in path else "input": PROMPT}


Opened = Callable[..., AbstractAsyncContextManager[Stage]]
Play = Callable[[Opened], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Scene:
    """`about` says what happens, `seen` what must show; `play` plays it on a stage it opens."""

    about: str
    seen: str
    play: Play

    async def show(self, upstream: FaultyUpstream, port: int) -> None:
        """Play it. Raises `AssertionError` where it is red."""
        await self.play(partial(opened_stage, upstream, port))


@asynccontextmanager
async def opened_stage(
    upstream: FaultyUpstream,
    port: int,
    models: Mapping[str, Any],
    strategies: Mapping[str, Strategy] | None = None,
    **sections: Any,
) -> AsyncIterator[Stage]:
    """A stage on which nothing may be left; `models` tells their behaviours, `sections` are of the settings."""
    upstream.asked.clear()
    upstream.left.clear()
    before = asyncio.all_tasks()
    told = {name: _model(model, f"http://127.0.0.1:{port}/v1") for name, model in models.items()}
    resilience = {"backoff_s": 0.001, **sections.pop("resilience", {})}
    config = {"models": told, "resilience": resilience, "ledger": {"enabled": False}, **sections}
    settings = parse_settings(yaml.safe_dump(config))
    catalogue = Catalogue(make_catalogue(settings, {}).models, strategies or {})
    with watched() as runs:
        yield Stage(Gateway(catalogue, settings), upstream, runs)
    await assert_nothing_left(before, catalogue.models, upstream, runs)
    await catalogue.close()
    await until(lambda: upstream.connections == 0, "connections stay open after the gateway has closed")


def _model(told: Any, url: str) -> dict[str, Any]:
    """A model's settings, by its deployments' behaviours and further fields."""
    told = dict(told) if isinstance(told, dict) else {"there": told}
    there = told.pop("there")
    deployment = {"base_url": url, **CLOCKS, **told.pop("deployment", {})}
    deployments = [{**deployment, "model": name} for name in (there if isinstance(there, list) else [there])]
    return {"openai": deployments if len(deployments) > 1 else deployments[0], "price": PRICE, **told}


# ------------------------------------------------------------------------------------------------------------ bounds


async def outage(opened: Opened) -> None:
    calls = 60
    async with opened({"m": "500"}, resilience={"breaker_failures": 10_000}) as stage:
        began = asyncio.get_running_loop().time()
        for _ in range(calls):
            assert (await stage.ask("m")).status == 502
        took_s = asyncio.get_running_loop().time() - began
        retries = stage.upstream.asked["500"] - calls
        most = 10 + 0.2 * calls + took_s + 1
        assert 10 <= retries <= most, f"{retries} retries of {calls} calls"


async def left_alone(opened: Opened) -> None:
    async with opened({"m": "500"}, resilience={"retries": 0, "breaker_failures": 3}) as stage:
        seen = [await stage.ask("m") for _ in range(8)]
        statuses = [reply.status for reply in seen]
        assert statuses == [502] * 3 + [503] * 5, f"statuses {statuses}"
        assert stage.upstream.asked["500"] == 3, f"asked {stage.upstream.asked['500']} times"
        assert "retry-after-ms" in seen[-1].headers


async def mistakes(opened: Opened) -> None:
    models = {"m": {"there": ["422", "good"], "balance": "weighted"}}
    async with opened(models, resilience={"breaker_failures": 1}) as stage:
        seen = {(await stage.ask("m")).status for _ in range(40)}
        assert seen == {200, 422}, f"statuses {seen}"
        assert stage.upstream.asked["422"] > 1, "a refusal closed the deployment"


async def not_twice(opened: Opened) -> None:
    async with opened({"m": {"there": ["truncated", "no-answer"]}}) as stage:
        assert (await stage.ask("m")).status in (502, 503)
        asked = dict(stage.upstream.asked)
        assert asked == {"truncated": 1, "no-answer": 1}, f"asked {asked}"
        assert stage.charged == 0


async def hedged(opened: Opened) -> None:
    hedge = {"after_s": 0.3, "max_cost_usd": 1000.0}
    slow_first = {"there": ["stall", "good"], "hedge": hedge, "balance": "least-busy"}
    async with opened({"m": slow_first}) as stage:
        assert (await stage.ask("m")).status == 200
        asked = dict(stage.upstream.asked)
        assert asked == {"stall": 1, "good": 1}, f"asked {asked}"
        assert stage.charged == OK + PROMPT_TOKENS, f"{stage.charged} tokens charged"


async def too_dear_to_hedge(opened: Opened) -> None:
    hedge = {"after_s": 0.01, "max_cost_usd": 20.0}
    async with opened({"m": {"there": ["slow", "slow"], "hedge": hedge}}) as stage:
        assert (await stage.ask("m")).status == 200
        assert stage.upstream.asked["slow"] == 1, f"asked {stage.upstream.asked['slow']} times"
        assert stage.charged == OK, f"{stage.charged} tokens charged"


async def capped_calls(opened: Opened) -> None:
    vote = AnswerEnsemble("vote", AgentForest(("m",), 6))
    async with opened({"m": "good"}, {"vote": vote}, server={"max_calls": 4}) as stage:
        assert (await stage.ask("vote")).status == 200
        assert stage.upstream.asked["good"] == 4, f"asked {stage.upstream.asked['good']} times"
        assert stage.charged == 4 * OK


async def capped_retries(opened: Opened) -> None:
    vote = AnswerEnsemble("vote", AgentForest(("m",), 3))
    async with opened({"m": "500"}, {"vote": vote}, server={"max_calls": 3}) as stage:
        assert (await stage.ask("vote")).status == 502
        assert stage.upstream.asked["500"] <= 9, f"asked {stage.upstream.asked['500']} times"
        assert stage.runs[0]._tree.calls_made == stage.upstream.asked["500"]


class _Deeper:
    """A strategy that asks another name."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def answer(self, request: Any, run: Any) -> AsyncIterator[Any]:
        yield Answer(await run.call(self._name, request))


async def capped_depth(opened: Opened) -> None:
    strategies: dict[str, Any] = {"loop": _Deeper("loop"), "one": _Deeper("m"), "two": _Deeper("one")}
    async with opened({"m": "good"}, strategies, server={"max_depth": 2}) as stage:
        assert (await stage.ask("two")).status == 200
        reply = await stage.ask("loop")
        assert (reply.status, reply.error["code"]) == (500, "method_error")
        assert stage.upstream.asked["good"] == 1


async def capped_money(opened: Opened) -> None:
    vote = AnswerEnsemble("vote", AgentForest(("m",), 5))
    async with opened({"m": "good"}, {"vote": vote}) as stage:
        # Of 50 tokens that each of five calls may cost, 120 leave room for two at once.
        reply = await stage.ask("vote", chorus={"max_cost_usd": 120.0})
        assert reply.status == 200
        assert 0 < stage.charged <= 120, f"{stage.charged} tokens charged"
        assert stage.upstream.asked["good"] == 2, f"asked {stage.upstream.asked['good']} times"
        refused = await stage.ask("m", chorus={"max_cost_usd": 5.0})
        assert (refused.status, refused.error["code"]) == (429, "budget_exceeded")


async def late(opened: Opened) -> None:
    async with opened({"m": {"there": "hang", "fallbacks": ["n"]}, "n": "hang"}) as stage:
        for stream in (False, True):
            reply = await stage.ask("m", stream=stream, chorus={"deadline_ms": 100})
            assert (reply.status, reply.error["code"]) == (504, "deadline_exceeded")
        assert stage.upstream.asked["hang"] == 2, "a fallback is asked after the deadline"


BOUNDS: Mapping[str, Scene] = {
    "outage": Scene("a backend answers 500 to 60 calls", "no more retries than ten and a fifth of the calls", outage),
    "left-alone": Scene("it goes on failing", "after `breaker_failures` it is not asked: 503, Retry-After", left_alone),
    "mistakes": Scene("callers' mistakes are refused", "no breaker opens, good requests are answered", mistakes),
    "not-twice": Scene("each of two deployments may have done the work", "each is asked once", not_twice),
    "hedged": Scene("a deployment is slow, hedging is on", "the other one answers; both prompts are charged", hedged),
    "too-dear": Scene("so it is, but the call is dearer than `max_cost_usd`", "only one is asked", too_dear_to_hedge),
    "calls": Scene("a vote of six, `max_calls` 4", "four calls are made, and vote", capped_calls),
    "retries": Scene("a vote of three whose calls fail, `max_calls` 3", "retries count as calls", capped_retries),
    "depth": Scene("a strategy calls itself", "500 method_error at `max_depth`; nobody is asked", capped_depth),
    "money": Scene("a vote of five, money for two", "two calls are made; never more is spent", capped_money),
    "deadline": Scene("a deadline of 100 ms, two models that hang", "504 deadline_exceeded; no fallback", late),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------- leaving


@dataclass(frozen=True, slots=True)
class Way:
    """One kind of call that a client leaves: the name asked, and how many upstream calls are under way then."""

    model: str
    calls: int = 1
    path: str = "/v1/chat/completions"
    streams: bool = True


WAYS: Mapping[str, Way] = {
    "a plain model": Way("m"),
    "a fallback": Way("paired"),
    "a cascade's first stage": Way("cascade"),
    "a cascade's second stage": Way("second"),
    "a vote": Way("vote", 4),
    "a vote in a cascade": Way("nested", 4),
    "a hedged call": Way("hedged", 2),
    "messages passed on": Way("m", path="/v1/messages"),
    "responses passed on": Way("m", path="/v1/responses"),
    "messages translated": Way("plain", path="/v1/messages"),
    "an image": Way("m", path="/v1/images/generations", streams=False),
}


MODELS: dict[str, Any] = {
    "m": {"there": "stall", "deployment": {"endpoints": ["chat", "messages", "responses", "images"]}},
    "plain": "stall",
    "good": "good",
    "paired": {"there": "404", "fallbacks": ["plain"]},
    "hedged": {"there": ["mute", "mute"], "hedge": {"after_s": 0.01, "max_cost_usd": 1e6}},
}


def strategies() -> dict[str, Strategy]:
    """The strategies that a client leaves."""
    return {
        "cascade": CascadeStrategy(("m", "good"), TokenUncertainty(), Rule((0.0,))),
        "second": CascadeStrategy(("good", "m"), TokenUncertainty(), Rule((0.0,))),
        "vote": AnswerEnsemble("vote", AgentForest(("m", "plain"), 2)),
        "nested": CascadeStrategy(("good", "vote"), TokenUncertainty(), Rule((0.0,))),
    }


def _leaving(way: Way, stream: bool) -> Play:
    async def play(opened: Opened) -> None:
        async with opened(MODELS, strategies()) as stage:
            left = asyncio.Event()
            body = {**request(way.model, way.path), "stream": stream}
            asking = asyncio.create_task(ask(stage.gateway, body, left, path=way.path))
            await under_way(stage.upstream, way)
            left.set()
            try:
                await aborted(stage.upstream, way)
                await asyncio.wait_for(asking, LONGEST_S)
            finally:
                asking.cancel()
            outcomes = {call.outcome for run in stage.runs for call in run.trace.calls}
            assert "cancelled" in outcomes, "the calls are not noted as cancelled"

    return play


async def under_way(upstream: FaultyUpstream, way: Way) -> None:
    """Until the upstream works on all calls of the tree, and what it has said has arrived."""
    await until(lambda: upstream.stalling == way.calls, "not all calls are under way")
    await asyncio.sleep(0.01)


async def aborted(upstream: FaultyUpstream, way: Way) -> list[float]:
    """Until every call of the tree is aborted there; when each was, on the loop's clock."""
    await until(lambda: len(upstream.left) >= way.calls, "a call goes on after its client has left")
    return upstream.left


async def measured(way: Way, stream: bool, times: int, upstream: FaultyUpstream, port: int) -> list[float]:
    """Through a server and over sockets: seconds from a client's closing his connection to the abort of the last
    upstream call, `times` over."""
    took_s = []
    free = {"retry_budget": 1.0}  # a hedge each time
    async with (
        opened_stage(upstream, port, MODELS, strategies(), resilience=free) as stage,
        listening(stage.gateway) as url,
    ):
        body = json.dumps({**request(way.model, way.path), "stream": stream}).encode()
        head = f"POST {way.path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        for _ in range(times):
            upstream.left.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
            writer.write(head + body)
            await under_way(upstream, way)
            began = asyncio.get_running_loop().time()
            writer.close()
            took_s.append(max(await aborted(upstream, way)) - began)
            with suppress(ConnectionError):
                await writer.wait_closed()
    return took_s


LEAVING: Mapping[str, Scene] = {
    f"leave/{'stream' if stream else 'whole'}/{name}": Scene(
        f"the client of {name} leaves", f"{way.calls} aborted", _leaving(way, stream)
    )
    for name, way in WAYS.items()
    for stream in ((False, True) if way.streams else (False,))
}

SCENES: Mapping[str, Scene] = {**{f"bound/{name}": scene for name, scene in BOUNDS.items()}, **LEAVING}
