"""Fusions on the real pair, in float32: what must be equal is compared byte for byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.text_state import Feedback, TextState
from tests.engines.conftest import DICTATED, FOLDERS, GEMMA, PAIR, PROMPTS, SMOL

if TYPE_CHECKING:
    from tests.engines.conftest import Asker

pytestmark = pytest.mark.models


def _texts(ask: Asker, model: str) -> list[str]:
    """Greedy answers of a model to all prompts, decoded side by side."""
    return [reply.text for reply in ask.all(*((model, question) for question in PROMPTS))]


@pytest.mark.parametrize(
    ("fusion", "model"),
    [
        ("smol-twice", SMOL),
        ("gemma-thrice", GEMMA),
        ("unite-twice", SMOL),
        ("cp-delta-twice", SMOL),
        ("pack-twice", SMOL),
        ("deepen-twice", SMOL),
        ("spec-twice", SMOL),
    ],
)
def test_members_that_are_one_model_write_its_text(ask: Asker, fusion: str, model: str) -> None:
    """Copies of a model, fused, give its own greedy answer, byte for byte."""
    assert _texts(ask, fusion) == _texts(ask, model)


@pytest.mark.parametrize(
    ("fusion", "model"),
    [("first-only", SMOL), ("second-only", GEMMA), ("unite-first-only", SMOL), ("unite-second-only", GEMMA)],
)
def test_degenerate_weights_give_one_member(ask: Asker, fusion: str, model: str) -> None:
    """One-hot weights give that model's greedy answer, though the other member has to take tokens not its
    own."""
    assert _texts(ask, fusion) == _texts(ask, model)


def test_penalties_are_those_of_a_plain_model(ask: Asker) -> None:
    """Copies of a model under penalties and a bias write what vLLM's sampler makes of that model under the same."""
    options = {"presence_penalty": 0.6, "frequency_penalty": 0.4, "logit_bias": {28: -3.0, 260: -2.0}}
    pairs = [(name, question) for name in ("smol-twice", SMOL) for question in PROMPTS]
    texts = [reply.text for reply in ask.all(*pairs, extra=options)]
    assert texts[: len(PROMPTS)] == texts[len(PROMPTS) :]
    assert texts[: len(PROMPTS)] != _texts(ask, SMOL)


@pytest.mark.parametrize(("fusion", "plain"), [("spec", "duet"), ("spec-cp-delta", "cp-delta")])
def test_a_drafted_text_is_the_plain_one(ask: Asker, fusion: str, plain: str) -> None:
    """Members that draft in turn, and forget what was replaced, write the text of the plain loop."""
    assert _texts(ask, fusion) == _texts(ask, plain)
    tally = ask.host.tallies()[fusion]
    assert 0 < tally.accepted < tally.verified


def test_the_duet_is_neither_of_its_members(ask: Asker) -> None:
    """On at least one prompt the fused greedy text differs from both members'."""
    texts = zip(*(_texts(ask, model) for model in ("duet", *PAIR)), strict=True)
    assert any(duet not in members for duet, *members in texts)


def test_fused_distribution_equals_an_independent_computation(
    ask: Asker, weights: Callable[[str], Path]
) -> None:
    """The log-probabilities of five fused steps equal ½(p₁ + p₂) computed with transformers and its own
    token strings."""
    import numpy as np

    from tests.engines.plain_loop import PlainModel

    question = PROMPTS[1]
    reply = ask("duet", question, max_tokens=5, top_logprobs=5)
    assert len(reply.tokens) == 5
    before = b""
    models = {name: PlainModel(weights(FOLDERS[name])) for name in PAIR}
    prompts = dict(zip(PAIR, ask.prompt_ids("duet", question), strict=True))
    for token in reply.tokens:
        q: dict[bytes, float] = {}
        for name, model in models.items():
            # Read anew each time, as a plain loop without a cache would.
            after = model.tokenizer(before.decode(), add_special_tokens=False)["input_ids"] if before else []
            z, _ = model.run([*prompts[name], *after])
            z[-1][model.mute] = -np.inf
            p = np.exp(z[-1] - z[-1].max())
            for i, share in enumerate((p / p.sum()).tolist()):
                text = model.emits[i] or b""
                q[text] = q.get(text, 0.0) + share / 2
        assert sum(q.values()) == pytest.approx(1, abs=1e-4)
        best = sorted((text for text in q if text), key=q.__getitem__, reverse=True)[:5]
        # An end of the answer may be among the five as well; it has no bytes.
        heard = [(text, logp) for text, logp in token.top if text]
        assert [text for text, _ in heard] == best[: len(heard)]
        for text, logp in heard:
            assert logp == pytest.approx(math.log(q[text]), abs=2e-3)
        assert token.token == best[0]
        before += token.token


