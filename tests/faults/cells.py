"""The matrix: every fault × {whole, stream} × five kinds of call. What each cell must show, and showing it.

A cell runs a gateway of its own, in process, against the faulty upstream on real sockets, and asserts what the
client sees, what was tried, what was charged, and that nothing is left behind: no task, no socket in use, no
place taken at a deployment, no money reserved.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import yaml

from backends.model import Model
from cascades.base import Rule
from cascades.strategy import CascadeStrategy
from cascades.token_uncertainty import TokenUncertainty
from ensembles.answers.agent_forest import AgentForest
from ensembles.answers.strategy import AnswerEnsemble
from gateway.app import Gateway
from gateway.catalogue import Catalogue
from gateway.composition import make_catalogue
from gateway.run import LiveRun
from outcomes.assignment import Knob
from protocol.routing import Estimate, Queries
from protocol.run import Strategy
from protocol.settings import Settings, parse_settings
from routers.estimating import Estimator
from routers.strategy import Routed
from tests.faults.faults import FAULTS, OK, PROMPT, Seen, closed_port
from tests.faults.upstream import GOOD_TEXT, Behaviour, FaultyUpstream, Peer

__all__ = [
    "CELLS",
    "KINDS",
    "Cell",
    "Reply",
    "ask",
    "assert_nothing_left",
    "cells",
    "faulty_upstream",
    "show",
    "until",
    "watched",
]

KINDS: Mapping[str, str] = {
    "single": "a plain model",
    "pair": "a model with a fallback",
    "router": "a router that chose it",
    "cascade": "a cascade whose first stage it is",
    "vote": "a vote in which it is one of two",
}
FINAL = (400, 405, 413, 422)
"""Statuses that refuse the request itself: nobody else is asked."""
LONGEST_S = 10.0
"""A cell that takes longer hangs."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One fault met by one kind of call; `seen` is what must show, `good` how often the good model was asked."""

    fault: str
    stream: bool
    kind: str
    seen: Seen
    good: int

    @property
    def id(self) -> str:
        return f"{self.fault}/{'stream' if self.stream else 'whole'}/{self.kind}"


def cells() -> Iterator[Cell]:
    """Every cell there is. A fault of streams alone does not apply where the faulty model is asked for a whole
    answer."""
    for name, fault in FAULTS.items():
        for stream in (False, True):
            plain = (fault.stream or fault.whole) if stream else fault.whole
            for kind in KINDS:
                # A cascade's first stage and a vote's members are asked for whole answers, whatever the caller wants.
                own = fault.whole if kind in ("cascade", "vote") else plain
                if own is None:
                    continue
                if kind in ("cascade", "vote"):
                    charged = None if own.charged is None else own.charged + OK
                    yield Cell(name, stream, kind, replace(own, status=200, code="", charged=charged), 1)
                elif kind == "pair" and not own.answered and not own.begun and own.status not in FINAL:
                    yield Cell(name, stream, kind, replace(own, status=200, code="", charged=OK), 1)
                else:
                    yield Cell(name, stream, kind, own, 0)


CELLS: Mapping[str, Cell] = {cell.id: cell for cell in cells()}


async def _good(peer: Peer) -> None:
    await peer.answer()


async def _slow(peer: Peer) -> None:
    await asyncio.sleep(0.1)
    await peer.answer()


async def _stall(peer: Peer) -> None:
    """Say some words where words are asked for, then nothing more."""
    if peer.stream:
        await peer.partial()
    await _mute(peer)


async def _mute(peer: Peer) -> None:
    with peer.stalling():
        await peer.hang()


def faulty_upstream() -> FaultyUpstream:
    """An upstream with every fault, each under its name, and the models `good`, `slow`, `stall` and `mute`."""
    behaviours: dict[str, Behaviour] = {name: fault.behave for name, fault in FAULTS.items()}
    return FaultyUpstream({**behaviours, "good": _good, "slow": _slow, "stall": _stall, "mute": _mute})


