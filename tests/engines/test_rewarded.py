"""Methods that a process reward guides, on tiny models: what the step loop does for them, and what they then write."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.host import FusionSpec
from ensembles.spans.base import (
    Draft,
    Left,
    Reading,
    SpanFusion,
    Task,
    Writing,
    aside,
    commit,
    propose,
    survey,
)
from ensembles.spans.ensemble_hub import EnsembleHub
from ensembles.steps.le_mcts import LeMCTS
from tests.engines.tiny import PROMPTS, TinyHost, TinyModel, tiny_host

PAIR = ("one", "two")
SEED = 4


def _whole(text: bytes, *, final: bool) -> int | None:
    return len(text) if final else None


def _fraction(text: str) -> float:
    """A reward that likes some texts more than others, for no reason."""
    return (sum(map(ord, text)) % 97) / 97


def _reward(question: str, answers: Sequence[str]) -> list[float]:
    return [_fraction(text) for text in answers]


@dataclass
class Slow:
    """Asks aside for what takes until somebody lets it."""

    started: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    threads: list[str] = field(default_factory=list)

    def work(self) -> int:
        self.threads.append(threading.current_thread().name)
        self.started.set()
        assert self.release.wait(30)
        return 7

    def write(self, task: Task) -> Writing:
        (span,) = yield from propose(Draft(0, _whole, 4))
        yield from commit(span)
        assert (yield from aside(self.work)) == 7
        (span,) = yield from propose(Draft(0, _whole, 4))
        yield from commit(span)


class Failing:
    """Asks aside for what fails."""

    def write(self, task: Task) -> Writing:
        yield from propose(Draft(0, _whole, 4))
        yield from aside(lambda: 1 // 0)


@dataclass
class Reader:
    """Has members read the prompt, keeps what they say and what was left, and writes one span."""

    readings: list[tuple[Reading, ...]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def write(self, task: Task) -> Writing:
        self.left.append(task.left())
        self.readings.append((yield from survey((1, 0))))
        (span,) = yield from propose(Draft(0, _whole, 4))
        yield from commit(span)
        self.left.append(task.left())


class Line:
    """One member writes line by line, heeding stop strings."""

    def write(self, task: Task) -> Writing:
        def line(text: bytes, *, final: bool) -> int | None:
            return 2 if len(text) >= 2 else len(text) if final else None

        while True:
            (span,) = yield from propose(Draft(0, line, 8, stops=True))
            yield from commit(span)


SLOW, READER = Slow(), Reader()


def _spec(name: str, fusion: SpanFusion, members: tuple[str, ...] = PAIR) -> FusionSpec:
    return FusionSpec(name, members, (1.0,) * len(members), fusion, feedback="retail")


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[TinyHost]:
    """The pair, and what the tests ask it."""
    SLOW.started.clear(), SLOW.release.clear()
    hub = EnsembleHub(segment=6, repeats=100, reward=_reward, threshold=0, temperature=None, top_p=None)
    specs = [
        _spec("slow", SLOW),
        _spec("failing", Failing()),
        _spec("reader", READER),
        _spec("line", Line(), ("two",)),
        _spec("hub", hub),
        _spec("hub-solo", hub, ("two",)),
        _spec("mcts", LeMCTS(iterations=24, reward=_reward, tokens=8)),
        _spec("mcts-solo", LeMCTS(iterations=40, reward=_reward, tokens=8), ("two",)),
        _spec("mcts-twins", LeMCTS(iterations=40, reward=_reward, tokens=8), ("one", "one")),
    ]
    host = tiny_host(tmp_path, specs, seed=SEED)
    yield host
    SLOW.release.set()
    host.host.stop()


def test_what_is_done_aside_stops_nobody(tiny: TinyHost) -> None:
    """While one request waits for another thread, others are answered, in the loop's own; then it goes on."""
    slow = tiny.send("slow")
    assert SLOW.started.wait(30)
    assert tiny.send("two").result(30).end is not None
    forwards = {name: engine.forwards for name, engine in tiny.engines.items()}
    time.sleep(0.05)
    # Nobody else is there, so the loop sleeps instead of stepping engines that have nothing to do.
    assert all(engine.forwards - forwards[name] <= 1 for name, engine in tiny.engines.items())
    SLOW.release.set()
    assert slow.result(30).end is not None
    assert SLOW.threads[-1] not in ("MainThread", "chorus-engines")