@pytest.mark.parametrize(("fusion", "member"), [("dictation-smol", 0), ("dictation-gemma", 1)])
def test_feeding_back_equals_a_fresh_run(ask: Asker, fusion: str, member: int) -> None:
    """Symbols of several tokens, fed in one forward, and a member that stalls: then greedy text equals a run
    on it all."""
    name = PAIR[member]
    prompts = ask.prompt_ids("duet", PROMPTS[0])
    text = b"".join(DICTATED)
    vocab = ask.host.vocabs[name]
    assert any(len(ask.host.vocabs[m].encode(x)) > 1 for m in PAIR for x in DICTATED)
    fed = [i for symbol in DICTATED for i in vocab.encode(symbol)]
    fused = ask.send_ids(fusion, prompts, max_tokens=len(fed) + 12).result()
    plain = ask.send_ids(name, ((*prompts[member], *fed),), max_tokens=12).result()
    assert fused.text.encode() == text + plain.text.encode()
    assert fused.end is not None
    assert plain.end is not None
    assert fused.end.members[member].completion_tokens == len(fed) + plain.end.members[0].completion_tokens


@pytest.mark.parametrize("feedback", ["retail", "retokenise"])
def test_restarted_members_equal_a_fresh_run(ask: Asker, feedback: Feedback) -> None:
    """Members whose earlier ids change start anew on the ids they have now: the text is that of a fresh run on
    them."""
    prompts = ask.prompt_ids("duet", PROMPTS[0])
    state = TextState([ask.host.vocabs[name] for name in PAIR], feedback=feedback)
    for symbol in DICTATED:
        state.commit(symbol)
    appended = [i for symbol in DICTATED for i in ask.host.vocabs[SMOL].encode(symbol)]
    assert state.ids[0] != appended
    fused = ask.send_ids(f"dictation-{feedback}", prompts, max_tokens=len(state.ids[0]) + 8).result()
    plain = ask.send_ids(SMOL, ((*prompts[0], *state.ids[0]),), max_tokens=8).result()
    assert fused.text.encode() == b"".join(DICTATED) + plain.text.encode()


def test_an_open_gate_is_the_primary_alone(ask: Asker) -> None:
    """With τ = 0 the primary's text comes out and the other member is never run."""
    reply = ask("gate-open", PROMPTS[1])
    assert reply.text == ask(SMOL, PROMPTS[1]).text
    assert reply.end is not None
    assert reply.end.members[1].prompt_tokens == 0
    assert reply.end.members[1].completion_tokens == 0


def test_a_shut_gate_is_the_whole_ensemble(ask: Asker) -> None:
    """With τ = 1 the primary waits for the other member at every step, and the text is that of the plain
    fusion."""
    assert _texts(ask, "gate-shut") == _texts(ask, "duet")


def test_together_as_alone(ask: Asker) -> None:
    """Fused and plain requests in the same batches give the texts they give alone."""
    wanted = [(model, question) for question in PROMPTS[:2] for model in ("duet", SMOL, GEMMA, "gate-shut")]
    alone = [ask(*pair, max_tokens=12).text for pair in wanted]
    assert [reply.text for reply in ask.all(*wanted, max_tokens=12)] == alone