async def show(cell: Cell, upstream: FaultyUpstream, port: int, *, longest_s: float = LONGEST_S) -> None:
    """Make the call and compare. Raises `AssertionError` where the cell is red."""
    async with _gateway_in_front_of(cell.fault, upstream, port) as (gateway, runs):
        try:
            async with asyncio.timeout(longest_s):
                answer = await ask(gateway, _body(cell))
        except TimeoutError:
            raise AssertionError("the caller waits for ever") from None
        (run,) = runs
        _assert_tried(cell, upstream, run)
        _assert_seen(cell, answer, run)


@asynccontextmanager
async def _gateway_in_front_of(
    fault: str, upstream: FaultyUpstream, port: int
) -> AsyncIterator[tuple[Gateway, list[LiveRun]]]:
    """A gateway and the runs it opens; asserts at the end that nothing is left of them."""
    upstream.asked.clear()
    before = asyncio.all_tasks()
    settings = _settings(fault, port, upstream.tls_port)
    catalogue = Catalogue(make_catalogue(settings, {}).models, _strategies())
    with watched() as runs:
        yield Gateway(catalogue, settings), runs
    await assert_nothing_left(before, catalogue.models, upstream, runs)
    await catalogue.close()
    await until(lambda: upstream.connections == 0, "connections stay open after the gateway has closed")


def _body(cell: Cell) -> dict[str, Any]:
    return {
        "model": {"single": "bad", "pair": "paired"}.get(cell.kind, cell.kind),
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": cell.stream,
        "chorus": {"max_cost_usd": 1e6},
    }


def _settings(fault: str, port: int, tls_port: int) -> Settings:
    price = {"input_usd_per_token": 1, "output_usd_per_token": 1}
    # Longer than a busy test machine makes an answer wait; a fault that is waited for has shorter ones of its own.
    shared = {
        "connect_timeout_s": 2.0,
        "first_token_timeout_s": 2.0,
        "idle_timeout_s": 2.0,
        "timeout_s": 5.0,
    }
    told = {
        key: value.format(port=port, tls=tls_port, closed=closed_port()) if isinstance(value, str) else value
        for key, value in FAULTS[fault].deployment.items()
    }
    here = f"http://127.0.0.1:{port}/v1"
    bad = {"openai": {"base_url": here, "model": fault, **shared, **told}, "price": price}
    good = {"openai": {"base_url": here, "model": "good", **shared}, "price": price}
    models = {"bad": bad, "paired": {**bad, "fallbacks": ["good"]}, "good": good}
    return parse_settings(yaml.safe_dump({"models": models, "resilience": {"backoff_s": 0.001}}))


class _Chooser:
    """A router that thinks the faulty model the best."""

    def estimate(self, queries: Queries) -> Estimate:
        return Estimate(("bad", "good"), np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]]))


def _strategies() -> dict[str, Strategy]:
    router: Any = _Chooser()
    return {
        "router": Routed(
            Estimator(router, None), Knob((0.0, 1.0), (1.0, 0.1)), "good", ("bad", "good"), quality=1.0
        ),
        "cascade": CascadeStrategy(("bad", "good"), TokenUncertainty(), Rule((0.0,))),
        "vote": AnswerEnsemble("vote", AgentForest(("bad", "good"), 1)),
    }


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def error(self) -> Mapping[str, Any]:
        """The error it tells, also as the last event of a stream."""
        told: Mapping[str, Any] = json.loads(self.body.removesuffix(b"\n\n").rpartition(b"data: ")[2])[
            "error"
        ]
        return told


async def ask(
    gateway: Gateway,
    body: Mapping[str, Any],
    left: asyncio.Event | None = None,
    *,
    path: str = "/v1/chat/completions",
) -> Reply | None:
    """One request to the application, without a server in between; None when the client leaves before an answer."""
    waiting = [{"type": "http.request", "body": json.dumps(body).encode()}]
    sent: list[Any] = []

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        await (left or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
    try:
        await gateway(scope, receive, send)
    except ValueError as error:
        raise AssertionError(f"the gateway raised {error!r}") from error
    if not sent:
        return None
    start, *parts = sent
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], headers, b"".join(part["body"] for part in parts))


