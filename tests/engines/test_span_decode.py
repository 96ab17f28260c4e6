"""The span loop on tiny models: every answer equals an independent loop's, whatever engines do on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from engines.host import FusionSpec
from ensembles.spans.base import (
    Ask,
    Draft,
    Judge,
    Score,
    SpanFusion,
    Task,
    Writing,
    commit,
    propose,
    words,
)
from ensembles.spans.cool_fusion import CoolFusion
from ensembles.spans.specfuse import SpecFuse
from ensembles.spans.sweetspan import SweetSpan
from tests.engines.plain_spans import PlainSpans, aligned_cut, words_cut
from tests.engines.tiny import PROMPTS, TinyHost, TinyModel, tiny_host

PAIR = ("one", "two")


def _spec(name: str, fusion: SpanFusion, members: tuple[str, ...] = PAIR) -> FusionSpec:
    return FusionSpec(name, members, (1.0,) * len(members), fusion, feedback="retail")


METHODS: dict[str, SpanFusion] = {
    "cool": CoolFusion(),
    "cool-shortest": CoolFusion("shortest"),
    "sweet": SweetSpan(words=2),
    "spec": SpecFuse(window=5),
    "spec-faithful": SpecFuse(window=5, faithful=True),
}


def _plain(name: str, seed: int) -> PlainSpans:
    models = [TinyModel(model, seed) for model in PAIR]
    plain = PlainSpans(models, [PROMPTS[model] for model in PAIR])
    if name == "cool":
        plain.by_perplexity(aligned_cut(models), 32, 40)
    elif name == "cool-shortest":
        plain.by_perplexity(words_cut(1), 32, 40)
    elif name == "sweet":
        plain.by_perplexity(words_cut(2), 32, 40)
    else:
        plain.by_votes(5, 1.0, 40, logits=name == "spec-faithful")
    return plain


@dataclass
class Alone:
    """Has member 0 write, and the others read every span: by itself, twice, or beside other words."""

    beside: bool = False
    heard: list[Score] = field(default_factory=list)

    def write(self, task: Task) -> Writing:
        while True:
            spans = yield from propose(Draft(0, words(1), 8))
            texts = [b" bca", spans[0].text, b" a"] if self.beside else [spans[0].text]
            asks = tuple(Ask(1, text, ended=spans[0].ended and text == spans[0].text) for text in texts)
            scores: tuple[Score, ...] = yield Judge(asks)
            self.heard.append(scores[texts.index(spans[0].text)])
            yield from commit(spans[0])


@dataclass
class Ahead:
    """Writes a second span behind each of the first round's, and keeps the pair that was written last."""

    def write(self, task: Task) -> Writing:
        while True:
            members = range(len(task.weights))
            firsts = yield from propose(*(Draft(m, words(1), 8) for m in members))
            best = firsts[-1]
            if not best.ended:
                (second,) = yield from propose(Draft(best.author, words(1), 8, after=best.text))
                (score,) = yield Judge((Ask(best.author, second.text, second.ended, after=best.text),))
                assert score.logprobs == pytest.approx(second.score.logprobs, abs=1e-6)
                best = replace(second, text=best.text + second.text)
            yield from commit(best)


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[TinyHost]:
    """Seed 4, whose answers are long."""
    more = {"long": SweetSpan(words=10_000, tokens=60), "ahead": Ahead()}
    specs = [_spec(name, fusion) for name, fusion in {**METHODS, **more}.items()]
    solo = [_spec(f"{name}-solo", fusion, ("two",)) for name, fusion in {**METHODS, **more}.items()]
    twins = [_spec(f"{name}-twins", fusion, ("one", "one")) for name, fusion in METHODS.items()]
    host = tiny_host(tmp_path, [*specs, *solo, *twins], seed=4)
    yield host
    host.host.stop()