def test_cancelled_while_something_is_done_aside(tiny: TinyHost) -> None:
    """Its engines are free at once, what comes of the work later is heard by nobody, and the next one is served."""
    slow = tiny.send("slow")
    assert SLOW.started.wait(30)
    queued = tiny.send("slow")
    tiny.host.cancel(slow.id)
    tiny.host.cancel(queued.id)
    for _ in range(500):
        if not any(engine.live for engine in tiny.engines.values()):
            break
        time.sleep(0.01)
    assert not any(engine.live for engine in tiny.engines.values())
    SLOW.release.set()
    assert tiny.send("slow").result(30).end is not None


def test_what_fails_aside_fails_its_request_alone(tiny: TinyHost) -> None:
    """The request hears of it, the host goes on, and nothing is left in the engines."""
    reply = tiny.send("failing").result(30)
    assert reply.failure is not None
    assert reply.failure.error.status == 500
    assert tiny.send("two").result(30).end is not None
    assert tiny.host.alive


def test_a_survey_reads_prompts_as_they_are(tmp_path: Path) -> None:
    """Log-probabilities and peaks of each member's prompt are those of a loop without a cache, however the prompt is
    cut; the prompt counts once, and what was left was told."""
    for piece in (99, 2):
        reader = Reader()
        tiny = tiny_host(tmp_path / str(piece), [_spec("reader", reader)], seed=SEED, piece=piece)
        long = {name: prompt * 20 for name, prompt in PROMPTS.items()}
        tiny.prompts = long
        reply = tiny.send("reader", max_tokens=5).result(30)
        assert reply.end is not None, reply.failure
        for name, reading in zip(("two", "one"), reader.readings[0], strict=True):
            model, ids = TinyModel(name, SEED), long[name]
            rows = model.run(ids)[0]
            rows[:, model.mute] = -np.inf
            rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
            text = [i for i in range(1, len(ids)) if model.emits[ids[i]]]
            assert reading.logprobs == pytest.approx([rows[i - 1][ids[i]] for i in text], abs=1e-5)
            assert reading.peaks == pytest.approx([math.exp(rows[i - 1].max()) for i in text], abs=1e-5)
        usage = {member.model: member for member in reply.end.members}
        assert {name: usage[name].prompt_tokens for name in PAIR} == {n: len(ids) for n, ids in long.items()}
        assert all(member.cached_tokens == 0 for member in reply.end.members)
        assert [left.tokens for left in reader.left] == [40, 40 - usage["one"].completion_tokens]
        assert reader.left[0].seconds == math.inf
        tiny.host.stop()
        assert not any(engine.live for engine in tiny.engines.values())


def test_a_hub_of_one_samples_chunk_by_chunk(tiny: TinyHost) -> None:
    """One member and a constant reward: the member's own draws, cut behind their last line every so many tokens."""
    ours = tiny.send("hub-solo", temperature=1.0, seed=11, max_tokens=60).result(30)
    model, generator = TinyModel("two", SEED), torch.Generator()
    generator.manual_seed(11)
    text, ids, ended = b"", list(PROMPTS["two"]), False
    while not ended and len(ids) < 60 + len(PROMPTS["two"]):
        drawn: list[int] = []
        while len(drawn) < 6 and not ended:
            row = model.row([*ids, *drawn])
            row[model.mute[0]] = -torch.inf
            (i,) = torch.multinomial(
                torch.softmax(torch.softmax(row, -1).log(), -1), 1, generator=generator
            ).tolist()
            ended = i in model.eos
            drawn += [] if ended else [i]
        chunk = b"".join(model.emits[i] or b"" for i in drawn)
        kept = len(chunk) if ended else chunk.rfind(b"\n") + 1 or len(chunk)
        while sum(len(model.emits[i] or b"") for i in drawn) > kept:
            drawn.pop()
        ids += drawn
        text += chunk[:kept]
    got = ours.text.encode()
    assert len(got) > 12
    assert text.startswith(got) or got.startswith(text)


def test_a_stop_string_ends_a_draft(tiny: TinyHost) -> None:
    """With `stops` a draft ends at a stop string, in it or across what was kept, and none of the string shows."""
    whole = tiny.send("line").result(30).text
    for start, size in ((3, 3), (4, 2), (5, 1), (6, 5)):
        stop = whole[start : start + size]
        reply = tiny.send("line", stops=(stop.encode(),)).result(30)
        assert reply.text == whole[: whole.index(stop)]
        assert reply.end is not None
        assert reply.end.reason == "stop"


