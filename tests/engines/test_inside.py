"""Hidden states that the engine host shows to fusions, against transformers, on the real pair in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engines.conftest import FOLDERS, GEMMA, ONLOOKER, PAIR, PROMPTS, SMOL

if TYPE_CHECKING:
    from tests.engines.conftest import Asker, Reply

pytestmark = pytest.mark.models

LONG = "Say again: " + "red green blue white black brown pink grey gold dark " * 20


@pytest.fixture(scope="module")
def models(weights: Callable[[str], Path]) -> dict[str, Any]:
    """The pair in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    return {
        name: AutoModelForCausalLM.from_pretrained(weights(FOLDERS[name]), dtype=torch.float32).eval()
        for name in PAIR
    }


def _difference(ask: Asker, models: dict[str, Any], question: str, reply: Reply, shown: Any) -> float:
    """The largest between what the answer's steps were shown and transformers' states on the whole text, over the
    largest entry of the state."""
    import torch

    worst = 0.0
    for m, (name, prompt) in enumerate(zip(PAIR, ask.prompt_ids("onlooker", question), strict=True)):
        ids = list(prompt)
        ends = []
        for token in reply.tokens:
            ends.append(len(ids) - 1)
            ids += ask.host.vocabs[name].encode(token.token)
        with torch.no_grad():
            states = models[name](torch.tensor([ids]), output_hidden_states=True).hidden_states
        for end, seen in zip(ends, shown, strict=True):
            assert seen[m].shape == (len(ONLOOKER.layers[m]), states[0].shape[-1])
            for layer, ours in zip(ONLOOKER.layers[m], seen[m], strict=True):
                theirs = states[layer][0, end]
                worst = max(worst, float((ours - theirs).abs().max() / theirs.abs().max()))
    return worst


def test_states_are_those_of_transformers(ask: Asker, models: dict[str, Any]) -> None:
    """Embeddings, middle layers and the final norm's output, of both members: beside plain and other fused
    requests in the same steps, with prompts read in pieces, and again from the prefix cache.

    The largest difference seen is 3.3e-6 of a state's largest entry."""
    ONLOOKER.answers.clear()
    beside = [ask.send(model, PROMPTS[1], max_tokens=40) for model in (SMOL, GEMMA, "duet")]
    asked = [PROMPTS[0], LONG, LONG, PROMPTS[2]]
    replies, shown = [], []
    for question in asked:
        replies.append(ask("onlooker", question, max_tokens=6, top_logprobs=0))
        shown.append(ONLOOKER.answers[-1])
    for ticket in beside:
        assert ticket.result().failure is None
    again = replies[2].end
    assert again is not None
    assert all(member.cached_tokens > 64 for member in again.members)
    worst = [_difference(ask, models, *each) for each in zip(asked, replies, shown, strict=True)]
    assert max(worst) < 3e-5


def test_each_request_sees_its_own(ask: Asker, models: dict[str, Any]) -> None:
    """Several that look in the same steps, one of which leaves early, are each shown their own rows."""
    ONLOOKER.answers.clear()
    lengths = (3, 9, 6)
    tickets = [
        ask.send("onlooker", question, max_tokens=n, top_logprobs=0)
        for question, n in zip(PROMPTS, lengths, strict=True)
    ]
    replies = [ticket.result() for ticket in tickets]
    for question, reply in zip(PROMPTS, replies, strict=True):
        own = [shown for shown in ONLOOKER.answers if len(shown) == len(reply.tokens)]
        assert min(_difference(ask, models, question, reply, shown) for shown in own) < 3e-5


def test_nobody_asks_nothing_is_there(ask: Asker) -> None:
    """When the last request that looks is gone, so are the hooks on the model's blocks."""
    engine = ask.host._engines[SMOL]
    ticket = ask.send("onlooker", PROMPTS[0], max_tokens=30)
    ticket.events.get(timeout=60)
    assert set(engine._inside._hooks) == {0, 7, 29}
    ticket.result()
    ask(SMOL, PROMPTS[0], max_tokens=2)  # steps later
    blocks = engine._inside._blocks()
    assert not any(block._forward_pre_hooks for block in blocks)
    assert not engine._inside._asked


def test_a_layer_that_is_not_there_fails_the_request(ask: Asker) -> None:
    """Asking for a layer the model has not is that request's failure, and says which there are."""
    ONLOOKER.layers, layers = {0: (31,)}, ONLOOKER.layers
    try:
        reply = ask("onlooker", PROMPTS[0])
    finally:
        ONLOOKER.layers = layers
    assert reply.failure is not None
    assert "layers 0 to 30" in reply.failure.error.message


def test_citer_between_its_members(ask: Asker) -> None:
    """τ = 0 gives the small model's greedy text and never runs the large one, τ = 1 the large one's; the answer says
    whose words they are."""
    for question in PROMPTS:
        never, always, small, large = ask.all(
            *((model, question) for model in ("citer-never", "citer-always", SMOL, GEMMA))
        )
        assert never.text == small.text
        assert always.text == large.text
        for reply, name in ((never, SMOL), (always, GEMMA)):
            assert reply.end is not None
            assert [(part.model, part.size) for part in reply.end.spans] == [(name, len(reply.text.encode()))]
        assert never.end is not None
        assert never.end.members[1].prompt_tokens == never.end.members[1].completion_tokens == 0


def test_etr_hands_the_text_over(ask: Asker) -> None:
    """Without a call the text is the meta model's. Called after five symbols, the expert goes on as it does when it
    is given these words itself, under its own template; what the meta model is not asked for it does not compute."""
    for question in PROMPTS:
        assert ask("etr-never", question).text == ask(SMOL, question).text
        called = ask("etr-called", question, max_tokens=40)
        assert called.end is not None
        first, second = called.end.spans
        assert (first.model, second.model) == (SMOL, GEMMA)
        text = called.text.encode()
        begun = text[: first.size]
        assert ask(SMOL, question).text.encode().startswith(begun)
        prompt = ask.prompt_ids(GEMMA, question)[0]
        ids = ask.host.vocabs[GEMMA].encode(begun)
        expert = ask.send_ids(GEMMA, ((*prompt, *ids),), max_tokens=40).result()
        written = text[first.size :]
        assert len(written) > 20
        assert expert.text.encode().startswith(written) or written.startswith(expert.text.encode())
        assert called.end.members[0].completion_tokens <= 6