@pytest.mark.parametrize("faults", [{}, {"piece": 2, "refuses": 3, "forgets": 4}], ids=["smooth", "rough"])
def test_texts_equal_an_independent_loop(tmp_path: Path, faults: dict[str, int]) -> None:
    """Every method's greedy text is that of the loop without a cache: with prompts in pieces, rewinds refused and
    rows lost on the way, too."""
    long = 0
    for seed in range(6):
        specs = [_spec(name, fusion) for name, fusion in METHODS.items()]
        tiny = tiny_host(tmp_path / str(seed), specs, seed=seed, **faults)
        tickets = {name: tiny.send(name, max_tokens=40) for name in METHODS}
        for name, ticket in tickets.items():
            reply = ticket.result(30)
            plain = _plain(name, seed)
            assert reply.end is not None, reply.failure
            wanted = plain.text if plain.sure is None else plain.text[: plain.sure]
            got = reply.text.encode()
            assert got[: len(wanted)] == wanted[: len(got)], (name, seed)
            assert sum(span.size for span in reply.end.spans) == len(got)
            long += len(got) > 20
        tiny.host.stop()
        assert not any(engine.live for engine in tiny.engines.values())
    assert long > 15


@pytest.mark.parametrize("name", METHODS)
def test_one_member_and_copies_are_the_model(tiny: TinyHost, name: str) -> None:
    """A member alone, and two that are one, write the model's own greedy text, and end as it does."""
    for fused, model in ((f"{name}-solo", "two"), (f"{name}-twins", "one")):
        ours, alone = tiny.send(fused).result(30), tiny.send(model).result(30)
        assert ours.end is not None
        assert alone.end is not None
        assert ours.text == alone.text
        assert ours.end.reason == alone.end.reason


def test_writing_ahead_is_writing_on(tiny: TinyHost) -> None:
    """Spans drafted behind words that are not committed are what the member would have written after them, and it
    reads them as it wrote them."""
    assert tiny.send("ahead-solo").result(30).text == tiny.send("two").result(30).text
    assert tiny.send("ahead").result(30).end is not None


def test_long_spans_rerank_whole_answers(tiny: TinyHost) -> None:
    """With spans as long as the answer, the whole answer with the lower average perplexity is given."""
    reply = tiny.send("long").result(30)
    models = [TinyModel(model, 4) for model in PAIR]
    plain = PlainSpans(models, [PROMPTS[model] for model in PAIR])
    drafted = [plain.draft(m, words_cut(10_000), 60) for m in range(2)]
    means = plain.table(drafted, lambda p, _: math.exp(-sum(p) / len(p))).mean(0)
    assert drafted[0].text != drafted[1].text
    assert reply.text.encode() == drafted[int(means.argmin())].text[: len(reply.text)]


def test_scores_do_not_depend_on_what_is_scored_beside(tmp_path: Path) -> None:
    """A span's score by another member is the same alone and between two others, and that of a fresh run."""
    alone, beside = Alone(), Alone(beside=True)
    host = tiny_host(tmp_path, [_spec("alone", alone), _spec("beside", beside)], seed=4)
    for name in ("alone", "beside"):
        assert host.send(name).result(30).end is not None
    host.host.stop()
    assert len(alone.heard) > 3
    for one, other in zip(alone.heard, beside.heard, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-6)
    models = [TinyModel(model, 4) for model in PAIR]
    plain = PlainSpans(models, [PROMPTS[model] for model in PAIR])
    drafted = [plain.draft(0, words_cut(1), 8)]
    logps, logits = plain.score(1, drafted[0].text, drafted[0].ended, models[1].encode(drafted[0].text))
    assert alone.heard[0].logprobs == pytest.approx(logps, abs=1e-5)
    assert alone.heard[0].logits == pytest.approx(logits, abs=1e-5)


def test_nothing_is_computed_twice(tiny: TinyHost) -> None:
    """A member alone computes its prompt and each token it goes on from once, whatever it drafted beyond."""
    engine = tiny.engines["two"]
    before = engine.tokens
    reply = tiny.send("sweet-solo").result(30)
    assert reply.end is not None
    spans, drafted = len(reply.end.spans), reply.end.members[0].completion_tokens
    # Of each draft all but its last token is fed, and behind a cut the last token kept once more, for its row.
    assert engine.tokens - before <= len(PROMPTS["two"]) + drafted + spans
    assert engine.starts == 1