def test_usage_tells_what_the_prefix_cache_saved(ask: Asker) -> None:
    """The same long prompt again: each member reads whole blocks of it from its cache, and says how much."""
    question = "Repeat after me: " + "one two three four five six seven eight nine ten " * 20
    for model in ("duet", SMOL):
        first, second = (ask(model, question, max_tokens=2).end for _ in range(2))
        assert first is not None
        assert second is not None
        for before, after in zip(first.members, second.members, strict=True):
            assert after.prompt_tokens == before.prompt_tokens
            assert max(before.cached_tokens, 64) < after.cached_tokens + 1 <= after.prompt_tokens
        question = question.upper()


def test_a_broken_method_fails_its_request_only(ask: Asker) -> None:
    """An exception in a fusion becomes that request's failure; the others in the batch go on."""
    good = ask.send("duet", PROMPTS[0])
    bad = ask("broken", PROMPTS[0])
    assert bad.failure is not None
    assert bad.failure.error.code == "internal_error"
    assert "bug" not in bad.failure.error.message
    assert good.result().text == ask("duet", PROMPTS[0]).text


def test_a_seed_repeats_a_draw(ask: Asker) -> None:
    """Sampling with a seed gives the same text again; another seed gives another."""
    tickets = [
        ask.send("duet", PROMPTS[1], temperature=1.0, top_p=0.9, seed=seed, max_tokens=12)
        for seed in (1, 1, 2)
    ]
    draw = [ticket.result().text for ticket in tickets]
    assert draw[0] == draw[1] != draw[2]


def test_max_tokens_counts_the_main_member(ask: Asker) -> None:
    """An answer of max_tokens main tokens ends with "length"."""
    reply = ask("duet", PROMPTS[1], max_tokens=5)
    assert reply.end is not None
    assert (reply.end.reason, reply.end.members[0].completion_tokens) == ("length", 5)


def test_the_context_ends_an_answer(ask: Asker) -> None:
    """A prompt just below the context's length leaves room for a few tokens, then the answer ends with
    "length"."""
    limit = ask.host.engine_specs[SMOL].max_model_len
    prompts = tuple(ids + (ids[-1],) * (limit - 4 - len(ids)) for ids in ask.prompt_ids("duet", PROMPTS[1]))
    for model, ids in (("duet", prompts), (SMOL, prompts[:1])):
        reply = ask.send_ids(model, ids, max_tokens=None, temperature=1.0, seed=1).result()
        assert reply.end is not None
        assert reply.end.reason in ("length", "stop")
        assert reply.end.members[0].completion_tokens <= 5


def test_a_stop_string_ends_every_member(ask: Asker) -> None:
    """A stop string cuts the text before it, in plain and fused answers, and frees both engines."""
    for model in ("duet", SMOL):
        whole = ask(model, PROMPTS[1]).text
        stop = whole.split()[3]
        cut = ask(model, PROMPTS[1], stops=(stop.encode(),))
        assert cut.text == whole[: whole.index(stop)]
        assert cut.end is not None
        assert cut.end.reason == "stop"
    _wait_until_idle(ask)


def test_cancelling_frees_the_engines(ask: Asker) -> None:
    """Cancelled generations leave the running count; the ones beside them finish."""
    long = [
        ask.send(model, PROMPTS[1], temperature=1.0, max_tokens=400) for model in ("duet", SMOL, "gate-shut")
    ]
    short = ask.send("duet", PROMPTS[0])
    for ticket in long:
        ticket.events.get(timeout=60)
        ask.host.cancel(ticket.id)
    assert short.result().end is not None
    _wait_until_idle(ask)


def _wait_until_idle(ask: Asker) -> None:
    import time

    for _ in range(500):
        if all(counts == (0, 0) for counts in ask.host.counts().values()):
            return
        time.sleep(0.01)
    raise AssertionError(ask.host.counts())