def test_a_greedy_search_of_one_is_the_model(tiny: TinyHost) -> None:
    """A member alone, or copies of one, have one way to go: a greedy search gives the model's own greedy text."""
    for name, model in (("mcts-solo", "two"), ("mcts-twins", "one")):
        ours, alone = tiny.send(name, max_tokens=40).result(30), tiny.send(model, max_tokens=40).result(30)
        assert ours.end is not None, ours.failure
        assert alone.end is not None
        assert (ours.text, ours.end.reason) == (alone.text, alone.end.reason)


def test_a_search_finds_what_a_plain_tree_has(tmp_path: Path) -> None:
    """With iterations enough the answer is the best of all that members can write greedily, step by step: an
    independent walk over every order of authors gives the same."""
    compared = 0
    for seed in range(4):
        method = LeMCTS(iterations=300, reward=_reward, tokens=8, patience=12, c=1.0)
        tiny = tiny_host(tmp_path / str(seed), [_spec("mcts", method)], seed=seed)
        reply = tiny.send("mcts", max_tokens=12).result(60)
        assert reply.end is not None, reply.failure
        answers = _all_answers([TinyModel(name, seed) for name in PAIR], 12)
        best = max(map(_fraction, answers))
        likely = {text for text in answers if _fraction(text) == best}
        if len(answers) > 2:
            compared += 1
        assert any(reply.text == text or text.startswith(reply.text) for text in likely), (
            seed,
            reply.text,
            likely,
        )
        spent = [member.completion_tokens for member in reply.end.members]
        assert sum(spent) > len(reply.text)
        tiny.host.stop()
        assert not any(engine.live for engine in tiny.engines.values())
    assert compared > 1


def _all_answers(models: Sequence[TinyModel], most: int) -> set[str]:
    """Every whole answer that greedy steps of the models, in any order, make; by walking all orders. A step is a line
    of at most 8 tokens; an answer is whole with `most` tokens, each step's own counted, or at its end."""
    done: set[str] = set()
    waiting: list[tuple[bytes, tuple[tuple[int, ...], ...], int]] = [(b"", tuple(() for _ in models), 0)]
    seen: set[tuple[bytes, int]] = set()
    while waiting:
        text, held, tokens = waiting.pop()
        for m, model in enumerate(models):
            ids, step, ended, spent = list(held[m]), b"", False, 0
            while spent < min(8, most - tokens) and not (step.strip() and step.endswith(b"\n")):
                row = model.row([*PROMPTS[model.name], *ids])
                row[model.mute[0]] = -torch.inf
                chosen = int(row.argmax())
                spent += 1
                if chosen in model.eos:
                    ended = True
                    break
                ids.append(chosen)
                step += model.emits[chosen] or b""
            after = text + step
            if ended or tokens + spent >= most:
                done.add(after.decode())
            elif (after, tokens + spent) not in seen:
                seen.add((after, tokens + spent))
                others = tuple(
                    tuple(ids) if n == m else tuple(_retailed(other, held[n], step))
                    for n, other in enumerate(models)
                )
                waiting.append((after, others, tokens + spent))
    return done


def _retailed(model: TinyModel, held: Sequence[int], step: bytes) -> list[int]:
    """Another's step behind what a member holds: encoded with its last word, at most four tokens."""
    kept, tail = list(held), b""
    for _ in range(4):
        if not kept:
            break
        last = model.emits[kept.pop()] or b""
        tail = last + tail
        if last[:1].isspace():
            break
    return kept + model.encode(tail + step)


def test_a_search_is_cancelled_whole(tiny: TinyHost) -> None:
    """Cancelled in the middle, it leaves no request in any engine."""
    gone = tiny.send("mcts", temperature=1.0, max_tokens=200)
    time.sleep(0.02)
    tiny.host.cancel(gone.id)
    assert tiny.send("hub").result(30).end is not None
    for _ in range(500):
        if not any(engine.live for engine in tiny.engines.values()):
            return
        time.sleep(0.01)
    raise AssertionError("requests were left behind")


def test_searches_side_by_side(tiny: TinyHost) -> None:
    """Sampled searches repeat with their seed, alone or beside others, and the end tells who wrote which step."""
    alone = [tiny.send("mcts", temperature=1.0, seed=s, max_tokens=30).result(30) for s in (1, 2, 3)]
    together = [tiny.send("mcts", temperature=1.0, seed=s, max_tokens=30) for s in (1, 2, 3)]
    assert [ticket.result(30).text for ticket in together] == [reply.text for reply in alone]
    for reply in alone:
        assert reply.end is not None
        assert sum(span.size for span in reply.end.spans) == len(reply.text.encode())