def test_max_tokens_cuts_the_text_and_nothing_else(tiny: TinyHost) -> None:
    """An answer of k main tokens is the beginning of a longer one, and ends with "length"."""
    whole = tiny.send("cool").result(30).text
    model = TinyModel("one", 4)
    for k in (1, 2, 3, 5, 8, 13):
        reply = tiny.send("cool", max_tokens=k).result(30)
        assert reply.end is not None
        assert whole.startswith(reply.text)
        assert reply.end.reason == "length"
        assert 1 <= len(reply.text) <= k * max(len(emitted or b"") for emitted in model.emits)


def test_a_stop_string_within_a_span(tiny: TinyHost) -> None:
    """It is looked for in bytes, cuts the text before it, and ends every member."""
    whole = tiny.send("spec").result(30).text
    stop = whole[5:8]
    reply = tiny.send("spec", stops=(stop.encode(),)).result(30)
    assert reply.text == whole[: whole.index(stop)]
    assert reply.end is not None
    assert reply.end.reason == "stop"


def test_spans_are_streamed_as_they_are_kept(tiny: TinyHost) -> None:
    """Each span that shows is a piece of its own, and the end tells who wrote it."""
    reply = tiny.send("cool").result(30)
    assert reply.end is not None
    assert len(reply.pieces) == len([span for span in reply.end.spans if span.size])
    assert {span.model for span in reply.end.spans} <= set(PAIR)


def test_a_seed_repeats_drafts(tiny: TinyHost) -> None:
    """Sampled drafts come again with their seed, and differ with another."""
    texts = [
        tiny.send("spec", temperature=1.0, seed=seed, max_tokens=30).result(30).text for seed in (1, 1, 2, 3)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_together_as_alone(tiny: TinyHost) -> None:
    """Answers written side by side, plain ones among them, are those written one after the other."""
    wanted = [*METHODS, "one", "two"]
    alone = [tiny.send(name).result(30).text for name in wanted]
    tickets = [tiny.send(name) for name in wanted]
    assert [ticket.result(30).text for ticket in tickets] == alone


def test_the_context_ends_an_answer(tmp_path: Path) -> None:
    """Where a member has no room left the answer ends with "length"; nothing is fed beyond the context."""
    host = tiny_host(tmp_path, [_spec("cool", CoolFusion())], seed=4, length=16)
    reply = host.send("cool", max_tokens=None).result(30)
    assert reply.end is not None, reply.failure
    assert reply.end.reason == "length"
    host.host.stop()


def test_work_for_nothing_ends_an_answer(tmp_path: Path) -> None:
    """A method that has a member read for ever ends with "length", near what was reserved for the answer."""

    class Ponderer:
        def write(self, task: Task) -> Writing:
            (span,) = yield from propose(Draft(0, words(1), 8))
            yield from commit(replace(span, ended=False))
            while True:
                yield Judge((Ask(1, b" a b c"),))

    host = tiny_host(tmp_path, [_spec("ponder", Ponderer())])
    reply = host.send("ponder", max_tokens=10).result(30)
    assert reply.end is not None
    assert (reply.end.reason, len(reply.end.spans)) == ("length", 1)
    assert 80 <= reply.end.members[1].completion_tokens < 90
    host.host.stop()


def test_cancelling_frees_the_engines(tiny: TinyHost) -> None:
    """A cancelled answer leaves its engines; one beside it goes on."""
    gone, stays = tiny.send("cool", max_tokens=300), tiny.send("sweet")
    gone.events.get(timeout=30)
    tiny.host.cancel(gone.id)
    assert stays.result(30).end is not None
    for _ in range(500):
        if not any(engine.live for engine in tiny.engines.values()):
            return
        time.sleep(0.01)
    raise AssertionError("requests were left behind")