@contextmanager
def watched() -> Iterator[list[LiveRun]]:
    """The runs that are opened inside."""
    runs: list[LiveRun] = []

    class Watched(LiveRun):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            if self._depth == 0:
                runs.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.run.LiveRun", Watched)
        yield runs


def _assert_seen(cell: Cell, answer: Reply | None, run: LiveRun) -> None:
    seen = cell.seen
    assert answer is not None, "no answer at all"
    assert answer.status == seen.status, f"status {answer.status}: {answer.body[:300]!r}"
    streamed = cell.stream and answer.status == 200
    told = answer.body.replace(b"\r\n", b"\n").split(b"\n\n") if streamed else []
    events = [e.removeprefix(b"data: ") for e in told if e and not e.startswith(b":")]
    if seen.answered:
        if streamed:
            assert events[-1] == b"[DONE]", "an answer that does not end with [DONE]"
            chunks = [json.loads(e) for e in events[:-1]]
            assert not any("error" in chunk for chunk in chunks), "an error in an answer"
            text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
            assert not any("usage" in chunk for chunk in chunks), "usage that nobody asked for"
        else:
            text = json.loads(answer.body)["choices"][0]["message"]["content"]
        assert text, "an empty answer"
        assert text.count("gut") <= 1, "parts of two answers"
        if cell.good and cell.kind == "pair":
            assert text == GOOD_TEXT
    else:
        assert b"[DONE]" not in answer.body, "an error that looks like an end"
        error = json.loads(events[-1] if streamed else answer.body)["error"]
        assert error["code"] == seen.code, f"code {error['code']}"
        assert b"127.0.0.1" not in answer.body, "an address in an error"
        if not seen.begun:
            leave = answer.headers.get("x-should-retry") == "false"
            assert leave == (seen.tried > 1), "x-should-retry"
            later = FAULTS[cell.fault].later_s
            assert later is None or answer.headers.get("retry-after") == str(later), "retry-after"
    charged = run.trace.cost_usd
    if seen.charged is None:
        assert charged > 10, f"{charged} tokens charged"
    else:
        assert charged == seen.charged, f"{charged} tokens charged"


def _assert_tried(cell: Cell, upstream: FaultyUpstream, run: LiveRun) -> None:
    bad = [call for call in run.trace.calls if call.model != "good"]
    tried = sum(call.attempts for call in bad)
    assert tried == cell.seen.tried, f"tried {tried} times"
    assert upstream.asked[cell.fault] in (tried, 0), f"asked {upstream.asked[cell.fault]} times"
    assert upstream.asked["good"] == cell.good, f"the good model was asked {upstream.asked['good']} times"


async def assert_nothing_left(
    before: set[asyncio.Task[Any]], models: Mapping[str, Model], upstream: FaultyUpstream, runs: list[LiveRun]
) -> None:
    for tree in (run._tree for run in runs):
        assert tree.reserved_usd == 0, f"{tree.reserved_usd} USD stay reserved"
        assert not tree.streams, "a stream stays open"
    for model in models.values():
        assert [seat.under_way for seat in model.seats] == [0] * len(model.seats), "a deployment stays busy"
        for deployment in model.deployments:
            client = deployment.client
            await until(lambda c=client: c.open == c.idle and not c.waiting, "a socket stays in use")  # type: ignore[misc]
    await until(lambda: upstream.busy == 0, "the upstream is still working")
    ours = lambda: [t for t in asyncio.all_tasks() - before if t.get_name() != "faulty upstream"]  # noqa: E731
    await until(lambda: not ours(), "tasks are left")


async def until(condition: Any, otherwise: str) -> None:
    """What is aborted is gone at once; on a busy machine that may take a while."""
    try:
        async with asyncio.timeout(3.0):
            while not condition():  # noqa: ASYNC110 - sockets close when they close
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(otherwise) from None
